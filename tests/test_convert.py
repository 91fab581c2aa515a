"""Conversion of plain networks: exact from image to output, lifted filters, matched costs, refusals by name."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import convnext, densenet, resnet18, segmentation, vgg

from sepgroupy.conversion import MergedGroupConv, MergedGroupPool, convert
from sepgroupy.conversion._replace_layers import LayerReplacer
from sepgroupy.errors import ArgumentError
from sepgroupy.functional import split_group, transform
from sepgroupy.groups import as_group
from sepgroupy.nn import DEFAULT_INIT, INITS, GroupConv2d, GroupConvolution, LiftingConv2d
from sepgroupy.testing import assert_equivariant, equivariance_error


class Block(nn.Module):
    """A residual block as people write it: sums, functional activations, an identity or a projection beside."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.projection = nn.Sequential()
        if stride > 1:
            self.projection = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += self.projection(x)
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
    """Build a network from image to image, down and up."""
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
    """Build a plain network in inference mode, its norms and biases as if trained, and a size that is exact."""
    make, size = NETS[name]
    torch.manual_seed(1)
    net = make().eval()
    for key, value in [*net.named_parameters(), *net.named_buffers()]:
        if key.endswith("running_var"):
            nn.init.uniform_(value, 0.5, 1.5)
        elif value.ndim == 1:
            nn.init.normal_(value, float(key.endswith("weight")), 0.3)
    return net, size


def images(size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_a_resnet18_is_exact_at_a_size_that_is_proposed() -> None:
    plain = resnet18(num_classes=5)
    with pytest.raises(ArgumentError, match=r"in_size \(=32\): conv1 .*stride 2.*input size 33") as refused:
        convert(plain, "p4", "gc", in_size=32)
    size = int(re.findall(r"input size (\d+)", str(refused.value))[0])
    net = convert(plain, "p4", "gc", in_size=size)
    assert type(net) is type(plain)
    layers = [m for m in net.modules() if isinstance(m, GroupConv2d)]
    assert sum(isinstance(m, LiftingConv2d) for m in net.modules()) == 1
    assert len(layers) == 16 + 3
    assert {(m.kind, m.spec.kernel_size) for m in layers} == {("gc", (3, 3)), ("dense", (1, 1))}
    net.double().eval()
    assert_equivariant(net, "p4", images(size))
    assert equivariance_error(net, "p4", images(size + 1)).max() > 1e-6


@every_net
@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
def test_the_converted_network_is_equivariant(name: str, kind: str) -> None:
    plain, size = build(name)
    for group in ("p4", "p4m"):
        net = convert(plain, group, kind, in_size=size).double()
        x = images(size)
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
    assert_equivariant(net.double(), "p4", images(size))


class RegNet(nn.Module):
    """Stages of bottlenecks whose middle convolution has groups, as many as suit the width of the stage."""

    def __init__(self, *stages: tuple[int, int], joined: int = 0) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, stages[0][0], 3, padding=1), nn.BatchNorm2d(stages[0][0]), nn.ReLU())
        blocks: list[nn.Module] = []
        channels = stages[0][0]
        for width, groups in stages:
            blocks += [
                nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, groups=groups), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, width, 1), nn.GroupNorm(groups, width),
            ]  # fmt: skip
            channels = width
        self.body = nn.Sequential(*blocks)
        self.joined = None
        if joined:  # reads the stem and the body
            channels += stages[0][0]
            self.joined = nn.Conv2d(channels, channels, 1, groups=joined)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.body(x)
        if self.joined is not None:
            y = self.joined(torch.cat([x, y], 1))
        return self.fc(y.mean((2, 3)))


def spy_on_devices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note on which device networks are built."""
    devices: list[str] = []
    replace = LayerReplacer.replace

    def noted(self: LayerReplacer, net: nn.Module, width: Any = None) -> nn.Module:
        devices.append(next(net.parameters()).device.type)
        return replace(self, net, width)

    monkeypatch.setattr(LayerReplacer, "replace", noted)
    return devices


@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
@pytest.mark.parametrize("match", ["params", "macs"])
def test_widths_suit_the_groups_of_their_own_layers(kind: str, match: str) -> None:
    torch.manual_seed(1)
    plain = RegNet((24, 6), (52, 13), (104, 26), (220, 55))
    net: Any = convert(plain, "p4", kind, in_size=5, match=match)
    if match == "params":
        assert parameters(net) == pytest.approx(parameters(plain), rel=0.1)
    else:
        assert multiplications(net, 5) == pytest.approx(multiplications(plain, 5), rel=0.1)
    groups = [m.spec.groups for m in net.modules() if isinstance(m, GroupConv2d)]
    assert [n for n in groups if n > 1] == [6, 13, 26, 55]
    assert_equivariant(net.double().eval(), "p4", images(5))


def test_widths_that_are_concatenated_suit_the_groups_of_the_layer_that_reads_them() -> None:
    torch.manual_seed(1)
    plain = RegNet((24, 4), (40, 5), joined=8)  # the layers of neither width need a multiple of 8
    net: Any = convert(plain, "p4", in_size=5, match="params")
    assert parameters(net) == pytest.approx(parameters(plain), rel=0.1)
    assert net.joined.convolution.in_channels % 8 == 0
    assert_equivariant(net.double().eval(), "p4", images(5))


@pytest.mark.parametrize(
    ("plain", "reason"),
    [
        (
            RegNet((6, 3), (26, 13), (110, 55)),
            r"blocks \(body\.19 into 55, body\.23 into 55, body\.11 into 13 and 3 more",
        ),
        (RegNet((14, 7), (22, 11), (26, 13), joined=8), "all widths are multiples of 8"),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 3)), "so narrow that one channel"),
    ],
)
def test_a_cost_that_cannot_be_matched_is_refused_before_anything_is_built(
    plain: nn.Module, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = spy_on_devices(monkeypatch)
    count = f"{parameters(plain):,}"
    with pytest.raises(
        ArgumentError, match=rf"match \(='params'\) cannot be met within 10%.*the plain one {count}"
    ) as no:
        convert(plain, "p4m", "dense", in_size=5, match="params")
    assert re.search(reason, str(no.value))
    assert set(devices) == {"meta"}
    assert "match='width'" in str(no.value)
    convert(plain, "p4m", "dense", in_size=5)


def test_a_group_norm_with_one_channel_in_each_group_stays_so() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 24, 3), nn.GroupNorm(24, 24), nn.Conv2d(24, 24, 3), nn.GroupNorm(1, 24))
    net: Any = convert(plain, "p4", in_size=8, match="params")
    assert net[0][1].num_groups == net[0][1].num_channels == net[0][0].convolution.out_channels != 24
    assert net[0][3].num_groups == 1


def test_a_network_whose_own_code_fixes_its_widths_is_told_so() -> None:
    class Shuffle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(x.view(len(x), 4, 3, *x.shape[2:]).transpose(1, 2).flatten(1, 2))

    with pytest.raises(ArgumentError, match=r"match \(='params'\) changes the widths.*Use match='width'"):
        convert(Shuffle(), "p4", in_size=8, match="params")


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
    """Count those of PyTorch's operations for one of 64 images, beside which the cost of filters does not matter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(net).to("meta")(images(size, 64).float().to("meta"))
    return counter.get_total_flops() / 2 / 64


def watch(net: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the outputs of a network and of each of its modules."""
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
    x = images(size)
    _, expected = watch(plain.double(), x)
    _, found = watch(net if type(net) is type(plain) and not isinstance(net, nn.Sequential) else net[0], x)
    compared = {key for key, y in found.items() if key in expected and len(y) == 8 * len(x)}
    layers = {key for key, m in plain.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.LayerNorm)}
    assert layers <= compared
    for key in compared:
        torch.testing.assert_close(split_group(found[key], 8)[:, :, 0], expected[key], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in NETS if name != "vgg"])  # which has three linear layers
def test_with_lifted_filters_and_the_mean_it_averages_over_all_orientations(name: str) -> None:
    plain, size = build(name)
    group = as_group("p4m")
    net = convert(plain, group, "g", in_size=size, weights="lift", pool="mean").double()
    plain.double()
    x, answers = images(size), []
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
    x = images(8)
    mean = torch.stack([plain(torch.rot90(x, r, (-2, -1))) for r in range(4)]).mean(0)
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


def rectangular_net() -> nn.Module:
    """Build a network with a rectangular kernel, with blocks of channels and with a 1×1 convolution."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, (3, 5), padding=(1, 2), groups=2),
        nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


def group_layers(net: nn.Module) -> list[GroupConvolution]:
    return [module for module in net.modules() if isinstance(module, GroupConvolution)]


def largest_initial_value(layer: GroupConvolution, name: str, init: str) -> float:
    """Return the bound of a parameter's draws as the rule states it."""
    channels, elements = layer.in_channels // layer.groups, math.prod(layer.kernel_size)
    if init == "published":
        return 1 / math.sqrt(channels * elements)
    inputs = channels * (1 if layer.kind == "lifting" else layer.group.order)
    variances = {
        "weight": 2 / (inputs * elements), "depthwise_weight": 2 / elements, "pointwise_weight": 1 / inputs, "bias": 0,
    }  # fmt: skip
    return math.sqrt(3 * variances[name])


@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
@pytest.mark.parametrize("init", INITS)
def test_fresh_group_layers_are_drawn_by_the_rule_that_init_names(kind: str, init: str) -> None:
    torch.manual_seed(7)
    layers = group_layers(convert(rectangular_net(), "p2mm", kind, in_size=9, init=init))
    assert [layer.kind for layer in layers] == ["lifting", kind, "dense"]
    for layer in layers:
        assert layer.bias is not None
        assert layer.bias.any() == (init == "published")
        for name, parameter in layer.named_parameters():
            bound, largest = largest_initial_value(layer, name, init), parameter.abs().max()
            assert largest <= bound, (layer, name)
            assert largest >= (0.5 if name == "bias" else 0.9) * bound, (layer, name)  # a bias has few values


@every_net
def test_init_reaches_every_group_layer(name: str) -> None:
    plain, size = build(name)
    layers = group_layers(convert(plain, "p4", "g", in_size=size, match="params", init="published"))
    assert len(layers) > 1
    for layer in layers:
        for key, parameter in layer.named_parameters():
            assert 0 < parameter.abs().max() <= largest_initial_value(layer, key, "published"), (layer, key)


def test_init_is_by_default_variance_and_concerns_group_layers_alone() -> None:
    def drawn(**options: str) -> dict[str, Tensor]:
        torch.manual_seed(7)
        return convert(rectangular_net(), "p2mm", "g", in_size=9, **options).state_dict()  # type: ignore[arg-type]

    default, variance, published = drawn(), drawn(init="variance"), drawn(init="published")
    assert DEFAULT_INIT == "variance"
    assert all(torch.equal(default[key], variance[key]) for key in default)
    for key, value in published.items():
        assert torch.equal(value, default[key]) != (".convolution." in key), key


def test_init_has_no_effect_on_lifted_filters() -> None:
    plain = rectangular_net()
    first, second = (convert(plain, "p2mm", "g", in_size=9, weights="lift", init=init).state_dict() for init in INITS)
    assert all(torch.equal(first[key], second[key]) for key in first)


@every_net
def test_gradients_reach_every_parameter(name: str) -> None:
    plain, size = build(name)
    net = convert(plain.train(), "p4", in_size=size)
    assert net.training
    net(images(size, 4).float()).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in _without_chance(net).parameters())


@every_net
def test_what_is_returned_stands_alone(name: str) -> None:
    plain, size = build(name)
    before = copy.deepcopy(plain.state_dict())
    net, x = convert(plain, "p4", in_size=size), images(size).float()
    assert not any("Pending" in type(module).__name__ for module in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())
    assert not net.training
    assert not {id(p) for p in net.parameters()} & {id(p) for p in plain.parameters()}
    other = convert(plain, "p4", in_size=size)
    other.load_state_dict(net.state_dict(), strict=True)
    for twin in (other, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x), net(x))


def test_dtype_and_a_layer_that_occurs_twice_are_preserved() -> None:
    twice = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), twice, twice, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    net = convert(plain.double(), "p4", in_size=8)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert net[1] is net[2]
    assert isinstance(net[1][0], MergedGroupConv)


def test_two_convolutions_may_read_the_image() -> None:
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
    assert repr(residual.fc[0]) == "MergedGroupPool(4, mean)"  # type: ignore[index]
    mlp = convert(small_vgg(), "p4", in_size=12)
    first, *_, hidden, _, last = mlp.classifier.children()  # type: ignore[union-attr]
    assert first.convolution.spec.kernel_size == (7, 7)  # type: ignore[union-attr]
    assert isinstance(hidden[0], MergedGroupPool)  # type: ignore[index]
    assert isinstance(last, nn.Linear)


class UNet(nn.Module):
    """A U-Net as segmentation_models_pytorch builds it: the stages of a ResNet, nearest upsampling, concatenation."""

    def __init__(
        self, even: bool = False, to_skip: bool = False, mode: str = "nearest", module: bool = False, classes: int = 2
    ) -> None:
        super().__init__()
        self.to_skip, self.mode, self.module = to_skip, mode, module
        self.conv1 = nn.Conv2d(3, 8, *((8, 2, 3) if even else (7, 2, 3)), bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.maxpool = nn.MaxPool2d(2) if even else nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2 = Block(8, 8, 1), Block(8, 16, 2)
        if even:
            self.layer2.conv1 = nn.Conv2d(8, 16, 4, 2, 1, bias=False)
            self.layer2.projection[0] = nn.Conv2d(8, 16, 2, 2)
        self.up2, self.up1, self.up0 = (
            nn.Conv2d(16 + 8, 8, 3, 1, 1),
            nn.Conv2d(8 + 8, 6, 3, 1, 1),
            nn.Conv2d(6, 6, 3, 1, 1),
        )
        self.upsample = nn.Upsample(scale_factor=2, mode=mode)
        self.head = nn.Conv2d(6, classes, 3, 1, 1)

    def forward(self, x: Tensor) -> Any:
        half = F.relu(self.bn1(self.conv1(x)))
        quarter = self.layer1(self.maxpool(half))
        eighth = self.layer2(quarter)
        y = F.relu(self.up2(torch.cat([self.up(eighth, quarter), quarter], 1)))
        y = F.relu(self.up1(torch.cat([self.up(y, half), half], 1)))
        return self.head(F.relu(self.up0(self.up(y, x))))

    def up(self, x: Tensor, like: Tensor) -> Tensor:
        if self.to_skip:
            return F.interpolate(x, size=like.shape[-2:], mode=self.mode)
        return self.upsample(x) if self.module else F.interpolate(x, scale_factor=2, mode=self.mode)


@pytest.mark.parametrize("module", [False, True])
@pytest.mark.parametrize("kind", ["dense", "gc"])
def test_a_decoder_with_skip_connections_converts_where_a_size_is_exact(kind: str, module: bool) -> None:
    torch.manual_seed(1)
    for plain, size in (
        (UNet(even=True, module=module), 16),
        (UNet(even=True, to_skip=True), 16),
        (UNet(to_skip=True, mode="bilinear"), 17),
    ):
        net = convert(plain, "p4m", kind, in_size=size).double().eval()
        x = images(size)
        assert net(x).shape == (2, 2, size, size)
        assert_equivariant(net, "p4m", x)


def test_a_decoder_whose_weights_are_lifted_averages_the_plain_one() -> None:
    torch.manual_seed(1)
    plain = UNet(even=True).eval()
    net = convert(plain, "p4", "dense", in_size=16, weights="lift", pool="mean").double()
    x = images(16)
    answers = [torch.rot90(plain.double()(torch.rot90(x, -r, (-2, -1))), r, (-2, -1)) for r in range(4)]
    torch.testing.assert_close(net(x), torch.stack(answers).mean(0), rtol=1e-9, atol=1e-9)


def change_layers(plain: nn.Module, message: str) -> None:
    """Do what a refusal suggests for each layer that it names."""
    changes = re.findall(r"(?:these layers, |; )([\w.]+): kernel_size=(\d+), padding=(\d+)", message)
    assert changes
    for name, kernel, padding in changes:
        parent, _, key = name.rpartition(".")
        old: Any = plain.get_submodule(name)
        if isinstance(old, nn.MaxPool2d):
            new: nn.Module = nn.MaxPool2d(int(kernel), old.stride, int(padding))
        else:
            options = {"stride": old.stride, "padding": int(padding), "bias": old.bias is not None}
            new = nn.Conv2d(old.in_channels, old.out_channels, int(kernel), **options)
        setattr(plain.get_submodule(parent), key, new)


@pytest.mark.parametrize("to_skip", [False, True])
def test_a_decoder_that_no_size_suits_is_told_so_and_which_layers_to_change(to_skip: bool) -> None:
    plain = UNet(to_skip=to_skip)
    with pytest.raises(ArgumentError, match="at no input size near 16 that the network takes") as refused:
        convert(plain, "p4", in_size=16)
    message = str(refused.value)
    assert "conv1" in message
    assert "maxpool" in message
    assert "layer2.conv1" in message
    assert "layer2.projection.0" in message
    assert ".convolution" not in message
    change_layers(plain, message)
    net = convert(plain, "p4", in_size=16).double().eval()
    assert_equivariant(net, "p4", images(16))


def test_a_nearest_resize_to_the_size_of_a_skip_connection_is_named() -> None:
    with pytest.raises(ArgumentError, match="at no input size near 17 that the network takes") as refused:
        convert(UNet(to_skip=True), "p4", in_size=17)
    message = str(refused.value)
    assert "interpolate before up2" in message
    assert "padding" not in message
    for layer in ("up2", "up1", "up0"):
        assert f"{layer} (input): mode='bilinear'" in message


def test_a_decoder_for_an_exact_size_is_told_it() -> None:
    with pytest.raises(ArgumentError, match="every grid is symmetric at input size 9 or 17"):
        convert(UNet(to_skip=True, mode="bilinear"), "p4", in_size=16)


class Segmenter(nn.Module):
    """A network with outputs as torchvision's models for segmentation have them."""

    def __init__(self, nest: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.nest = nest
        self.stem, self.deep = nn.Conv2d(3, 8, 3, 2), nn.Sequential(nn.Conv2d(8, 12, 3, 1, 1), nn.BatchNorm2d(12))
        self.classifier = nn.Sequential(nn.ReLU(), nn.Conv2d(12, 5, 1))
        self.aux_classifier = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 5, 1))

    def forward(self, x: Tensor) -> Any:
        low = F.relu(self.stem(x))
        out, aux = self.classifier(self.deep(low)), self.aux_classifier(low)
        size = x.shape[-2:]
        return self.nest(*(F.interpolate(y, size=size, mode="bilinear", align_corners=False) for y in (out, aux)))


@dataclass
class Answer:
    logits: Tensor
    aux: Tensor


NESTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dict": lambda out, aux: {"out": out, "aux": aux},
    "ordered dict": lambda out, aux: OrderedDict(out=out, aux=aux),
    "tuple": lambda out, aux: (out, aux),
    "dataclass": lambda out, aux: Answer(out, aux),
    "nested": lambda out, aux: {"all": [out, {"aux": aux}], "loss": None},
}


def shapes_in(value: Any) -> list[Any]:
    """List the shapes of all tensors in the output of a network, and the other values in it."""
    if isinstance(value, Tensor):
        return [value.shape]
    parts = vars(value) if isinstance(value, Answer) else value
    if isinstance(parts, Mapping):
        parts = parts.values()
    return [s for part in parts for s in shapes_in(part)] if isinstance(parts, Iterable) else [value]


@pytest.mark.parametrize("nest", NESTS.values(), ids=NESTS)
@pytest.mark.parametrize("match", ["width", "params"])
def test_every_output_is_pooled_and_has_its_channels(nest: Callable[[Tensor, Tensor], Any], match: str) -> None:
    torch.manual_seed(1)
    plain = Segmenter(nest)
    net = convert(plain, "p4", in_size=17, match=match).double().eval()
    x = images(17)
    assert_equivariant(net, "p4", x)
    assert shapes_in(net(x)) == shapes_in(plain.double().eval()(x))
    assert type(net(x)) is type(plain(x))


class TwoTasks(nn.Module):
    """Classes by two linear layers, and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mask = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
        self.first, self.second = nn.Linear(8, 3), nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.body(x))
        mean = x.mean((2, 3))
        return {"mask": self.mask(x), "first": self.first(mean), "second": self.second(mean)}


@pytest.mark.parametrize("match", ["width", "params"])
def test_outputs_of_several_kinds(match: str) -> None:
    net = convert(TwoTasks(), "p4m", "dense", in_size=8, match=match).double().eval()
    x = images(8)
    assert {key: tuple(y.shape) for key, y in net(x).items()} == {
        "mask": (2, 2, 6, 6),
        "first": (2, 3),
        "second": (2, 4),
    }
    assert_equivariant(net, "p4m", x)


def test_torchvision_models_for_segmentation() -> None:
    torch.manual_seed(1)
    plain = segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=3, aux_loss=True)
    net = convert(plain, "p4", in_size=33, match="params").eval()
    x = torch.randn(1, 3, 33, 33)
    assert {key: tuple(y.shape) for key, y in net(x).items()} == {"out": (1, 3, 33, 33), "aux": (1, 3, 33, 33)}
    assert parameters(net) == pytest.approx(parameters(plain), rel=0.1)


class CastingLinear(nn.Linear):
    """As timm's layer: the cast matters to TorchScript alone."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            bias = self.bias.to(dtype=x.dtype) if self.bias is not None else None
            return F.linear(x, self.weight.to(dtype=x.dtype), bias=bias)
        return F.linear(x, self.weight, self.bias)


class Explicit(nn.Conv2d):
    """Compute what its class does, by other means."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (self.padding[1], self.padding[1], self.padding[0], self.padding[0]))  # type: ignore[arg-type]
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Checked(nn.Conv2d):
    """Override another method."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert x.ndim == 4
        return super()._conv_forward(x, weight, bias)


class NormAct(nn.BatchNorm2d):
    """A norm with an activation, as timm's BatchNormAct2d."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class ChannelsFirst(nn.LayerNorm):
    """A layer norm of (B, C, Y, X), as timm's LayerNorm2d."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def of_subclasses() -> nn.Module:
    return nn.Sequential(
        Explicit(3, 16, 3, padding=1), NormAct(16), Checked(16, 16, 3, stride=2), ChannelsFirst(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), CastingLinear(16, 12), nn.ReLU(), CastingLinear(12, 5),
    )  # fmt: skip


@pytest.mark.parametrize("match", ["width", "params"])
def test_subclasses_that_compute_what_their_class_does_are_converted(match: str) -> None:
    torch.manual_seed(1)
    plain = of_subclasses().eval()
    net = convert(plain, "p4m", in_size=9, match=match).double()
    assert_equivariant(net, "p4m", images(9))
    assert sum(isinstance(m, GroupConv2d | LiftingConv2d) for m in net.modules()) == 2
    if match == "width":
        lifted: Any = convert(plain, "p4", "dense", in_size=9, weights="lift").double()
        _, maps = watch(lifted, images(9))
        _, expected = watch(plain.double(), images(9))
        torch.testing.assert_close(split_group(maps["4"], 4)[:, :, 0], expected["4"])


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, (self.weight - self.weight.mean()) / self.weight.std(), self.bias)


class OnlyInTraining(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return F.dropout(y, 0.5) if self.training else y


class Saturating(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-0.1, 0.1)


class SameAsTensorFlow(nn.Conv2d):
    """Pad by the size of the input, more on the right where the sum is odd."""

    def forward(self, x: Tensor) -> Tensor:
        axes = zip(x.shape[2:], self.stride, self.kernel_size, strict=True)
        total = [max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in axes]
        (top, left) = (total[0] // 2, total[1] // 2)
        x = F.pad(x, (left, total[1] - left, top, total[0] - top))
        return F.conv2d(x, self.weight, self.bias, self.stride)


class Adapted(nn.Linear):
    """A low-rank adapter that computes nothing yet."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.down, self.up = nn.Parameter(torch.randn(2, sizes[0])), nn.Parameter(torch.zeros(sizes[1], 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.down.T @ self.up.T


def patched() -> nn.Module:
    layer = nn.Conv2d(3, 4, 3)
    layer.forward = lambda x: 2 * nn.Conv2d.forward(layer, x)  # type: ignore[method-assign]
    return layer


def hooked() -> nn.Module:
    layer = nn.Conv2d(3, 4, 3)
    layer.register_forward_hook(lambda module, args, y: y.abs())
    return layer


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (OnlyInTraining(3, 4, 3), r"0 \(OnlyInTraining\) .* in training it computes something else than nn\.Conv2d"),
        (SameAsTensorFlow(3, 4, 3, 2), r"0 \(SameAsTensorFlow\) .* in inference it computes something else"),
        (hooked(), r"0 \(Conv2d\) .* something else than nn\.Conv2d with its weight and bias"),
        (patched(), r"0 \(Conv2d\) .* something else than nn\.Conv2d with its weight and bias"),
        (Standardised(3, 4, 3), r"0 \(Standardised\) .* something else"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Saturating(4, 4)), "Saturating"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Adapted(4, 4)),
            r"0\.3 \(Adapted\) .* beside weight and bias it has the parameters down, up",
        ),
    ],
)
def test_a_layer_that_computes_something_else_is_refused_with_the_reason(layer: nn.Module, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        convert(nn.Sequential(layer), "p4", in_size=9)


def test_a_hook_that_only_looks_is_no_reason_to_refuse() -> None:
    seen: list[Tensor] = []
    plain = ResidualNet()
    plain.conv.register_forward_hook(lambda module, args, y: seen.append(y))
    plain.layer1.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    convert(plain, "p4", in_size=17)


REPARAMETRIZATIONS: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm": torch.nn.utils.weight_norm,
    "spectral_norm": torch.nn.utils.spectral_norm,
    "prune": lambda m: torch.nn.utils.prune.l1_unstructured(m, "weight", 0.4),
    "new weight_norm": torch.nn.utils.parametrizations.weight_norm,
    "new spectral_norm": torch.nn.utils.parametrizations.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize("name", REPARAMETRIZATIONS)
def test_lifted_filters_are_those_that_a_reparametrization_computes_now(name: str) -> None:
    def build() -> nn.Module:
        net = ResidualNet()
        for module in (net.conv, net.layer1.conv1, net.layer2.projection[0], net.excite.fc1, net.fc):
            REPARAMETRIZATIONS[name](module)
        return net.eval()

    plain, other = build(), build()
    x = images(17).float()
    plain(x)
    plain.load_state_dict(other.state_dict())  # the attributes are those of before
    net = convert(plain, "p4", "dense", in_size=17, weights="lift", pool="mean")
    assert not any("weight_" in key.rpartition(".")[2] for key in net.state_dict() if "depthwise" not in key)
    answers = [other(torch.rot90(x, r, (-2, -1))) for r in range(4)]
    torch.testing.assert_close(net(x), torch.stack(answers).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain(x), other(x))  # it is left as it is


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
    (r"1 \(ConvTranspose2d\) cannot be converted.*Upsample", after_a_convolution(nn.ConvTranspose2d(4, 2, 2, 2))),
    (r"0 \(Standardised\) cannot be converted", nn.Sequential(Standardised(3, 4, 3))),
    (r"1 \(MultiheadAttention\)", after_a_convolution(nn.MultiheadAttention(4, 1))),
    (r"mix \(Linear.* reads 3 axes", Tokens()),
    (r"never calls aux in inference mode", Unused()),
    (r"has no Conv2d", nn.Linear(3, 4)),
    (r"begins with 0; a Conv2d must be the first", nn.Sequential(nn.Linear(17, 17), nn.Conv2d(3, 4, 3))),
    (
        r"1 \(Conv2d.*\(1, 7\).*cannot be converted to .*p4.*axes Y and X",
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
    (r"fails on images of shape \(2, 3, 17, 17\)", after_a_convolution(nn.Flatten(), nn.Linear(5, 2))),
    (r"fails on images of shape \(2, 3, 17, 17\)", nn.Sequential(nn.Conv2d(3, 4, 18))),
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
        ({"init": "kaiming"}, r"init \(='kaiming'\) must be one of published, variance"),
        ({"pool": "sum"}, r"pool \(='sum'\) must be one of max, mean"),
        ({"in_size": 0}, r"in_size \(=0\) must be a positive integer"),
        ({"group": "p6"}, r"group \(='p6'\) is unknown"),
        ({"weights": "lift", "match": "params", "kind": "g"}, r"match \(='params'\) must be 'width'"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        convert(ResidualNet(), **({"group": "p4", "in_size": 17} | options))
