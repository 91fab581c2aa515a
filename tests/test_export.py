"""Exported networks compute what the networks themselves do, with standard modules, and so do their files."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import prune

from conftest import build_layer, random_input, variants_of
from sepgroupy import (
    ArgumentError,
    GroupConv2d,
    GroupConvTranspose2d,
    GroupPool,
    LiftingConv2d,
    PerElement,
    cli,
    convert,
    export,
    functional,
)
from sepgroupy.exporting import FORMATS, save
from sepgroupy.functional import merge_group, split_group
from sepgroupy.gconv.pooling import GroupMaxPool2d
from sepgroupy.groups import C4, D4
from sepgroupy.models import build_model, model_names
from sepgroupy.paper import RunConfig
from sepgroupy.training import load_model

CASES: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3},
    "1x1": {"kernel_size": 1},
    "stride": {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    "even": {"kernel_size": 4, "padding": 1, "stride": 2},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "blocks": {"kernel_size": 3, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 4},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "circular": {"kernel_size": 3, "padding": "same", "padding_mode": "circular"},
}


def lived(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """Give a network the parameters and statistics of one that has been trained."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
        for x in inputs:
            model.train()(x + 0.3)
    return model.eval()


def assert_exports(model: nn.Module, x: Tensor, tolerance: float = 1e-10) -> nn.Module:
    """Export, compare the result with the network itself, and return it."""
    expected = model(x)
    state, random = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    plain = export(model)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert (plain(x) - expected).abs().max() <= tolerance * expected.abs().max()
    assert plain(x[:0]).shape == model(x[:0]).shape
    for module in plain.modules():
        assert module is plain or type(module).__module__.startswith("torch.nn.")
    assert not plain.training
    assert not any(p.requires_grad for p in plain.parameters())
    return plain


def small(name: str) -> tuple[nn.Module, Tensor]:
    """Build one of the named networks, fewer layers of it, and an input."""
    if "cnn" in name:
        return build_model(name), torch.randn(2, 1, 28, 28)
    if name == "p4m-unet":
        return build_model(name, width=3, depth=2), torch.randn(2, 3, 12, 8)
    if name.startswith("o-"):
        return build_model(name, group="C2v"), torch.randn(2, 1, 4, 4, 4)
    return build_model(name, depth=8), torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize("name", [*model_names(), "p4m-unet"])
def test_the_named_networks(name: str) -> None:
    model, x = small(name)
    plain = assert_exports(lived(model, x), x, 1e-5)
    norms = sum(isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d)) for m in plain.modules())
    assert norms == (4 if "resnet" in name else 0)


@pytest.mark.parametrize("options", [{"downsampling": "equivariant"}, {"head": "invariant"}])
def test_options_of_the_networks(options: dict[str, str]) -> None:
    model = build_model("gc-p4m-resnet44", depth=8, widths=(2, 3, 4), group="p4", **options).double()
    x = torch.randn(2, 3, 16, 16).double()
    assert_exports(lived(model, x), x)


@pytest.mark.parametrize(
    ("kind", "group"),
    [("dense", "p4m"), ("g", "p4"), ("gc", "p4m"), ("gc", "p1"), ("dense", [[[0, 1], [1, 0]]])],
    ids=str,
)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_layer_becomes_plain_pytorch(kind: str, case: dict[str, Any], group: Any) -> None:
    net = nn.Sequential(
        LiftingConv2d(4, 4, **case, group=group), GroupConv2d(4, 8, **case, group=group, kind=kind), GroupPool("mean")
    ).double()
    x = torch.randn(2, 4, 15, 15).double()
    assert_exports(lived(net), x)
    assert_exports(net[0], x)
    assert_exports(net[1], net[0](x))


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_layer_becomes_plain_pytorch_whatever_its_backend(kernel: int) -> None:
    for variant in variants_of(kernel_size=kernel):
        layer = build_layer(variant, 4, 2, kernel, padding=1, group=D4, dtype=torch.float64)
        assert_exports(layer, random_input(layer, 5, 5))


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel:UserWarning")
def test_unequal_kernels_and_paddings() -> None:
    for options in ({"kernel_size": (1, 5), "padding": (0, 2)}, {"kernel_size": (3, 1), "stride": (1, 2)}):
        layer = GroupConv2d(2, 3, **options, group="pm", kind="gc", dtype=torch.float64)
        assert_exports(layer, torch.randn(2, 2, 2, 9, 8).double())
    layer = LiftingConv2d(2, 3, (4, 2), padding="same", group="p1", dtype=torch.float64)
    assert_exports(layer, torch.randn(2, 2, 9, 8).double())


@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
@pytest.mark.parametrize("options", [{}, {"kernel_size": 4, "padding": 1}, {"groups": 2}, {"bias": False}])
def test_transposed_layers_become_plain_pytorch(kind: str, options: dict[str, Any]) -> None:
    options = {"kernel_size": 2, "stride": 2, "group": "p4", "kind": kind, "dtype": torch.float64} | options
    layer = lived(GroupConvTranspose2d(4, 6, **options))
    x = torch.randn(2, 4, 4, 5, 5).double()
    assert_exports(layer, x)
    assert_exports(lived(nn.Sequential(layer, PerElement(nn.BatchNorm2d(6))).double(), x), x)


def norm(channels: int) -> PerElement:
    return PerElement(nn.BatchNorm2d(channels))


COMPOSITIONS = {
    "a norm after": [GroupConv2d(4, 4, 3, group=C4, kind="gc"), norm(4), nn.ReLU()],
    "a norm before": [norm(4), nn.ReLU(), GroupConv2d(4, 4, 3, group=C4, kind="g")],
    "no statistics": [GroupConv2d(4, 4, 3, group=C4), PerElement(nn.BatchNorm2d(4, track_running_stats=False))],
    "no affine": [GroupConv2d(4, 4, 3, group=C4), PerElement(nn.BatchNorm2d(4, affine=False))],
    "blocks": [GroupConv2d(4, 4, 3, groups=2, group=C4), norm(4), nn.SiLU()],
    "norms of other kinds": [
        GroupConv2d(4, 4, 3, group=C4),
        PerElement(nn.Sequential(nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.BatchNorm2d(4))),
    ],
    "activations": [GroupConv2d(4, 4, 3, group=C4), PerElement(nn.PReLU(4)), nn.GELU(), nn.Dropout(0.5), nn.Softplus()],
    "merged twice": [GroupConv2d(4, 4, 3, group=C4), PerElement(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)))],
    "pooling": [
        GroupConv2d(4, 4, 3, group=C4),
        GroupMaxPool2d(2),
        PerElement(nn.Upsample(scale_factor=2)),
        GroupPool(),
    ],
    "a softmax over the channels": [GroupConv2d(4, 4, 3, group=C4), PerElement(nn.Softmax2d()), nn.Softmax(2)],
    "a plain network behind": [
        GroupPool("mean"),
        nn.Conv2d(4, 3, 3),
        nn.BatchNorm2d(3),
        nn.Flatten(),
        nn.Linear(75, 2),
    ],
    "a head": [GroupConv2d(4, 4, 7, group=C4), nn.Flatten(), nn.Linear(16, 2), nn.LogSoftmax(1)],
    "two groups": [GroupPool(), LiftingConv2d(4, 2, 3, group=D4), nn.ReLU(), GroupConv2d(2, 3, 3, group=D4)],
}


@pytest.mark.parametrize("parts", COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_compositions(parts: list[nn.Module]) -> None:
    x = torch.randn(3, 4, 4, 7, 7).double()
    assert_exports(lived(nn.Sequential(*copy.deepcopy(parts)).double(), x, 2 * x), x)


def test_norms_go_into_the_filters_or_are_repeated() -> None:
    def names(parts: list[nn.Module]) -> list[str]:
        return sorted(type(m).__name__ for m in export(nn.Sequential(*parts)).modules() if not [*m.children()])

    assert names(COMPOSITIONS["a norm after"]) == ["Conv2d", "Conv2d", "ReLU"]
    assert names(COMPOSITIONS["a norm before"]) == ["BatchNorm2d", "Conv2d", "ReLU"]
    repeated = export(nn.Sequential(GroupConv2d(4, 4, 3, group=C4), nn.ReLU(), *COMPOSITIONS["a norm before"]))
    assert [m.num_features for m in repeated.modules() if isinstance(m, nn.BatchNorm2d)] == [16]


def test_a_separable_layer_is_two_convolutions_where_that_is_cheaper() -> None:
    def macs(model: nn.Module, x: Tensor) -> int:
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            model(x)
        return counter.get_total_flops()

    for options in ({"kernel_size": 3}, {"kernel_size": 1}, {"kernel_size": 2, "stride": 2}, {"kernel_size": 5}):
        layer = GroupConv2d(8, 8, **options, group=D4, kind="gc")
        x = torch.randn(1, 8, 8, 64, 64)
        count = macs(export(layer), x)
        for backend in ("two_step", "expanded"):
            other = GroupConv2d(8, 8, **options, group=D4, kind="gc", backend=backend)
            assert count <= macs(other, x) * 1.0001
    assert len([*export(GroupConv2d(8, 8, 3, group=D4, kind="g")).parameters()]) == 2


class Odd(nn.Module):
    """Do with group feature maps what a user's own network may do."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = LiftingConv2d(3, 4, 3, padding=1, group=C4)
        self.conv = GroupConv2d(4, 4, 3, padding=1, group=C4, kind="gc")
        self.gate, self.mask = GroupConv2d(4, 4, 1, group=C4), GroupConv2d(4, 1, 1, group=C4)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.mix = GroupConv2d(8, 4, 3, padding=1, group=C4)
        self.scale = nn.Parameter(torch.randn(4, 1, 1, 1))
        self.pool, self.head = GroupPool("max"), nn.Linear(4, 2)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.lift(image)
        x = x + self.conv(split_group(F.relu(self.norm(merge_group(x))), 4))
        x = self.conv(split_group(F.relu(self.other(merge_group(x))), 4))  # the same layer again
        rows = merge_group(x)
        x = x * torch.sigmoid(self.gate(functional.split_group(F.adaptive_avg_pool2d(rows, 1), 4)))
        x = x * self.mask(x)  # one channel for four
        x = torch.cat([x, x.flip(1)], 1)
        x = 0.5 * self.mix(x) * self.scale
        x += x.mean(2, keepdim=True)
        x = self.conv(x).relu_()
        x.mul_(2)
        pooled = self.other(self.pool(x))  # a norm with and without the group
        return {"maps": x, "logits": self.head(pooled.mean((-2, -1)).view(image.size(0), -1))}


def test_a_network_of_the_users_own() -> None:
    net, x = Odd().double(), torch.randn(3, 3, 6, 6).double()
    lived(net)
    net.norm.running_mean.uniform_(-1, 1)
    net.other.running_var.uniform_(1, 2)
    plain = export(net)
    for name, value in net(x).items():
        torch.testing.assert_close(plain(x)[name], value, atol=1e-11, rtol=1e-11)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Calling(nn.Module):
    """Call a function that is not one of torch's."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("one", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.one)


def outside(x: Tensor) -> Tensor:
    return twice(x, training=False)


def twice(x: Tensor, training: bool) -> Tensor:
    return 2 * x if not training or x.sum() > 0 else x


torch.fx.wrap("twice")  # as others do with functions that torch.fx could not follow in training


@torch.library.custom_op("sepgroupy_tests::double", mutates_args=())
def double(x: Tensor) -> Tensor:
    return 2 * x


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Branching(), r"module '1\.module' \(Branching\) cannot be traced by torch\.fx"),
        (Calling(lambda x: twice(x, True)), r"module '1\.module' \(Calling\) cannot be traced by torch\.fx"),
        (
            nn.Sequential(Calling(lambda x: double(x))),
            r"module '1\.module\.0' calls double_default of torch\._ops\.sepgroupy_tests",
        ),
        (
            Calling(lambda x: functional.full_filter(x, x)),
            r"module '1\.module' calls full_filter of sepgroupy\.backends",
        ),
        (InPlace(), r"module '1\.module' calls mul_ in place on a group feature map"),
    ],
)
def test_what_is_not_known_is_named(module: nn.Module, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        export(nn.Sequential(LiftingConv2d(3, 4, 3, group=C4), PerElement(module)))


def test_functions_that_are_followed_though_they_were_wrapped() -> None:
    net = nn.Sequential(LiftingConv2d(3, 4, 3, group=C4), Calling(outside)).double()
    assert_exports(net, torch.randn(2, 3, 5, 5).double())


def test_converted_networks() -> None:
    resnet = torchvision.models.resnet18(num_classes=5)
    block = torchvision.models.convnext.CNBlockConfig
    convnext = torchvision.models.convnext.ConvNeXt([block(8, 12, 2), block(12, None, 1)], 0.2, 1.0, 5)
    for plain, kind, size in ((resnet, "gc", 33), (convnext, "dense", 32)):
        x = torch.randn(2, 3, size, size)
        model = lived(convert(plain, "p4", kind, in_size=size, match="params"), x)
        exported = assert_exports(model, x, 1e-5)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in exported.modules())


def test_parametrized_layers_become_plain_pytorch() -> None:
    layer = GroupConv2d(4, 4, 3, group=C4, kind="gc", dtype=torch.float64)
    net = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(layer, "pointwise_weight"), nn.ReLU())
    plain = assert_exports(lived(net), torch.randn(2, 4, 4, 5, 5).double())
    assert {type(m).__name__ for m in plain.modules() if not [*m.children()]} == {"Conv2d", "ReLU"}


REPARAMETRIZATIONS: dict[str, Any] = {
    "weight_norm": torch.nn.utils.weight_norm,
    "spectral_norm": torch.nn.utils.spectral_norm,
    "prune": lambda m, name: prune.l1_unstructured(m, name, 0.4),
    "prune twice": lambda m, name: prune.random_unstructured(prune.l1_unstructured(m, name, 0.4), name, 0.4),
    "new weight_norm": torch.nn.utils.parametrizations.weight_norm,
    "new spectral_norm": torch.nn.utils.parametrizations.spectral_norm,
    "new orthogonal": torch.nn.utils.parametrizations.orthogonal,
    "user's pre-hook": lambda m, name: DoubledWeight.apply(m, name),
}


class DoubledWeight:
    """Recompute a weight in a pre-hook, as users do."""

    def __init__(self, name: str) -> None:
        self.name = name

    @staticmethod
    def apply(module: nn.Module, name: str) -> None:
        weight = module._parameters.pop(name)
        module.register_parameter(f"{name}_half", nn.Parameter(weight.detach() / 2))
        setattr(module, name, weight.detach().clone())
        module.register_forward_pre_hook(DoubledWeight(name))

    def __call__(self, module: nn.Module, args: Any) -> None:
        setattr(module, self.name, 2 * module.get_parameter(f"{self.name}_half"))


def reparametrized(how: Any) -> nn.Module:
    net = nn.Sequential(
        LiftingConv2d(3, 4, 3, group=C4), PerElement(nn.BatchNorm2d(4)), nn.ReLU(),
        GroupConv2d(4, 4, 3, group=C4, kind="gc"), GroupConv2d(4, 5, 3, group=C4, kind="g"),
        GroupConv2d(5, 4, 3, group=C4), GroupConvTranspose2d(4, 3, 2, group=C4), GroupPool(),
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6, 3),
    ).double()  # fmt: skip
    for index, name in ((0, "weight"), (3, "pointwise_weight"), (3, "depthwise_weight"), (4, "pointwise_weight"),
                        (5, "weight"), (6, "weight"), (8, "weight"), (11, "weight")):  # fmt: skip
        how(net[index], name)
    return net.eval()


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize("name", REPARAMETRIZATIONS)
@pytest.mark.parametrize("grad", [False, True])
def test_weights_that_are_recomputed_are_those_of_the_next_call(name: str, grad: bool) -> None:
    net, other = (lived(reparametrized(REPARAMETRIZATIONS[name])) for _ in range(2))
    x = torch.randn(2, 3, 10, 10).double()
    with torch.set_grad_enabled(grad):
        net(x)
    net.load_state_dict(other.state_dict())  # attributes are stale until the next call
    plain = export(net)
    expected = other(x).detach()
    torch.testing.assert_close(plain(x), expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))
    torch.testing.assert_close(net(x).detach(), expected)
    assert [*net.state_dict()] == [*other.state_dict()]
    if "user" not in name:  # whose hook may do anything on the plain layers, which stay as they are
        assert not any(m._forward_pre_hooks for m in plain.modules())
        assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.children())
        assert_exports(plain, x)


def test_weights_that_are_not_finite_stay_so() -> None:
    net = nn.Sequential(LiftingConv2d(3, 4, 3, group=C4), GroupConv2d(4, 4, 3, group=C4, kind="gc"))
    net[0].weight.data[0, 0, 0, 0, 0] = torch.inf
    net[1].pointwise_weight.data[0, 0, 0, 0, 0] = torch.nan
    assert not export(net)(torch.randn(1, 3, 6, 6)).isfinite().all()


class Scaled(GroupConv2d):
    def forward(self, *args: Any, **options: Any) -> Tensor:
        return 2 * super().forward(*args, **options)


def with_hook(module: nn.Module, hook: Any = lambda module, args, y: 2 * y) -> nn.Module:
    module.register_forward_hook(hook)
    return module


def with_patch(layer: Any) -> nn.Module:
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)
    return layer


class Sum(GroupPool):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(2)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Scaled(4, 4, 3, group=C4), r"module '1' \(Scaled\) computes something else"),
        (with_hook(GroupConv2d(4, 4, 3, group=C4)), r"module '1' \(GroupConv2d\) computes something else"),
        (with_patch(GroupConv2d(4, 4, 3, group=C4)), r"module '1' \(GroupConv2d\) computes something else"),
        (Sum(), r"module '1' \(Sum\) computes something else"),
        (with_hook(GroupPool()), r"module '1' \(GroupPool\) computes something else"),
        (with_hook(PerElement(nn.ReLU())), r"module '1' \(PerElement\) has hooks"),
        (with_hook(GroupConv2d(4, 4, 3, group=C4), lambda *_: 1 / 0), r"module '1' \(GroupConv2d\) fails on an input"),
    ],
)
def test_what_an_exported_layer_would_not_do_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        export(nn.Sequential(LiftingConv2d(3, 4, 3, group=C4), module))


def test_hooks_that_change_nothing_in_layers_and_anything_elsewhere() -> None:
    seen: list[Any] = []
    net = nn.Sequential(
        with_hook(LiftingConv2d(3, 4, 3, group=C4), lambda module, args, y: seen.append(y.shape)),
        PerElement(with_hook(nn.BatchNorm2d(4), lambda module, args, y: y * y.shape[1])),
        with_hook(nn.ReLU(), lambda module, args, y: y + torch.arange(y.shape[2], dtype=y.dtype)[:, None, None]),
        GroupPool(),
        nn.Conv2d(4, 4, 3),
        with_hook(nn.BatchNorm2d(4)),
        with_hook(nn.Sequential(with_hook(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4))),
    ).double()
    x = torch.randn(2, 3, 8, 8).double()
    lived(net, x)
    net.register_forward_hook(lambda module, args, y: y - 1)
    plain, expected = export(net), net(x)
    torch.testing.assert_close(plain(x), expected)
    assert seen


@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
def test_a_program_of_torch_export_takes_any_height_and_width(kind: str) -> None:
    net = nn.Sequential(
        LiftingConv2d(3, 32, 3, padding=1, group=D4), PerElement(nn.BatchNorm2d(32)), nn.ReLU(),
        GroupConv2d(32, 32, 3, padding=1, group=D4, kind=kind), GroupConv2d(32, 8, 1, group=D4), GroupPool(),
    ).eval()  # fmt: skip
    shapes = ({0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")},)
    program = torch.export.export(net, (torch.randn(2, 3, 5, 6),), dynamic_shapes=shapes).module()
    for size in ((1, 3, 5, 6), (2, 3, 4, 9), (3, 3, 24, 32)):
        x = torch.randn(size)
        torch.testing.assert_close(program(x), net(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 3, 5, 6), (3, 3, 24, 32)])
def test_an_exported_network_takes_any_height_and_width(size: tuple[int, ...]) -> None:
    net = nn.Sequential(LiftingConv2d(3, 4, 3, padding=1, group=D4), GroupConv2d(4, 4, 3, group=D4, kind="gc")).eval()
    shapes = ({0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=4)},)
    shapes[0][3] = torch.export.Dim("width", min=4)
    program = torch.export.export(export(net), (torch.randn(2, 3, 8, 9),), dynamic_shapes=shapes).module()
    x = torch.randn(size)
    torch.testing.assert_close(program(x), net(x), rtol=1e-4, atol=1e-4)


def test_an_exported_network_can_be_exported_again() -> None:
    net = nn.Sequential(LiftingConv2d(3, 4, 3, group=C4), GroupConv2d(4, 4, 3, group=C4, kind="gc"), GroupPool())
    once, x = export(net), torch.randn(2, 3, 7, 7)
    again = assert_exports(once, x, 1e-7)
    assert once.state_dict().keys() == again.state_dict().keys()


def test_the_network_itself_is_named_model() -> None:
    with pytest.raises(ArgumentError, match=r"^model \(Branching\) cannot be traced by torch\.fx"):
        export(Branching())


def test_anything_but_a_module_is_refused() -> None:
    with pytest.raises(ArgumentError, match="model is a function"):
        export(lambda x: x)  # type: ignore[arg-type]


NOTHING_OF_OURS = """
import sys, torch
sys.modules["sepgroupy"] = None
x, expected = torch.load("example.pt")
for load in (
    lambda: torch.load("module.pt", weights_only=False),
    lambda: torch.export.load("program.pt2").module(),
    lambda: torch.jit.load("script.pt"),
):
    torch.testing.assert_close(load()(x), expected, atol=1e-5, rtol=1e-5)
print("fine")
"""


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")
def test_files_of_an_exported_network_need_torch_alone(tmp_path: Path) -> None:
    model = lived(build_model("gc-p4m-resnet44", depth=8, widths=(2, 3, 4)), torch.randn(4, 3, 32, 32))
    x = torch.randn(3, 3, 32, 32)
    plain = export(model)
    torch.save((x, model(x).detach()), tmp_path / "example.pt")
    torch.save(plain, tmp_path / "module.pt")
    torch.jit.trace(plain, x[:2]).save(tmp_path / "script.pt")
    save(model, tmp_path / "program.pt2", "torch", (3, 32, 32))
    command = [sys.executable, "-c", NOTHING_OF_OURS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "fine\n", done.stderr


@pytest.mark.parametrize("name", ["gc-p4cnn-small", "gc-p4m-resnet44", "p4m-unet"])
def test_an_onnx_file_computes_the_same_for_any_batch(name: str, tmp_path: Path) -> None:
    model, x = small(name)
    lived(model, x)
    save(model, tmp_path / "net.onnx", "onnx", x.shape[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    for batch in (1, 3):
        images = torch.randn(batch, *x.shape[1:])
        np.testing.assert_allclose(run_onnx(tmp_path / "net.onnx", images), model(images).detach(), 1e-3, 1e-4)


def test_onnx_of_the_network_itself(tmp_path: Path) -> None:
    model, x = small("gc-p4cnn-small")
    lived(model, x)
    batch = ({0: torch.export.Dim("batch")},)
    options: dict[str, Any] = {"dynamo": True, "verbose": False, "input_names": ["image"], "dynamic_shapes": batch}
    torch.onnx.export(model, (x,), tmp_path / "net.onnx", **options)
    for images in (x, x[:1]):
        np.testing.assert_allclose(run_onnx(tmp_path / "net.onnx", images), model(images).detach(), 1e-3, 1e-4)


def test_a_step_that_onnx_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"ONNX does not support: .*linalg_svd"):
        save(Calling(lambda x: torch.linalg.svdvals(x)), tmp_path / "net.onnx", "onnx", (3, 3))
    assert not [*tmp_path.iterdir()]


def run_onnx(path: Path, x: Tensor) -> Any:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": x.numpy()})[0]


def test_a_safetensors_file_has_the_parameters_and_the_metadata(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file

    model = build_model("gc-p4cnn-small")
    save(model, tmp_path / "net.safetensors", "safetensors", (), {"model": "gc-p4cnn-small"})
    other = build_model("gc-p4cnn-small")
    other.load_state_dict(load_file(tmp_path / "net.safetensors"))
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        assert file.metadata()["model"] == "gc-p4cnn-small"
    save(export(model), tmp_path / "exported.safetensors", "safetensors", ())
    plain, x = export(build_model("gc-p4cnn-small")), torch.randn(2, 1, 28, 28)
    plain.load_state_dict(load_file(tmp_path / "exported.safetensors"))
    torch.testing.assert_close(plain(x), model.eval()(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("file_format", "suffix"), FORMATS.items())
def test_others_may_read_a_file_as_any_new_file(file_format: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    save(nn.Sequential(nn.Linear(3, 2)), tmp_path / f"net{suffix}", file_format, (3,))
    assert (tmp_path / f"net{suffix}").stat().st_mode == (tmp_path / "any").stat().st_mode


@pytest.mark.parametrize(("file_format", "suffix"), FORMATS.items())
def test_a_file_is_never_replaced_nor_left_in_pieces(file_format: str, suffix: str, tmp_path: Path) -> None:
    path, model = tmp_path / f"net{suffix}", build_model("p4cnn")
    with pytest.raises(ArgumentError, match="must end in"):
        save(model, path.with_suffix(".bin"), file_format, (1, 28, 28))
    if file_format != "safetensors":
        with pytest.raises(ArgumentError, match=r"model does not take an input of shape \(=\(1, 3, 3\)\)"):
            save(model, path, file_format, (1, 3, 3))
    assert not [*tmp_path.iterdir()]
    path.write_text("mine")
    with pytest.raises(ArgumentError, match="exists already"):
        save(model, path, file_format, (1, 28, 28))
    assert path.read_text() == "mine"


def test_a_file_created_during_the_export_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.safetensors"

    def write(model: nn.Module, temporary: str, metadata: Any) -> None:
        Path(temporary).write_text("new")
        path.write_text("mine")

    monkeypatch.setattr("safetensors.torch.save_model", write)
    with pytest.raises(ArgumentError, match="exists already"):
        save(nn.ReLU(), path, "safetensors", ())
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="must be one of onnx, torch, safetensors"):
        save(nn.ReLU(), tmp_path / "net.tflite", "tflite", ())


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    config = RunConfig.for_task("rotmnist", model="gc-p4cnn-small", width=3, folder=str(tmp_path / "run"))
    config.run_folder.mkdir()
    (config.run_folder / "config.json").write_text(config.to_json())
    state = {f"model.{name}": v for name, v in build_model(config.model, width=3).state_dict().items()}
    torch.save({"state_dict": state}, config.run_folder / "last.ckpt")
    return config.run_folder


def test_the_command(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*arguments: str) -> int:
        with pytest.raises(SystemExit) as stop:
            cli.main(["export", *arguments])
        return int(stop.value.code or 0)

    x, model = torch.randn(3, 1, 28, 28), load_model(run_folder)
    assert command(str(run_folder)) == 0
    path = run_folder / "gc-p4cnn-small.onnx"
    assert capsys.readouterr().out.strip() == str(path)
    np.testing.assert_allclose(run_onnx(path, x), model(x).detach(), 1e-3, 1e-4)
    assert command(str(run_folder), "--format", "torch") == 0
    program = torch.export.load(run_folder / "gc-p4cnn-small.pt2").module()
    torch.testing.assert_close(program(x), model(x), atol=1e-5, rtol=1e-5)
    assert command(str(run_folder), "--format", "torch") == 2
    assert "exists already" in capsys.readouterr().err
    assert command(str(run_folder), "--format", "safetensors", "--output", str(run_folder / "w.safetensors")) == 0
    assert command(str(run_folder), "--format", "tflite") == 2
    assert command(str(run_folder / "none")) == 1


class ReadsNorm(nn.Module):
    """Reads a norm's parameters beside calling it, and passes a layer an argument that it does not take."""

    def __init__(self, extra: bool) -> None:
        super().__init__()
        self.lift, self.norm = LiftingConv2d(3, 4, 3, group=C4), nn.BatchNorm2d(4)
        self.conv, self.extra = GroupConv2d(4, 4, 3, group=C4), extra

    def forward(self, x: Tensor) -> Tensor:
        y = split_group(self.norm(merge_group(self.lift(x))), 4) * self.norm.weight.view(-1, 1, 1, 1)
        return self.conv(y, self.norm) if self.extra else self.conv(y)


def test_a_norm_may_be_read_besides_being_called() -> None:
    assert_exports(lived(ReadsNorm(extra=False).double(), x := torch.randn(2, 3, 8, 8).double()), x)


def test_a_layer_called_with_more_than_one_argument_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"module 'conv' \(GroupConv2d\) is called with more than one argument"):
        export(ReadsNorm(extra=True))
