"""Conversion of plain networks: exact from picture to logits, lifted filters, matched costs, refusals by name."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import convnext, densenet, resnet18, vgg

from sepgroupy.conversion import FoldedConvolution, FoldedPool, convert
from sepgroupy.errors import ArgumentError
from sepgroupy.functional import transform, unfold
from sepgroupy.groups import as_group
from sepgroupy.nn import GroupConv2d, LiftingConv2d
from sepgroupy.testing import assert_equivariant, equivariance_error


class Block(nn.Module):
    """A residual block as people write it: sums, functional activations, an empty or projecting shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return F.relu(y)


class Excite(nn.Module):
    """Squeeze and excitation with linear layers, in the middle of a network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, channels // 2), nn.Linear(channels // 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))
        return x * scale[:, :, None, None]


class ResidualNet(nn.Module):
    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, 2, 2)
        self.layer1, self.excite = Block(8, 8, 1, groups), Excite(8)
        self.layer2 = Block(8, 16, 2, groups)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 3, 2, 1)
        x = self.layer2(self.excite(self.layer1(x)))
        x = F.avg_pool2d(x, x.shape[-1])
        return self.fc(x.view(x.size(0), -1))


def small_vgg() -> nn.Module:
    with torch.device("meta"):  # its classifier of 10⁸ parameters
        net = vgg.VGG(nn.Sequential(), init_weights=False)
    net.features = vgg.make_layers([6, "M", 8, "M", 10], batch_norm=True)  # type: ignore[list-item]
    net.classifier = nn.Sequential(
        nn.Linear(10 * 7 * 7, 12), nn.ReLU(), nn.Dropout(0.0), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 5)
    )
    return net


def small_densenet() -> nn.Module:
    return densenet.DenseNet(4, (2, 2), 8, bn_size=2, num_classes=5)


def small_convnext(first: int = 6, second: int = 10) -> nn.Module:
    settings = [convnext.CNBlockConfig(first, second, 1), convnext.CNBlockConfig(second, None, 1)]
    return convnext.ConvNeXt(settings, layer_scale=0.5, num_classes=5)


def squeezing_net() -> nn.Module:
    """Build a classifier without a linear layer at the end."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2),
        nn.PReLU(6),
        nn.GroupNorm(2, 6),
        nn.Conv2d(6, 5, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def masking_net() -> nn.Module:
    """Build a network from picture to picture, down and up."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 4, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"),
        nn.SiLU(), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 2, 3, padding="same"),
    )  # fmt: skip


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "residual": (ResidualNet, 17),
    "groups": (lambda: ResidualNet(groups=2), 17),
    "vgg": (small_vgg, 12),
    "densenet": (small_densenet, 13),
    "convnext": (small_convnext, 16),
    "squeezing": (squeezing_net, 9),
    "masking": (masking_net, 8),
}
every_net = pytest.mark.parametrize("name", NETS)


def build(name: str) -> tuple[nn.Module, int]:
    """Build a plain network in evaluation mode, its norms and biases as if trained, and a size that is exact."""
    make, size = NETS[name]
    torch.manual_seed(1)
    net = make().eval()
    for key, value in [*net.named_parameters(), *net.named_buffers()]:
        if key.endswith("running_var"):
            nn.init.uniform_(value, 0.5, 1.5)
        elif value.ndim == 1:
            nn.init.normal_(value, float(key.endswith("weight")), 0.3)
    return net, size


def pictures(size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_a_resnet18_is_exact_at_a_size_that_is_proposed() -> None:
    plain = resnet18(num_classes=5)
    with pytest.raises(ArgumentError, match=r"in_size \(=32\): conv1 .*stride 2.*input size 33") as refused:
        convert(plain, "p4", "gc", in_size=32)
    size = int(re.findall(r"input size \d+ or (\d+)", str(refused.value))[0])
    net = convert(plain, "p4", "gc", in_size=size)
    assert type(net) is type(plain)
    layers = [m for m in net.modules() if isinstance(m, GroupConv2d)]
    assert sum(isinstance(m, LiftingConv2d) for m in net.modules()) == 1
    assert len(layers) == 16 + 3
    assert {(m.kind, m.kernel_size) for m in layers} == {("gc", (3, 3)), ("dense", (1, 1))}
    net.double().eval()
    assert_equivariant(net, "p4", pictures(size))
    assert equivariance_error(net, "p4", pictures(size + 1)).max() > 1e-6


@every_net
@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
def test_the_converted_network_is_equivariant(name: str, kind: str) -> None:
    plain, size = build(name)
    for group in ("p4", "p4m"):
        net = convert(plain, group, kind, in_size=size).double()
        x = pictures(size)
        assert net(x).shape == plain.double()(x).shape
        assert_equivariant(net, group, x)
        assert_equivariant(_without_chance(net).train(), group, x)  # with the statistics of the batch
    assert equivariance_error(plain, "p4", x).max() > 1e-3


def _without_chance(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, convnext.StochasticDepth):
            module.p = 0.0
    return net


@every_net
@pytest.mark.parametrize("pool", ["max", "mean"])
def test_matching_parameters(name: str, pool: str) -> None:
    plain, size = build(name)
    net = convert(plain, "p4", "gc", in_size=size, match="params", pool=pool)
    assert parameters(net) == pytest.approx(parameters(plain), rel=0.1)  # these networks are narrow
    assert_equivariant(net.double(), "p4", pictures(size))


def test_the_same_width_costs_more() -> None:
    plain, size = build("densenet")
    assert parameters(convert(plain, "p4", "dense", in_size=size)) > 2 * parameters(plain)


@pytest.mark.parametrize(("make", "kind"), [(ResidualNet, "dense"), (lambda: small_convnext(24, 40), "gc")])
def test_matching_multiplications(make: Callable[[], nn.Module], kind: str) -> None:
    plain = make().eval()
    size = 17 if kind == "dense" else 16
    costs = [
        multiplications(net, size)
        for net in (plain, *(convert(plain, "p4", kind, in_size=size, match=match) for match in ("macs", "width")))
    ]
    assert costs[1] == pytest.approx(costs[0], rel=0.1)
    assert costs[2] > 1.5 * costs[0]


def multiplications(net: nn.Module, size: int) -> float:
    """Count those of PyTorch's operations for one of so many pictures that what filters cost does not matter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(net).to("meta")(pictures(size, 64).float().to("meta"))
    return counter.get_total_flops() / 2 / 64


def watch(net: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what a network and each of its modules answer."""
    maps: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda module, args, y, name=name: maps.update({name: y.clone()}))
        for name, module in net.named_modules()
    ]
    with torch.no_grad():
        y = net(x)
    for hook in hooks:
        hook.remove()
    return y, maps


@every_net
@pytest.mark.parametrize("kind", ["dense", "g"])
def test_with_lifted_filters_the_identity_component_is_the_plain_network(name: str, kind: str) -> None:
    plain, size = build(name)
    net = convert(plain, "p4m", kind, in_size=size, weights="lift").double()
    x = pictures(size)
    _, expected = watch(plain.double(), x)
    _, found = watch(net if type(net) is type(plain) and not isinstance(net, nn.Sequential) else net[0], x)
    compared = {key for key, y in found.items() if key in expected and len(y) == 8 * len(x)}
    layers = {key for key, m in plain.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.LayerNorm)}
    assert layers <= compared
    for key in compared:
        torch.testing.assert_close(unfold(found[key], 8)[:, :, 0], expected[key], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in NETS if name != "vgg"])  # which has three linear layers
def test_with_lifted_filters_and_the_mean_it_averages_over_all_orientations(name: str) -> None:
    plain, size = build(name)
    group = as_group("p4m")
    net = convert(plain, group, "g", in_size=size, weights="lift", pool="mean").double()
    plain.double()
    x, answers = pictures(size), []
    for g in range(group.order):
        y = plain(transform(x, group, int(group.inverses[g]), group_axis=False))
        answers.append(transform(y, group, g, group_axis=False) if y.ndim == 4 else y)
    torch.testing.assert_close(net(x), torch.stack(answers).mean(0), rtol=1e-9, atol=1e-9)


def test_kind_gc_holds_plain_filters_of_depthwise_and_1x1_convolutions_alone() -> None:
    plain = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    ).double()  # fmt: skip
    net = convert(plain, "p4", "gc", in_size=8, weights="lift", pool="mean")
    x = pictures(8)
    mean = torch.stack([plain(torch.rot90(x, turns, (-2, -1))) for turns in range(4)]).mean(0)
    torch.testing.assert_close(net(x), mean)
    with pytest.raises(ArgumentError, match=r"layer1\.conv1 .* kind 'gc' has one kernel .* use kind 'g' or 'dense'"):
        convert(ResidualNet(), "p4", "gc", in_size=17, weights="lift")


def test_fresh_filters_do_not_depend_on_the_plain_ones() -> None:
    plain, size = build("residual")
    torch.manual_seed(3)
    net = convert(plain, "p4", in_size=size)
    for parameter in plain.parameters():
        nn.init.zeros_(parameter)
    torch.manual_seed(3)
    other = convert(plain, "p4", in_size=size)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


@every_net
def test_gradients_reach_every_parameter(name: str) -> None:
    plain, size = build(name)
    net = convert(plain.train(), "p4", in_size=size)
    assert net.training
    net(pictures(size, 4).float()).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in _without_chance(net).parameters())


@every_net
def test_what_is_returned_stands_alone(name: str) -> None:
    plain, size = build(name)
    before = copy.deepcopy(plain.state_dict())
    net, x = convert(plain, "p4", in_size=size), pictures(size).float()
    assert not any("Pending" in type(module).__name__ for module in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())
    assert not net.training
    assert not {id(p) for p in net.parameters()} & {id(p) for p in plain.parameters()}
    other = convert(plain, "p4", in_size=size)
    other.load_state_dict(net.state_dict(), strict=True)
    for twin in (other, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x), net(x))


def test_dtype_and_a_layer_that_occurs_twice_are_kept() -> None:
    twice = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), twice, twice, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    net = convert(plain.double(), "p4", in_size=8)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert net[1] is net[2]
    assert isinstance(net[1][0], FoldedConvolution)


def test_two_convolutions_may_read_the_picture() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine, self.coarse = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(1, 2, 5, padding=2)
            self.last = nn.Conv2d(5, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.cat([self.fine(x), self.coarse(x)], 1).relu())

    net = convert(Net(), "p4m", in_size=6)
    assert isinstance(net[0].coarse.convolution, LiftingConv2d)
    assert net(torch.zeros(1, 1, 6, 6)).shape == (1, 2, 6, 6)


def test_where_the_group_is_pooled() -> None:
    residual = convert(ResidualNet(), "p4", in_size=17, pool="mean")
    assert repr(residual.fc[0]) == "FoldedPool(4, mean)"  # type: ignore[index]
    mlp = convert(small_vgg(), "p4", in_size=12)
    first, *_, hidden, _, last = mlp.classifier.children()  # type: ignore[union-attr]
    assert first.convolution.kernel_size == (7, 7)  # type: ignore[union-attr]
    assert isinstance(hidden[0], FoldedPool)  # type: ignore[index]
    assert isinstance(last, nn.Linear)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.mix = nn.Conv2d(3, 4, 4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.patch(x).flatten(2).transpose(1, 2)).mean(1)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.aux = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.aux(self.conv(x)) if self.training else self.conv(x)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias)


class Corner(nn.Module):
    """A step in code, between modules, that prefers one side."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x)[..., 1:, 1:])


def after_a_convolution(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), *layers)


REFUSED: list[tuple[str, nn.Module]] = [
    (r"1 \(ConvTranspose2d\) cannot be put on a group.*Upsample", after_a_convolution(nn.ConvTranspose2d(4, 2, 2, 2))),
    (r"0 \(Standardised\) cannot be put on a group", nn.Sequential(Standardised(3, 4, 3))),
    (r"1 \(MultiheadAttention\)", after_a_convolution(nn.MultiheadAttention(4, 1))),
    (r"mix \(Linear.* reads 3 axes", Tokens()),
    (r"never calls aux in evaluation mode", Unused()),
    (r"has no Conv2d", nn.Linear(3, 4)),
    (r"begins with 0; a Conv2d must be the first", nn.Sequential(nn.Linear(17, 17), nn.Conv2d(3, 4, 3))),
    (
        r"1 \(Conv2d.*\(1, 7\).*cannot be put on .*p4.*both axes",
        after_a_convolution(nn.Conv2d(4, 4, (1, 7))),
    ),
    (r"in_size \(=17\): 1 \(PixelShuffle\) breaks it", after_a_convolution(nn.PixelShuffle(2), nn.Conv2d(1, 2, 3))),
    (
        r"in_size \(=17\): 1 \(MaxPool2d\) breaks it.*input size 16 or 18",
        after_a_convolution(nn.MaxPool2d(2)),
    ),
    (
        r"in_size \(=17\): 1 \(ZeroPad2d\) breaks it",
        after_a_convolution(nn.ZeroPad2d((0, 1, 0, 1))),
    ),
    (r"breaks it", Corner()),
    (r"fails on pictures of shape \(2, 3, 17, 17\)", after_a_convolution(nn.Flatten(), nn.Linear(5, 2))),
    (r"fails on pictures of shape \(2, 3, 17, 17\)", nn.Sequential(nn.Conv2d(3, 4, 18))),
]


@pytest.mark.parametrize(("message", "plain"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_treated_is_named(message: str, plain: nn.Module) -> None:
    with pytest.raises(ArgumentError, match=message):
        convert(plain, "p4", in_size=17)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "c"}, r"kind \(='c'\) must be one of dense, g, gc"),
        ({"match": "flops"}, r"match \(='flops'\) must be one of width, params, macs"),
        ({"weights": "copy"}, r"weights \(='copy'\) must be one of fresh, lift"),
        ({"pool": "sum"}, r"pool \(='sum'\) must be one of max, mean"),
        ({"in_size": 0}, r"in_size \(=0\) must be a positive integer"),
        ({"group": "p6"}, "group 'p6'"),
        ({"weights": "lift", "match": "params", "kind": "g"}, r"match \(='params'\) must be 'width'"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        convert(ResidualNet(), **({"group": "p4", "in_size": 17} | options))
