"""A fused network computes what the same network computes module by module, and calls whatever must be called."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils import parametrize

import sepgroupy
from conftest import COPIES
from sepgroupy import cached_filters, fuse
from sepgroupy.backends import available_backends
from sepgroupy.errors import ArgumentError
from sepgroupy.fusion import fusion_report, restore
from sepgroupy.fusion.program import Program
from sepgroupy.models import ResNet, RotMNISTNet, UNet
from sepgroupy.nn import GroupBatchNorm2d, GroupConv2d, GroupPool, LiftingConv2d, PerElement

pytestmark = pytest.mark.usefixtures("as_if_large")
needs_kernels = pytest.mark.skipif(
    available_backends()["native"].startswith("unavailable"), reason="without kernels nothing is fused"
)

Make = Callable[..., nn.Module]


def chain(kind: str = "gc", norm: dict[str, Any] | None = None, **conv: Any) -> nn.Sequential:
    """Lift, then norm -> ReLU -> convolution twice, then norm -> ReLU -> max-pooling."""
    options: dict[str, Any] = {"group": "p4", "kind": kind, **({"kernel_size": 3, "padding": 1} | conv)}
    return nn.Sequential(
        LiftingConv2d(3, 4, 3, padding=1, group="p4"),
        GroupBatchNorm2d(4, **norm or {}),
        nn.ReLU(),
        GroupConv2d(4, 4, **options),
        GroupBatchNorm2d(4, **norm or {}),
        nn.ReLU(),
        GroupConv2d(4, 6, 1, group="p4"),
        GroupBatchNorm2d(6, **norm or {}),
        nn.ReLU(),
        PerElement(nn.MaxPool2d(2)),
        GroupPool(),
    )


class Nested(nn.Module):
    """A class that nobody can trace, around two chains."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = chain(), nn.Sequential(nn.Conv2d(6, 3, 1), chain("g"))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(y) if float(y.detach().sum()) > 1e9 else self.second(y) * 2  # a branch on values


class Residual(nn.Module):
    """Convolution -> norm -> ReLU -> convolution -> norm -> + residual -> ReLU, as in most published networks."""

    def __init__(self, kind: str, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        options: dict[str, Any] = {"padding": 1, "bias": False, "group": "p4", "kind": kind}
        self.conv1 = GroupConv2d(in_channels, channels, 3, stride=stride, **options)
        self.bn1, self.bn2 = GroupBatchNorm2d(channels), GroupBatchNorm2d(channels)
        self.conv2 = GroupConv2d(channels, channels, 3, **options)
        self.relu, self.downsample = nn.ReLU(inplace=True), None
        if stride > 1 or in_channels != channels:
            conv = GroupConv2d(in_channels, channels, 1, stride=stride, bias=False, group="p4", kind="dense")
            self.downsample = nn.Sequential(conv, GroupBatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class PostActivation(nn.Module):
    """A network as somebody else would write it."""

    def __init__(self, kind: str = "gc") -> None:
        super().__init__()
        self.stem = LiftingConv2d(3, 4, 3, stride=2, padding=1, bias=False, group="p4")
        self.norm, self.pool = GroupBatchNorm2d(4), PerElement(nn.MaxPool2d(3, stride=2, padding=1))
        self.blocks = nn.ModuleList([Residual(kind, 4, 4), Residual(kind, 4, 6, stride=2), Residual(kind, 6, 6)])
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm(self.stem(x))))
        for block in self.blocks:
            x = block(x)
        return self.head(torch.flatten(x.mean((-2, -1)).amax(2), 1))


class InvertedResidual(nn.Module):
    """The block of MobileNetV2: pointwise, depthwise, pointwise, each with a norm, and ReLU6 after the first two."""

    def __init__(self, channels: int = 4, hidden: int = 8) -> None:
        super().__init__()
        self.stem = LiftingConv2d(3, channels, 3, stride=2, padding=1, group="p4")
        self.expand = nn.Sequential(GroupConv2d(channels, hidden, 1, group="p4"), GroupBatchNorm2d(hidden), nn.ReLU6())
        depthwise = GroupConv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False, group="p4", kind="gc")
        self.depthwise = nn.Sequential(depthwise, GroupBatchNorm2d(hidden), nn.ReLU6(inplace=True))
        self.project = nn.Sequential(GroupConv2d(hidden, channels, 1, group="p4"), GroupBatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.project(self.depthwise(self.expand(x)))


def converted(kind: str) -> nn.Module:
    """Convert a plain network; its feature maps have the group axis merged into the batch."""
    conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    block = nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
    return sepgroupy.convert(
        nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), block, nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
        ),
        "p4",
        kind=kind,
        match="width",
        in_size=9,
    )


NETWORKS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "resnet-dense": (lambda: ResNet("dense", 8, (4, 4, 6), "p4"), (3, 8, 8)),
    "resnet-g": (lambda: ResNet("g", 8, (3, 4, 4), "p4"), (3, 8, 8)),
    "resnet-gc": (lambda: ResNet("gc", 14, (4, 4, 6), "p4m"), (3, 8, 8)),
    "resnet-gc-equivariant": (lambda: ResNet("gc", 8, (4, 4, 4), downsampling="equivariant"), (3, 8, 8)),
    "resnet-torch": (lambda: ResNet("gc", 8, (4, 4, 4), backend="torch"), (3, 8, 8)),
    "resnet-plain": (lambda: ResNet("plain", 8, (4, 4, 4)), (3, 8, 8)),
    "rotmnist-gc": (lambda: RotMNISTNet("gc", 4), (1, 28, 28)),
    "rotmnist-plain": (lambda: RotMNISTNet("plain", 4), (1, 28, 28)),
    "unet-gc": (lambda: UNet("gc", 3, "p4", depth=1), (3, 4, 6)),
    "nested": (Nested, (3, 8, 8)),
    "post-dense": (lambda: PostActivation("dense"), (3, 16, 16)),
    "post-g": (lambda: PostActivation("g"), (3, 16, 16)),
    "post-gc": (PostActivation, (3, 16, 16)),
    "mobile": (InvertedResidual, (3, 17, 17)),
    "converted-dense": (lambda: converted("dense"), (3, 9, 9)),
    "converted-gc": (lambda: converted("gc"), (3, 9, 9)),
    "chain-dense": (lambda: chain("dense"), (3, 7, 6)),
    "chain-g": (lambda: chain("g"), (3, 7, 6)),
    "chain-gc": (chain, (3, 7, 6)),
    "chain-gc-stride": (lambda: chain(kernel_size=2, stride=2, padding=0, bias=False), (3, 8, 6)),
    "chain-gc-groups": (lambda: chain(groups=2), (3, 7, 6)),
    "chain-gc-circular": (lambda: chain(padding_mode="circular"), (3, 7, 6)),
    "chain-gc-expanded": (lambda: chain(backend="expanded"), (3, 7, 6)),
    **{
        f"norm-{name}": (lambda options=options: chain(norm=options), (3, 7, 6))
        for name, options in {
            "momentum": {"momentum": 0.3, "eps": 1e-2},
            "cumulative": {"momentum": None},
            "fixed": {"momentum": 0.0},
            "no-affine": {"affine": False},
            "no-statistics": {"track_running_stats": False},
        }.items()
    },
}
FUSED = [name for name in NETWORKS if name not in ("resnet-plain", "resnet-torch", "rotmnist-plain")]


def make(name: str) -> tuple[nn.Module, Tensor]:
    """Build a network in float64, its batch norms with parameters of their own, and a batch."""
    build, shape = NETWORKS[name]
    net = build().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return net, torch.randn(3, *shape, dtype=torch.float64) * 3 + 1


def results(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the output, all gradients and all buffers after a forward and a backward pass."""
    x = x.clone().requires_grad_()
    y = net(x)
    wanted = [x, *(p for p in net.parameters() if p.requires_grad)]
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y, *torch.autograd.grad((y * weight).sum(), wanted), *net.buffers()]


def assert_same(fused: nn.Module, plain: nn.Module, x: Tensor) -> None:
    """Compare two networks step by step: training twice, then inference with and without gradients."""
    for training in (True, True, False):
        torch.testing.assert_close(
            results(fused.train(training), x), results(plain.train(training), x), atol=1e-9, rtol=1e-8
        )
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(fused(x), plain(x), atol=1e-9, rtol=1e-8)


def fused_copy(plain: nn.Module) -> nn.Module:
    return fuse(copy.deepcopy(plain))


# ---- values, gradients, statistics ---------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_gradients_and_statistics_are_those_of_the_modules(name: str) -> None:
    plain, x = make(name)
    assert_same(fused_copy(plain), plain, x)


@needs_kernels
@pytest.mark.parametrize("name", FUSED)
def test_fusion_report_names_the_fused_modules(name: str) -> None:
    net, _ = make(name)
    assert not fusion_report(net).fused
    report = fusion_report(fuse(net))
    assert report.fused
    names = [name for step in report.fused for name in step]
    share_relu = name.startswith(("resnet", "rotmnist", "unet", "post"))
    assert share_relu or len(names) == len(set(names))
    assert set(names) <= {name for name, _ in net.named_modules()}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["resnet-gc", "chain-g"])
def test_frozen_parameters_have_no_gradient_and_change_no_other(name: str, training: bool) -> None:
    plain, x = make(name)
    for index, parameter in enumerate(plain.parameters()):
        parameter.requires_grad_(bool(index % 3))
    fused = fused_copy(plain)
    torch.testing.assert_close(
        results(fused.train(training), x), results(plain.train(training), x), atol=1e-9, rtol=1e-8
    )
    fused(x).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in fused.parameters())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", [{}, {"kernel_size": 2, "stride": 2, "padding": 0, "bias": False}], ids=str)
@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
def test_first_and_second_derivatives(kind: str, options: dict[str, Any], training: bool) -> None:
    net = fuse(chain(kind, **options)[:4].double()).train(training)
    names = [name for name, _ in net.named_parameters()]

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        state = dict(zip(names, parameters, strict=True)) | {n: b.clone() for n, b in net.named_buffers()}
        return torch.func.functional_call(net, state, (x,))

    inputs = (torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True), *net.parameters())
    assert gradcheck(call, inputs, fast_mode=True)
    assert gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("name", ["resnet-gc", "chain-dense", "unet-gc", "post-gc", "mobile"])
def test_second_derivatives_of_whole_networks(name: str) -> None:
    plain, x = make(name)

    def penalty(net: nn.Module) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(net(leaf).square().sum(), leaf, create_graph=True)
        found = torch.autograd.grad(grad.square().sum(), [leaf, *net.parameters()], allow_unused=True)
        return [torch.zeros(()) if g is None else g for g in found]

    for training in (True, False):
        found, wanted = (penalty(net.train(training)) for net in (fused_copy(plain), copy.deepcopy(plain)))
        scale = max(float(g.abs().max()) for g in wanted)
        torch.testing.assert_close(found, wanted, atol=1e-9 * scale, rtol=0)


@needs_kernels
def test_norm_sum_and_relu_after_a_convolution_are_one_kernel() -> None:
    steps = fusion_report(fuse(InvertedResidual())).fused
    assert ("depthwise.0", "depthwise.1", "depthwise.2") in steps
    assert ("project.0", "project.1") in steps
    assert ("blocks.0.bn1", "blocks.0.relu", "blocks.0.conv2", "blocks.0.bn2", "blocks.0.relu") in (
        fusion_report(fuse(PostActivation())).fused
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_nan_and_infinity_pass_relu6_as_in_torch(value: float, training: bool) -> None:
    plain, x = make("mobile")
    x[0, 0, 0, 0] = value
    fused = fused_copy(plain)
    for context in (torch.enable_grad, torch.no_grad):
        with context():
            wanted, found = (net.train(training)(x) for net in (plain, fused))
        torch.testing.assert_close(found, wanted, equal_nan=True)


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (2, 2), (30, 141)])  # 141: more windows than are pooled at a time
@pytest.mark.parametrize("on_group", [True, False])
def test_pooling_of_any_size(size: tuple[int, int], on_group: bool) -> None:
    norm, pool = (
        (GroupBatchNorm2d(4), PerElement(nn.MaxPool2d(2))) if on_group else (nn.BatchNorm2d(4), nn.MaxPool2d(2))
    )
    plain = nn.Sequential(norm, nn.ReLU(), pool).double()
    shape = (5, 4, 4, *size) if on_group else (5, 4, *size)
    assert_same(fused_copy(plain), plain, torch.randn(shape, dtype=torch.float64) * 3 + 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_pooling_nan_and_infinity(value: float) -> None:
    plain = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)).double().eval()
    x = torch.randn(2, 4, 6, 18, dtype=torch.float64)
    for pixel in range(4):
        x[1, pixel, 2 + pixel // 2, 2 * pixel + pixel % 2] = value
    torch.testing.assert_close(fused_copy(plain)(x.requires_grad_()), plain(x), equal_nan=True)


def test_the_gradient_of_equal_pixels_goes_where_pooling_sends_it() -> None:
    plain = nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.MaxPool2d(2)).double().eval()
    x = torch.ones(1, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    found, wanted = (torch.autograd.grad(net(x).sum(), x)[0] for net in (fused_copy(plain), plain))
    assert torch.equal(found != 0, wanted != 0)


def test_the_input_is_left_as_it_is() -> None:
    plain, x = make("resnet-gc")
    before = x.clone()
    fuse(plain)(x).sum().backward()
    assert torch.equal(x, before)


# ---- who must be called --------------------------------------------------------------------------


@pytest.fixture(params=["resnet-gc", "rotmnist-gc", "chain-gc", "nested"])
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, Tensor]:
    """Make a fused network, the same network as it is, and a batch; both have been called once."""
    plain, x = make(request.param)
    fused = fused_copy(plain)
    for net in (fused, plain):
        net(x)
    return fused, plain, x


def part_names(net: nn.Module) -> list[str]:
    """Name one module of each class that a kernel may stand for, and containers of them."""
    first: dict[str, str] = {}
    for name, module in net.named_modules():
        if name:
            first.setdefault(type(module).__name__, name)
    return list(first.values())


def test_hooks_see_and_change_what_they_would(pair: tuple[nn.Module, nn.Module, Tensor]) -> None:
    fused, plain, x = pair
    for name in part_names(plain):
        seen: dict[str, list[str]] = {"fused": [], "plain": []}
        handles = []
        for label, net in (("fused", fused), ("plain", plain)):
            part, log = net.get_submodule(name), seen[label]
            handles += [
                part.register_forward_pre_hook(lambda m, args, log=log: log.append("before")),
                part.register_forward_hook(lambda m, args, y, log=log: log.append("after") or y * 1.25),
                part.register_full_backward_hook(lambda m, dx, dy, log=log: log.append("backward")),
            ]
        assert_same(fused, plain, x)
        assert seen["fused"] == seen["plain"], name
        assert {"before", "after"} <= set(seen["fused"])
        for handle in handles:
            handle.remove()
    assert_same(fused, plain, x)


def test_global_hooks_see_every_call(pair: tuple[nn.Module, nn.Module, Tensor]) -> None:
    seen: list[list[str]] = []
    for net in pair[:2]:
        names = {module: name for name, module in net.named_modules()}
        calls: list[str] = []
        seen.append(calls)
        handles = [
            register_module_forward_pre_hook(lambda m, args, n=names, c=calls: c.append(n.get(m, "?"))),
            register_module_forward_hook(lambda m, args, y, n=names, c=calls: c.append(n.get(m, "?"))),
        ]
        net(pair[2])
        for handle in handles:
            handle.remove()
    assert seen[0] == seen[1]
    assert seen[1]


def test_a_hook_may_edit_the_values_that_a_norm_will_read() -> None:
    plain, x = make("resnet-gc")
    fused = fused_copy(plain)
    edited: list[Tensor] = []
    for net in (fused, plain):
        for block in (net.get_submodule("layer1.0"), net.get_submodule("layer2.0")):
            for conv in (block.conv1, block.conv2):
                conv.register_forward_hook(lambda m, args, y: edited.append(y.data.mul_(3)))  # leaves no trace
    assert_same(fused, plain, x)
    assert edited


def test_patched_forwards_are_called(pair: tuple[nn.Module, nn.Module, Tensor]) -> None:
    fused, plain, x = pair
    for name in part_names(plain):
        for net in (fused, plain):
            part = net.get_submodule(name)
            part.forward = lambda x, part=part: type(part).forward(part, x) * 1.25  # type: ignore[method-assign]
        assert_same(fused, plain, x)
        for net in (fused, plain):
            del net.get_submodule(name).forward
    assert_same(fused, plain, x)


class Doubled(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return 2 * value


def test_parametrizations_are_applied(pair: tuple[nn.Module, nn.Module, Tensor]) -> None:
    fused, plain, x = pair
    for net in (fused, plain):
        for part in list(net.modules()):
            for name in [name for name, _ in part.named_parameters(recurse=False)]:
                parametrize.register_parametrization(part, name, Doubled())
    assert_same(fused, plain, x)


class Wrapper(nn.Module):
    """What checkpointing, sharding and offloading put in the place of a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) * 1.25


def test_submodules_may_be_replaced_and_wrapped(pair: tuple[nn.Module, nn.Module, Tensor]) -> None:
    fused, plain, x = pair
    for name in part_names(plain):
        owner, _, attribute = name.rpartition(".")
        for net in (fused, plain):
            setattr(net.get_submodule(owner), attribute, Wrapper(net.get_submodule(name)))
        assert_same(fused, plain, x)
        for net in (fused, plain):
            setattr(net.get_submodule(owner), attribute, net.get_submodule(name).module)
    assert_same(fused, plain, x)


class Negated(GroupBatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


class Shifted(GroupConv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


@pytest.mark.parametrize(
    ("index", "replacement"),
    [
        (1, lambda: Negated(4)),
        (1, lambda: PerElement(nn.GroupNorm(2, 4))),
        (2, nn.GELU),
        (3, lambda: Shifted(4, 4, 3, padding=1, group="p4")),
        (3, lambda: GroupConv2d(4, 4, 3, group="p4", stride=3, kind="g")),
        (9, lambda: PerElement(nn.MaxPool2d(2, ceil_mode=True))),
        (9, lambda: PerElement(nn.MaxPool2d(3, 2))),
        (9, lambda: PerElement(nn.AvgPool2d(2))),
    ],
)
def test_other_modules_in_the_same_places(index: int, replacement: Callable[[], nn.Module]) -> None:
    plain, x = make("chain-gc")
    fused = fused_copy(plain)
    for net in (fused, plain):
        net(x)
    plain[index] = replacement().double()
    fused[index] = copy.deepcopy(plain[index])
    assert_same(fused, plain, x)


def test_modules_may_be_edited_between_calls(pair: tuple[nn.Module, nn.Module, Tensor]) -> None:
    fused, plain, x = pair
    edits: list[Callable[[nn.Module], object]] = [
        lambda norm: setattr(norm, "eps", 0.3),
        lambda norm: setattr(norm, "momentum", 0.7),
        lambda norm: norm.eval(),
        lambda norm: norm.weight.data.mul_(3),
        lambda norm: setattr(norm, "weight", nn.Parameter(norm.weight.detach() * 2)),
        lambda norm: setattr(norm, "bias", None),
        lambda norm: setattr(norm, "track_running_stats", False),
        lambda norm: setattr(norm, "track_running_stats", True),
        lambda norm: [setattr(norm, name, None) for name in ("running_mean", "running_var")],
    ]
    for edit in edits:
        for net in (fused, plain):
            net.train()
            for norm in [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]:
                edit(norm)
        torch.testing.assert_close(results(fused, x), results(plain, x), atol=1e-9, rtol=1e-8)


def test_training_and_inference_of_parts_may_differ() -> None:
    plain, x = make("resnet-gc")
    fused = fused_copy(plain)
    for net in (fused, plain):
        net.train()
        for module in net.get_submodule("layer2").modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    torch.testing.assert_close(results(fused, x), results(plain, x), atol=1e-9, rtol=1e-8)


# ---- inputs that no kernel reads -----------------------------------------------------------------


class Sum(nn.Sequential):
    """``conv(relu(norm(x))) + residual``, traced since its forward is that of nn.Sequential."""


def add_of(net: ResNet, replacement: nn.Module) -> None:
    net.layer2[0].downsample = replacement


class Broadcast(nn.Module):
    """A residual of another shape or dtype, which torch's addition broadcasts or promotes."""

    def __init__(self, change: str) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., ::2, ::2]
        return {
            "one image": lambda: x[:1],
            "one channel": lambda: x[:, :1],
            "one element": lambda: x[:, :, :1],
            "one pixel": lambda: x[..., :1, :1],
            "fewer axes": lambda: x[0],
            "a number": lambda: x.sum(),
            "float32": lambda: x.float(),
            "int64": lambda: x.long(),
            "more images": lambda: x[:, None].mean(0, keepdim=True).expand(2, 3, -1, -1, -1, -1, -1)[:, :, 0],
        }[self.change]()


@pytest.mark.parametrize(
    "change",
    ["one image", "one channel", "one element", "one pixel", "fewer axes", "a number", "float32", "int64"],
)
def test_a_residual_of_another_shape_or_dtype_is_added_as_torch_adds_it(change: str) -> None:
    plain = ResNet("gc", 8, (4, 4, 4), "p4").double()
    plain.layer2[0].downsample = Broadcast(change)
    fused, x = fused_copy(plain), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    assert_same(fused, plain, x)


def test_one_value_per_channel_is_refused_as_by_torch() -> None:
    net = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        fuse(copy.deepcopy(net))(torch.zeros(1, 4, 1, 1))
    net = nn.Sequential(GroupBatchNorm2d(4), nn.ReLU(), GroupConv2d(4, 4, 1, group="p1"))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        fuse(net)(torch.zeros(1, 4, 1, 1, 1))


@pytest.mark.parametrize("name", ["chain-gc", "resnet-gc"])
@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches(name: str, batch: int) -> None:
    plain, x = make(name)
    fused = fused_copy(plain).eval()
    torch.testing.assert_close(results(fused, x[:batch]), results(plain.eval(), x[:batch]), atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize(
    ("message", "x"),
    [
        (r"x has shape \(2, 5, 7, 6\)", torch.zeros(2, 5, 7, 6, dtype=torch.float64)),
        ("x is torch.float32 and the layer's parameters are torch.float64", torch.zeros(2, 3, 7, 6)),
        ("x is 0×6 pixels", torch.zeros(2, 3, 0, 6, dtype=torch.float64)),
    ],
)
def test_wrong_inputs_are_refused_as_by_the_modules(message: str, x: Tensor) -> None:
    with pytest.raises(ArgumentError, match=message):
        fuse(make("chain-gc")[0])(x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("how", ["bfloat16", "bfloat16, norms in float32", "autocast"])
@pytest.mark.parametrize(
    "name", ["chain-gc", "chain-dense", "resnet-gc", "resnet-g", "rotmnist-gc", "unet-gc", "post-gc", "mobile"]
)
@needs_kernels
def test_bfloat16_is_about_as_exact_as_without_fusion(name: str, how: str, training: bool) -> None:
    # One rounding may move the gradient of a maximum to another pixel: errors are summed over several draws.
    draws = [errors_in_bfloat16(name, how, training) for _ in range(4)]
    for errors in zip(*draws, strict=True):
        by_kernels, by_modules, scale = torch.tensor(errors).square().sum(0).sqrt()
        assert by_kernels <= 3 * by_modules + 2**-7 * scale


def errors_in_bfloat16(name: str, how: str, training: bool) -> list[tuple[float, float, float]]:
    """Return for each result the error of a fused network, that of its modules, and the size of the result."""
    exact, x = make(name)
    x = x.bfloat16()
    plain = copy.deepcopy(exact.bfloat16()).float() if how == "autocast" else copy.deepcopy(exact.bfloat16())
    exact.double().train(training)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d) and how == "bfloat16, norms in float32":
            module.float()
    fused, found = fused_copy(plain), {}
    for label, net in {"exact": exact, "plain": plain, "fused": fused}.items():
        net.train(training)
        images = (x.float() if how == "autocast" else x) if net is not exact else x.double()
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast" and net is not exact):
            y = net(images)
        weight = torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype)
        gradients = torch.autograd.grad((y * weight).sum(), list(net.parameters()))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast" and net is not exact):
            folded = net.eval()(images)
        found[label] = [y, folded, torch.cat([g.flatten() for g in gradients]), *net.buffers()]
    errors = []
    for wanted, by_modules, by_kernels in zip(found["exact"], found["plain"], found["fused"], strict=True):
        assert by_kernels.dtype == by_modules.dtype
        error, usual = (float((t.detach().double() - wanted.detach()).norm()) for t in (by_kernels, by_modules))
        errors.append((error, usual, float(wanted.detach().double().norm())))
    return errors


# ---- one model, fused or not ---------------------------------------------------------------------


def test_state_parameters_and_submodules_stay_the_same_objects(pair: tuple[nn.Module, nn.Module, Tensor]) -> None:
    _, net, x = pair
    state, parameters, modules = net.state_dict(), list(net.named_parameters()), list(net.named_modules())
    kind, text = type(net), repr(net)
    assert fuse(net) is net
    net(x)
    assert isinstance(net, kind)
    assert type(net).__name__ == kind.__name__
    assert repr(net) == text
    for found, wanted in ((net.state_dict(), state), (dict(net.named_parameters()), dict(parameters))):
        assert list(found) == list(wanted)
        assert all(found[key].data_ptr() == wanted[key].data_ptr() for key in wanted)
    assert all(a is b for (_, a), (_, b) in zip(net.named_modules(), modules, strict=True))
    assert all(a is b for (_, a), (_, b) in zip(net.named_parameters(), parameters, strict=True))
    assert fuse(net) is net  # a second time
    assert restore(net) is net
    assert all(type(m) is type(n) for (_, m), (_, n) in zip(net.named_modules(), modules, strict=True))
    assert type(net) is kind
    assert not any("_fusion" in m.__dict__ for m in net.modules())
    assert not fusion_report(net).fused


def test_restore_computes_the_same(pair: tuple[nn.Module, nn.Module, Tensor]) -> None:
    fused, plain, x = pair
    assert_same(restore(fused), plain, x)


@COPIES
def test_copies_are_fused_and_stand_alone(pair: tuple[nn.Module, nn.Module, Tensor], duplicate: Any) -> None:
    fused, plain, x = pair
    other = duplicate(fused)
    assert fusion_report(other).fused == fusion_report(fused).fused
    with torch.no_grad():
        for net in (other, plain):
            for parameter in net.parameters():
                parameter.mul_(0.9)
    assert_same(other, plain, x)
    hooked: list[str] = []
    for module in other.modules():
        module.register_forward_hook(lambda m, args, y: hooked.append(type(m).__name__))
    fused(x)
    assert not hooked


def test_a_state_moves_in_both_directions(pair: tuple[nn.Module, nn.Module, Tensor]) -> None:
    fused, plain, x = pair
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(0.9)
    fused.load_state_dict(plain.state_dict(), strict=True)
    assert_same(fused, plain, x)
    plain.load_state_dict({name: 1 * value for name, value in fused.state_dict().items()}, assign=True)
    assert_same(fused, plain, x)


@pytest.mark.filterwarnings("ignore")
def test_replicas_as_data_parallel_makes_them() -> None:
    plain, x = make("chain-gc")
    fused = fused_copy(plain)
    fused(x)

    def replicate(net: nn.Module) -> nn.Module:
        replica = net._replicate_for_data_parallel()
        for name, parameter in net._parameters.items():
            setattr(replica, name, None if parameter is None else parameter * 2)
        replica._buffers = {name: None if b is None else b.clone() for name, b in net._buffers.items()}
        replica._modules = {name: m and replicate(m) for name, m in net._modules.items()}
        return replica

    doubled = copy.deepcopy(plain)
    with torch.no_grad():
        for parameter in doubled.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(replicate(fused)(x), doubled(x), atol=1e-9, rtol=1e-8)
    torch.testing.assert_close(fused(x), plain(x), atol=1e-9, rtol=1e-8)


def test_a_fused_network_computes_with_the_parameters_of_functional_call(
    pair: tuple[nn.Module, nn.Module, Tensor],
) -> None:
    fused, plain, x = pair
    state = {name: p.detach() * 0.9 for name, p in plain.named_parameters()}
    for training in (True, False):
        found, wanted = (torch.func.functional_call(net.train(training), state, (x,)) for net in (fused, plain))
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-8)


class Between(nn.Module):
    """A network between operations that a compiler has to compile."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x.sin()).cos()
        return y


@needs_kernels
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # read by the compiler
@pytest.mark.parametrize("fullgraph", [False, True])
def test_compiled_programs_call_a_fused_model_unless_they_must_be_one_graph(
    fullgraph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Program] = []
    run = Program.__call__
    monkeypatch.setattr(Program, "__call__", lambda self, x: (calls.append(self), run(self, x))[1])
    plain, x = make("chain-gc")
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(Between(fused_copy(plain)), backend=backend, fullgraph=fullgraph)
    assert_same(compiled, Between(plain), x)
    names = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert {"sin", "cos"} <= names
    assert ("sepgroupy.group_conv.default" in names) == (not calls) == fullgraph


@pytest.mark.parametrize("name", ["chain-gc", "unet-gc", "post-gc", "rotmnist-gc", "converted-dense", "mobile"])
def test_a_batch_of_gradients_is_that_of_each(name: str) -> None:
    net, x = make(name)
    y, leaves = fuse(net)(x.requires_grad_()), [x, *net.parameters()]
    grads = torch.randn(2, *y.shape, dtype=y.dtype)
    together = torch.autograd.grad(y, leaves, grads, is_grads_batched=True, retain_graph=True)
    apart = [torch.autograd.grad(y, leaves, grad, retain_graph=True) for grad in grads]
    torch.testing.assert_close(list(together), [torch.stack(g) for g in zip(*apart, strict=True)], rtol=1e-8, atol=1e-8)


@needs_kernels
@pytest.mark.usefixtures("fresh_compiler")
def test_a_fused_model_in_a_branch_of_a_graph_is_compiled() -> None:
    plain, x = make("chain-gc")
    net, plain = fused_copy(plain).eval(), plain.eval()
    called = torch.compile(
        lambda x: torch.cond(x.sum() > 0, lambda y: net(y), lambda y: net(y) * 2, (x,)), backend="eager"
    )
    with torch.no_grad():
        torch.testing.assert_close(called(x), plain(x) * (1 if x.sum() > 0 else 2), atol=1e-9, rtol=1e-8)


@needs_kernels
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_function_transforms_of_a_fused_model() -> None:
    plain, x = make("chain-gc")
    fused, plain = fused_copy(plain).eval(), plain.eval()
    call = torch.compile(lambda images: torch.func.vmap(lambda image: fused(image[None])[0])(images), backend="eager")
    torch.testing.assert_close(call(x), plain(x), atol=1e-9, rtol=1e-8)


def test_cached_filters_of_a_fused_model(pair: tuple[nn.Module, nn.Module, Tensor]) -> None:
    fused, plain, x = pair
    fused.eval()
    plain.eval()
    with torch.no_grad(), cached_filters(fused):
        for _ in range(2):
            torch.testing.assert_close(fused(x), plain(x), atol=1e-9, rtol=1e-8)
            for net in (fused, plain):
                for parameter in net.parameters():
                    parameter.data.mul_(0.9)


@needs_kernels
def test_the_report_says_what_is_fused_and_why_not() -> None:
    net, _ = make("chain-gc")
    text = str(fusion_report(net))
    assert "0 fused kernels" in text
    assert "3: sepgroupy.fuse was not called" in text
    assert "3: called by a forward that cannot be recorded" in str(fusion_report(nn.ModuleList(net)))
    report = fusion_report(fuse(net))
    assert report.fused[1:] == (("1", "2", "3"), ("4", "5", "6"), ("7", "8", "9", "9.module"))
    handle = net[2].register_forward_hook(lambda m, args, y: None)
    report = fusion_report(net)
    assert report.not_fused["2"] == "hooks"
    assert ("3",) in report.fused
    assert "2: hooks" in str(report)
    handle.remove()
    assert fusion_report(net).not_fused.keys() <= {"", "10"}


@needs_kernels
def test_norms_after_convolutions_are_folded_into_their_filters() -> None:
    report = fusion_report(fuse(make("post-gc")[0]))
    assert ("stem", "norm") in report.fused
    assert ("blocks.0.bn1", "blocks.0.relu", "blocks.0.conv2", "blocks.0.bn2", "blocks.0.relu") in report.fused
    assert ("blocks.1.downsample.0", "blocks.1.downsample.1") in report.fused
    merged = fusion_report(fuse(make("converted-gc")[0])).fused
    assert any(len(names) == 5 for names in merged)


@pytest.mark.parametrize("name", ["post-gc", "converted-dense"])
@pytest.mark.parametrize("edit", ["weight", "gamma", "beta", "mean", "var", "eps"])
def test_folded_norms_see_edits_inside_cached_filters(name: str, edit: str) -> None:
    plain, x = make(name)
    fused = fused_copy(plain)
    before = fused.eval()(x)
    with torch.no_grad(), cached_filters(fused):
        fused(x)
        for net in (fused, plain.eval()):
            for module in net.modules():
                if isinstance(module, GroupConv2d) and edit == "weight":
                    next(module.parameters()).data.mul_(1.1)
                elif isinstance(module, nn.BatchNorm2d) and edit == "eps":
                    module.eps = 0.5
                elif isinstance(module, nn.BatchNorm2d) and edit != "weight":
                    field = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}[edit]
                    getattr(module, field).data.add_(0.25)
        torch.testing.assert_close(fused(x), plain(x), atol=1e-9, rtol=1e-8)
        assert not torch.allclose(fused(x), before)


# ---- forwards that do more than call their submodules ---------------------------------------------


class Pair(nn.Module):
    """The base of networks with a convolution and a norm, whose forwards must not be recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = GroupConv2d(2, 2, 3, padding=1, group="p4"), GroupBatchNorm2d(2)
        self.calls, self.features, self.scale = 0, list[Tensor](), 1.0


class Counts(Pair):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.norm(self.conv(x)) * self.calls


class Collects(Pair):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        self.features.append(y)
        return y * len(self.features)


class Draws(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * torch.rand(1)


class DrawsInPython(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * random.random()


class Branches(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if x.sum() > 0 else self.conv(x)


class BranchesOnType(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x if isinstance(x, Tensor) else x[0]))


class BranchesOnMode(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * (2 if torch.is_grad_enabled() else 3)


class WithoutGradients(Pair):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.norm(self.conv(x))


class Decorated(Pair):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class ReadsAGlobal(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * SETTINGS["scale"]


class WritesItsResult(Pair):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y[:, 0] = 0
        return y


class Patched(Pair):
    def __call__(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * super().__call__(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


SETTINGS = {"scale": 1.0}
REFUSED = (
    *(Counts, Collects, Draws, DrawsInPython, Branches, BranchesOnType, BranchesOnMode, WithoutGradients, Decorated),
    *(ReadsAGlobal, WritesItsResult, Patched),
)


@pytest.mark.parametrize("cls", REFUSED)
def test_forwards_that_do_more_are_called_in_every_pass(cls: type[Pair]) -> None:
    plain, x = cls().double().eval(), torch.randn(2, 2, 4, 5, 5, dtype=torch.float64)
    fused = fused_copy(plain)
    assert not fusion_report(fused).fused
    for scale in (1.0, 2.0):
        SETTINGS["scale"] = scale
        for net in (fused, plain):
            torch.manual_seed(0)
            random.seed(0)
            net.result = net(x)  # type: ignore[assignment]
        torch.testing.assert_close(fused.result, plain.result)
        x = -x


class Settings(Pair):
    """Reads values that may change between calls."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = self.norm(y) if self.calls == 0 else y
        return y * self.scale if self.training else y * self.scale * 3


@needs_kernels
def test_values_that_a_forward_reads_may_change_between_calls() -> None:
    plain, x = Settings().double(), torch.randn(2, 2, 4, 5, 5, dtype=torch.float64)
    fused = fused_copy(plain)
    assert fusion_report(fused).fused
    for training, calls, scale in ((True, 0, 1.0), (False, 0, 1.0), (False, 1, 1.0), (False, 1, 2.5), (True, 0, 0.5)):
        for net in (fused, plain):
            net.train(training)
            net.calls, net.scale = calls, scale
        torch.testing.assert_close(fused(x), plain(x))
    fused.scale = plain.scale = torch.tensor(2.0)  # type: ignore[assignment]  # no plain value: it is not recorded
    torch.testing.assert_close(fused(x), plain(x))


class WritesItsInput(Pair):
    """Changes the input of the convolution between the convolution and the sum."""

    def forward(self, x: Tensor) -> Tensor:
        h = x * 1
        y = self.conv(h)
        h.relu_()
        return y + h


class AddsIntoTheResidual(Pair):
    """Adds the convolution to a tensor in place; that tensor is read once more."""

    def forward(self, x: Tensor) -> Tensor:
        h = x * 1
        y = h * 2
        h += self.conv(x)
        return h + y + self.norm(x).relu_()


@pytest.mark.parametrize("cls", [WritesItsInput, AddsIntoTheResidual])
def test_tensors_written_in_place(cls: type[Pair]) -> None:
    plain, x = cls().double(), torch.randn(2, 2, 4, 5, 5, dtype=torch.float64)
    fused = fused_copy(plain)
    with torch.no_grad():
        for training in (True, False):
            torch.testing.assert_close(fused.train(training)(x), plain.train(training)(x))


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"model \(=<function .*must be a torch\.nn\.Module"):
        fuse(lambda x: x)  # type: ignore[type-var]
