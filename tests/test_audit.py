"""The audit: exact networks pass, each cause is named with its layer, and the fixes that it suggests work."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepgroupy import cli
from sepgroupy.auditing import AuditReport, AuditRow, audit, exact_sizes
from sepgroupy.auditing._axis_layout import AxisLayout, Orbit, find_layout, stack_orbit
from sepgroupy.auditing._tracing import Resize
from sepgroupy.errors import ArgumentError
from sepgroupy.functional import merge_group, split_group
from sepgroupy.groups import C4, PointGroup
from sepgroupy.models import ResNet, RotMNISTNet, build_model
from sepgroupy.nn import GroupConv2d, GroupPool, LiftingConv2d, PerElement
from sepgroupy.paper import RunConfig
from sepgroupy.testing import equivariance_error


class Merge(nn.Module):
    """Merge the group axis with the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2)


class GroupOf(nn.Module):
    """Split the group axis off again."""

    def __init__(self, order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.order))


class Function(nn.Module):
    """Any function as steps of a network between its modules."""

    def __init__(self, function: Callable[..., Any], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules) if modules else ()

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.parts)


def head(channels: int, *, pool: bool = True) -> list[nn.Module]:
    return [*([GroupPool()] if pool else []), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]


def lift(**options: Any) -> LiftingConv2d:
    return LiftingConv2d(2, 4, **({"kernel_size": 3, "padding": 1, "group": "p4"} | options))


def small_resnet(**options: Any) -> ResNet:
    torch.manual_seed(0)
    return ResNet("gc", depth=8, widths=(3, 4, 5), **options)


def named(report: AuditReport, name: str) -> AuditRow:
    return next(row for row in report.rows if row.name == name)


# Exact networks.


@pytest.mark.parametrize(
    ("make", "group", "size"),
    [
        (lambda: small_resnet(head="invariant", downsampling="equivariant"), "p4m", 32),
        (lambda: small_resnet(head="invariant", downsampling="equivariant"), "p4", 32),  # a subgroup of the net's own
        (lambda: small_resnet(head="invariant"), "p4m", 33),
        (lambda: RotMNISTNet("gc", 4), "p4", 28),
        (lambda: RotMNISTNet("g", 3, group="p4m"), "p4m", 28),
        (lambda: nn.Sequential(lift(group="p2mm"), Merge(), nn.ReLU(inplace=True)), "p2mm", (2, 5, 8)),
        (lambda: GroupConv2d(2, 3, 3, group="p4"), "p4", (2, 4, 6, 6)),
    ],
)
def test_exact_nets_are_exact(make: Callable[[], nn.Module], group: str, size: Any) -> None:
    torch.manual_seed(0)
    net = make()
    if isinstance(net, nn.Sequential):
        net.append(Function(lambda x: x.unflatten(1, (4, 4)).sum(2)))
    report = audit(net, group, size)
    assert report.exact
    assert report.breaking == ()
    assert (report.first, report.cause, report.suggested_fix, report.sizes) == (None, "", "", ())
    assert max(max(row.errors) for row in report.rows) < 1e-12
    assert "\nexact under " + group in str(report)


def test_the_published_resnet_breaks_at_its_first_stride() -> None:
    net = small_resnet()
    report = audit(net, "p4m", 32)
    assert not report.exact
    assert report.first is named(report, "layer2.0.conv1")
    assert "stride 2 is not symmetric at this size" in report.cause
    assert report.sizes == (29, 33)
    assert "29 or 33" in report.suggested_fix
    assert [row.name for row in report.breaking] == [
        "layer2.0.conv1",
        "layer2.0.downsample.0",
        "layer3.0.conv1",
        "layer3.0.downsample.0",
        "fc",
    ]
    for size in report.sizes:  # the published head is all that is left
        better = audit(net, "p4m", size)
        assert [row.name for row in better.breaking] == ["fc"]
        assert "5 channels × 8 elements of the group" in better.cause
        assert audit(small_resnet(head="invariant"), "p4m", size).exact
    assert named(report, "layer2.0.conv1").suggested_arguments == {"kernel_size": 4, "padding": 1}
    assert named(report, "layer2.0.downsample.0").suggested_arguments == {"kernel_size": 2, "padding": 0}
    for stage in (net.layer2, net.layer3):
        first: Any = stage[0]
        for parent, name, key in ((first, "conv1", "conv1"), (first.downsample, "0", "downsample.0")):
            old = getattr(parent, name)
            change = named(report, f"layer{2 if stage is net.layer2 else 3}.0.{key}").suggested_arguments
            kind = {"group": "p4m", "kind": old.kind, "bias": False}
            setattr(parent, name, GroupConv2d(old.in_channels, old.out_channels, stride=2, **change, **kind))
    assert [row.name for row in audit(net, "p4m", 32).breaking] == ["fc"]


def test_errors_are_those_of_the_definition() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 2)
    net = nn.Sequential(first, nn.Tanh(), second).double()
    report = audit(net, "p4m", 7, seed=3)
    x = torch.randn(1, 2, 7, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    names = ["0", "1", "2", "output"]
    assert [row.name for row in report.rows] == names
    for row, part in zip(report.rows, (first, net[:2], net, net), strict=True):
        assert row.errors == pytest.approx(equivariance_error(part, "p4m", x).tolist(), rel=1e-9)
    with torch.no_grad():  # the second convolution by itself, from an input that is exact
        alone = equivariance_error(second, "p4m", net[:2](x)).tolist()
    assert named(report, "2").layer_error == pytest.approx(alone, rel=1e-9)
    assert named(report, "1").worst == 0 < 0.1 < max(named(report, "1").errors)


# Each cause, on a network made for it.

CAUSES = {
    "grid": (lambda: nn.Sequential(lift(), nn.ReLU(), lift2(stride=2, padding=1), *head(4)), 8, "2", "stride 2"),
    "pool": (lambda: nn.Sequential(lift(), PerElement(nn.MaxPool2d(2)), *head(4)), 9, "1.module", "stride 2"),
    "ceil": (
        lambda: nn.Sequential(lift(), PerElement(nn.MaxPool2d(2, ceil_mode=True)), *head(4)), 9, "1.module", "stride 2"
    ),
    "same": (lambda: nn.Sequential(lift(), GroupPool(), nn.Conv2d(4, 4, 4, padding="same")), 8, "2", "padding='same'"),
    "pad": (lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), lift()), 8, "0", "not the same on all sides"),
    "conv": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), *head(4, pool=False)), 8, "0", "an ordinary Conv2d"),
    "group": (lambda: nn.Sequential(lift(group="p2"), *head(4)), 8, "0", "equivariant under p2 alone"),
    "positions": (lambda: nn.Sequential(lift(), GroupPool(), nn.Flatten(), nn.Linear(256, 5)), 8, "3", "8×8 positions"),
    "elements": (lambda: nn.Sequential(lift(), Merge(), *head(16, pool=False)), 8, "4", "4 elements of the group"),
    "affine": (lambda: nn.Sequential(lift(), Merge(), nn.BatchNorm2d(16), GroupOf(4)), 8, "2", "a non-shared affine"),
    "spatial affine": (lambda: nn.Sequential(lift(), GroupPool(), nn.LayerNorm((8, 8))), 8, "2", "positions"),
    "flip": (lambda: nn.Sequential(lift(), Function(lambda x: x.flip(2)), lift2(), *head(4)), 8, "1", "Function"),
    "step": (
        lambda: Function(lambda x, a, b: b(F.max_pool2d(merge_group(a(x)), 2)), lift(), nn.ReLU()),
        9, "parts.1 (input)", "takes 9×9 pixels to 4×4",
    ),
    "step pad": (
        lambda: Function(lambda x, a, b: b(F.pad(a(x), (0, 1, 0, 1))), lift(), nn.ReLU()),
        8, "parts.1 (input)", "takes 8×8 pixels to 9×9",
    ),
    "output": (
        lambda: nn.Sequential(lift(), Merge(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 8, "output",
        "the network's output",
    ),
}  # fmt: skip


def lift2(**options: Any) -> GroupConv2d:
    return GroupConv2d(4, 4, **({"kernel_size": 3, "group": "p4", "kind": "gc"} | options))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", CAUSES)
def test_each_cause_is_named_with_its_layer(case: str) -> None:
    torch.manual_seed(0)
    make, size, name, why = CAUSES[case]
    report = audit(make(), "p4", size)
    assert not report.exact
    assert report.first is not None
    assert (report.first.name, [row.name for row in report.breaking]) == (name, [name])
    assert why in report.cause
    assert report.suggested_fix
    assert report.first.layer_error[0] == 0
    assert report.first.worst > 1e-3
    for part in (name, report.cause, report.suggested_fix, "not exact under p4 (4 elements) at 2×"):
        assert part in str(report)


# The proposals, done.


@pytest.mark.parametrize("size", [8, 11, 14])
@pytest.mark.parametrize(
    "layer",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 7, "stride": 2, "padding": 3},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 2, "stride": 3},
        {"kernel_size": 3, "stride": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2},
    ],
)
def test_kernel_padding_and_size_proposals_are_exact(layer: dict[str, int], size: int) -> None:
    torch.manual_seed(0)
    report = audit(lift(padding=0, **layer) if "padding" not in layer else lift(**layer), "p4", size)
    layer = {"padding": 0} | layer
    for n in (*report.sizes, *exact_sizes(lift(**layer), "p4", size)):
        assert audit(lift(**layer), "p4", n).exact
    below = [n for n in range(2, size + 1) if audits(lift(**layer), n)]
    assert max(below, default=None) == next((n for n in exact_sizes(lift(**layer), "p4", size) if n <= size), None)
    if report.exact:
        return
    assert report.first is not None
    change = report.first.suggested_arguments
    if layer.get("dilation", 1) == 2:  # no kernel has an even extent: n + 2·padding - 1 stays odd or even
        assert not change
        return
    better = audit(lift(**(layer | change)), "p4", size)
    assert better.exact
    assert better.rows[-1].shape == report.rows[-1].shape


def audits(net: nn.Module, size: int) -> bool:
    try:
        return audit(net, "p4", size).exact
    except ArgumentError:
        return False


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(("kernel", "size"), [(2, 9), (3, 8), (3, 10)])
def test_pooling_proposals_are_exact(kernel: int, size: int, ceil: bool) -> None:
    def net(kernel_size: int = kernel, padding: int = 0) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(lift(), PerElement(nn.MaxPool2d(kernel_size, 2, padding, ceil_mode=ceil)))

    report = audit(net(), "p4", size)
    assert report.first is not None
    assert report.first.suggested_arguments
    assert audit(net(**report.first.suggested_arguments), "p4", size).exact
    assert len(report.sizes) == 2
    assert all(audit(net(), "p4", n).exact for n in report.sizes)


def test_a_pooling_between_modules_has_exact_sizes_too() -> None:
    net = Function(lambda x, a, b: b(F.avg_pool2d(merge_group(a(x)), 2)), lift(), nn.ReLU())
    report = audit(net, "p4", 9)
    assert report.sizes == exact_sizes(net, "p4", 9) == (8, 10)
    assert "a window of 3 with stride 2" in report.suggested_fix
    assert audit(net, "p4", 8).exact
    assert audit(Function(lambda x, a, b: b(F.avg_pool2d(merge_group(a(x)), 3, 2)), lift(), nn.ReLU()), "p4", 9).exact


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_other_proposals_are_exact() -> None:
    torch.manual_seed(0)
    report = audit(nn.Conv2d(2, 2, 4, padding="same"), "p4", 8)
    kernel = report.rows[0].suggested_arguments["kernel_size"]
    assert kernel == (5, 5)
    symmetric = nn.Conv2d(2, 2, kernel, padding="same", bias=False)
    nn.init.constant_(symmetric.weight, 0.1)
    symmetric.weight.requires_grad_(False)
    assert audit(symmetric, "p4", 8).exact
    repairs = {
        "pad": nn.Sequential(nn.ZeroPad2d(1), lift()),
        "conv": nn.Sequential(lift(), nn.ReLU(), *head(4)),
        "group": nn.Sequential(lift(group="p4"), *head(4)),
        "positions": nn.Sequential(lift(), *head(4)),
        "elements": nn.Sequential(lift(), *head(4)),
        "affine": nn.Sequential(lift(), PerElement(nn.BatchNorm2d(4))),
        "spatial affine": nn.Sequential(lift(), GroupPool(), nn.BatchNorm2d(4)),
        "output": nn.Sequential(lift(), GroupPool(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    }
    words = {
        "pad": "padding=1 on all sides",
        "conv": "LiftingConv2d(2, …, group='p4')",
        "group": "group='p4'",
        "positions": "an average over the positions",
        "elements": "GroupPool",
        "affine": "GroupBatchNorm2d(4)",
        "spatial affine": "BatchNorm2d",
        "output": "GroupPool",
    }
    for case, net in repairs.items():
        make, size, _, _ = CAUSES[case]
        assert words[case] in audit(make(), "p4", size).suggested_fix, case
        assert audit(net, "p4", size).exact, case


# Controls: no false alarms, and nothing overlooked.


def test_an_ordinary_convolution_is_judged_by_its_filter() -> None:
    blur = nn.Conv2d(2, 2, 3, stride=2, padding=1, groups=2, bias=False).requires_grad_(False)
    nn.init.constant_(blur.weight, 1 / 9)
    assert audit(blur, "p4m", 9).exact
    asymmetric = audit(blur, "p4m", 8)
    assert "grid" in asymmetric.cause
    assert "ordinary" not in asymmetric.cause
    torch.manual_seed(0)
    both = audit(nn.Conv2d(2, 2, 3, stride=2, padding=1), "p4m", 8)
    assert "grid" in both.cause
    assert "an ordinary Conv2d" in both.cause


def test_constant_parameters_do_not_hide_what_training_makes_of_them() -> None:
    torch.manual_seed(0)
    new = nn.Sequential(lift(), Merge(), nn.BatchNorm2d(16), GroupOf(4)).eval()
    assert equivariance_error(new, "p4", torch.randn(1, 2, 8, 8)).max() < 1e-5
    report = audit(new, "p4", 8)
    assert [row.name for row in report.breaking] == ["2"]
    assert audit(nn.Sequential(lift(), Merge(), nn.BatchNorm2d(16, affine=False)), "p4", 8).first is not None


def test_a_break_that_the_output_does_not_show_is_none() -> None:
    for breaking, mending, shape in (
        (nn.ZeroPad2d((0, 1, 0, 1)), nn.ZeroPad2d((1, 0, 1, 0)), (2, 4, 4)),
        (Function(lambda x: x.flip(2)), GroupPool(), (2, 4, 6, 6)),
    ):
        report = audit(nn.Sequential(breaking, mending), "p4", shape)
        assert report.exact
        assert report.first is None
        assert named(report, "0").breaks


@pytest.mark.parametrize("order", ["CH", "HC"])
def test_merged_maps_are_read(order: str) -> None:
    x = torch.randn(1, 3, 4, 5, 5, dtype=torch.float64)
    orbit = Orbit(C4, (0, 1, 2, 3), 1)
    y = stack_orbit(x, orbit, group_axis=True)
    merged = y.flatten(1, 2) if order == "CH" else y.transpose(1, 2).flatten(1, 2)
    sizes = {"CH": (3, 4), "HC": (4, 3)}[order]
    assert find_layout(merged, orbit, 1e-10) == (AxisLayout("TB" + order + "YX", (4, 1, *sizes, 5, 5)), (0.0,) * 4)
    assert find_layout(merge_group(y), orbit, 1e-10)[0].labels == "TBHCYX"
    assert find_layout(merged.flatten(1), orbit, 1e-10)[1] == (0.0,) * 4
    assert find_layout(merged.movedim(1, -1), orbit, 1e-10)[0].labels == "TBYX" + order
    assert find_layout(merged.flatten(2).mT, orbit, 1e-10)[0].labels == "TBYX" + order
    broken = merged + 0.1 * torch.randn_like(merged)
    layout, errors = find_layout(broken, orbit, 1e-10, before=AxisLayout("TBCHYX", (4, 1, 3, 4, 5, 5)))
    assert layout.labels == "TB" + order + "YX"
    assert torch.equal(layout.corrected(broken, orbit)[:1], broken[:1])
    assert layout.errors(layout.corrected(broken, orbit), orbit) == (0.0,) * 4
    assert max(errors) > 0.01


class Ramp(nn.Module):
    """A user's own module: it adds to each row a number of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(x.shape[-2], dtype=x.dtype)[:, None]


def test_a_users_own_network() -> None:
    torch.manual_seed(0)
    report = audit(nn.Sequential(lift(), GroupPool(), Ramp(), nn.Tanh(), *head(4, pool=False)), "p4", 8)
    assert report.first is not None
    assert (report.first.name, report.first.type) == ("2", "Ramp")
    assert "Ramp does not treat all positions and elements of the group alike" in report.cause
    assert [row.name for row in report.breaking] == ["2"]


def test_an_ordinary_network_breaks_at_its_first_convolution() -> None:
    report = audit(build_model("z2cnn", width=4), "p4", 28)
    assert report.first is not None
    assert report.first.name == "conv1"
    assert "an ordinary Conv2d" in report.cause
    assert "LiftingConv2d(1, …, group='p4')" in report.suggested_fix
    assert named(report, "bn1").worst < 1e-12 < max(named(report, "bn1").errors)


@dataclass
class Outputs:
    features: Tensor
    extra: list[Any]


def test_every_output_is_measured_and_named() -> None:
    net = Function(lambda x, a: {"map": a(x), "mean": a(x).mean((2, 3, 4)), "note": None, "count": 3}, lift())
    report = audit(net, "p4", 8)
    found = [(row.name, row.shape) for row in report.rows if row.is_output]
    assert found == [("output['map']", "4×4×8×8"), ("output['mean']", "4")]
    assert report.exact
    nested = Function(lambda x, a: Outputs(a(x), [a(x).mean(2), {"corner": a(x)[..., 0, 0].mean(2)}]), lift())
    report = audit(nested, "p4", 8)
    assert [row.name for row in report.breaking] == ["output.extra[1]['corner']"]
    assert "depends on the orientation" in report.cause
    assert "not exact" in str(report)


def test_classes_of_pixels_are_measured_exactly() -> None:
    net = Function(lambda x, a: {"logits": a(x).mean(2), "classes": a(x).mean(2).argmax(1, keepdim=True)}, lift())
    assert audit(net, "p4", 8).exact


def test_a_module_may_be_named_output() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(OrderedDict(output=nn.Conv2d(2, 4, 3), pool=nn.AdaptiveAvgPool2d(1), end=nn.Flatten()))
    report = audit(net, "p4", 8)
    assert [(row.name, row.type) for row in report.breaking] == [("output", "Conv2d")]
    net = nn.Sequential(OrderedDict(output=lift(stride=2), pool=GroupPool(), mean=nn.AdaptiveAvgPool2d(1)))
    assert [row.name for row in audit(net, "p4", 9).breaking] == []


class Decoder(nn.Module):
    """Down by an exact layer, and up again to the size of the image."""

    def __init__(self, up: Callable[..., Tensor] | nn.Module, **options: Any) -> None:
        super().__init__()
        self.first, self.down = lift(), lift2(**({"stride": 2, "padding": 1} | options))
        self.up, self.last = up, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = merge_group(self.down(x))
        y = self.up(y) if isinstance(self.up, nn.Module) else self.up(y, size=x.shape[-2:])
        return split_group(self.last(y + merge_group(x)), 4)


RESIZES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "function": (F.interpolate, "last (input)", {"mode": "bilinear"}),
    "nearest-exact": (partial(F.interpolate, mode="nearest-exact"), "", {}),  # symmetric from 5 to 9
    "module": (nn.Upsample(9), "up", {"mode": "bilinear"}),
    "scale": (nn.Upsample(scale_factor=1.8, mode="bilinear"), "up", {}),
    "fraction": (nn.Upsample(scale_factor=1.99, mode="bilinear"), "up", {"recompute_scale_factor": True}),
}


@pytest.mark.filterwarnings("ignore:The default behavior for interpolate:UserWarning")
@pytest.mark.parametrize("case", RESIZES)
def test_a_resize_is_no_padding_and_its_fix_works(case: str) -> None:
    torch.manual_seed(0)
    up, name, arguments = RESIZES[case]
    report = audit(Decoder(up), "p4", 9) if case != "fraction" else audit(nn.Sequential(up, nn.ReLU()), "p4", (4, 5, 5))
    if not arguments:
        assert report.exact
        return
    assert report.first is not None
    if case == "fraction":
        assert report.first.name == "0"
        fixed = nn.Sequential(nn.Upsample(scale_factor=1.99, mode="bilinear", **arguments), nn.ReLU())
        assert audit(fixed, "p4", (4, 5, 5)).exact
        return
    assert (report.first.name, report.first.suggested_arguments) == (name, arguments)
    assert "resizes 5×5 pixels to 9×9 with mode='nearest" in report.cause
    assert "padding" not in report.suggested_fix
    better = partial(F.interpolate, **arguments) if not isinstance(up, nn.Module) else nn.Upsample(9, **arguments)
    assert audit(Decoder(better), "p4", 9).exact


@pytest.mark.filterwarnings("ignore:The default behavior for interpolate:UserWarning")
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic", "area"])
def test_which_resizes_are_symmetric(mode: str) -> None:
    for n, scale in itertools.product(range(4, 9), (0.3, 0.5, 1.3, 1.5, 2.0, 2.75)):
        x = torch.randn(1, 1, n, n, dtype=torch.float64)
        y, flipped = (F.interpolate(a, scale_factor=scale, mode=mode) for a in (x, x.flip(-1)))
        by_scale = Resize(mode, scale, (n, n), tuple(y.shape[-2:]))
        assert by_scale.is_symmetric == torch.allclose(flipped, y.flip(-1), rtol=1e-9), (n, scale)
        for m in range(1, 13):
            y, flipped = (F.interpolate(a, size=m, mode=mode) for a in (x, x.flip(-1)))
            assert Resize(mode, None, (n, n), (m, m)).is_symmetric == torch.allclose(flipped, y.flip(-1)), (n, m)


def test_unpooling_by_indices_of_equal_values_is_named() -> None:
    class Unpool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            y, indices = self.pool(F.relu(x))
            return self.unpool(y + 1, indices)

    report = audit(Unpool(), "p4", (4, 8, 8))
    assert [row.name for row in report.breaking] == ["unpool"]
    assert "the first of equal values" in report.cause
    assert report.sizes == ()


@pytest.mark.parametrize("size", [8, 9])
def test_where_no_size_is_exact_all_layers_to_change_are_named(size: int) -> None:
    torch.manual_seed(0)
    net = Decoder(F.interpolate)
    report = audit(net, "p4", size)
    assert report.sizes == exact_sizes(net, "p4", size) == ()
    assert f"at no input size near {size} that the network takes" in report.suggested_fix
    if size == 8:
        assert "down: kernel_size=4, padding=1" in report.suggested_fix
        assert audit(Decoder(F.interpolate, kernel_size=4), "p4", 8).exact
    else:
        assert "last (input): mode='bilinear'" in report.suggested_fix
        assert audit(Decoder(partial(F.interpolate, mode="bilinear")), "p4", 9).exact
    assert audit(Decoder(partial(F.interpolate, mode="bilinear")), "p4", 8).sizes == (7, 9)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
def test_reparametrized_layers_are_layers_and_their_weights_no_feature_maps() -> None:
    torch.manual_seed(0)
    normed = torch.nn.utils.parametrizations.weight_norm(lift())  # four filters, as many as elements
    old = torch.nn.utils.weight_norm(lift2(), "pointwise_weight")
    pruned = torch.nn.utils.prune.l1_unstructured(lift2(), "depthwise_weight", 0.3)
    report = audit(nn.Sequential(normed, old, pruned, nn.ReLU()), "p4", 8)
    assert report.exact
    assert [row.name for row in report.rows] == ["0", "1", "2", "3", "output"]


def test_a_module_that_computes_in_float32_is_measured_as_such() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(lift(), Function(lambda x: F.softmax(x.float() * 3, 1).to(x.dtype)), Function(torch.tanh))
    assert audit(net[:1], "p4", 8, dtype=torch.float32).exact
    net[1].function = lambda x: x.float().exp()
    assert audit(net, "p4", 8).exact


def test_the_network_is_left_as_it_is() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(lift(), PerElement(nn.BatchNorm2d(4)), nn.ReLU(inplace=True))
    state = {key: value.clone() for key, value in net.state_dict().items()}
    generator = torch.get_rng_state()
    audit(net, "p4", 8)
    exact_sizes(net, "p4", 8)
    assert net.training
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key])
        assert value.dtype == state[key].dtype
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.equal(torch.get_rng_state(), generator)


# Misuse.


def two_ways() -> nn.Module:
    calls = iter(range(9))
    return Function(lambda x, a, b: a(x) if next(calls) % 2 else b(a(x)), lift(), nn.ReLU())


@pytest.mark.parametrize(
    ("net", "group", "size", "message"),
    [
        (nn.ReLU(), "p4", 8, "model has no convolution"),
        (nn.ReLU(), "p4", (2, 8), r"input_size \(=\(2, 8\)\)"),
        (nn.ReLU(), "p4", (2, 8, 0), "must be positive"),
        (nn.ReLU(), "p4", (2, 8, 9), "must be the same on axes that"),
        (nn.ReLU(), PointGroup.generate([[[-1]]]), (2, 8, 8), r"its last axes must be \(2, X\)"),
        (nn.ReLU(), "p5", (2, 8, 8), "unknown"),
        (lift(), "p4", 0, "must be positive"),
        (lift(padding=0), "p4", 2, r"does not take an input of shape \(4, 2, 2, 2\)"),
        (RotMNISTNet("gc", 2), "p4", 29, "28, 28"),
        (Function(torch.sum), "p4", (2, 8, 8), r"returns \(\)"),
        (Function(lambda x: "text"), "p4", (2, 8, 8), "returns str"),
        (two_ways(), "p4", 8, "calls other modules"),
    ],
)
def test_misuse_is_named(net: nn.Module, group: Any, size: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        audit(net, group, size)


def test_a_dtype_without_tolerance_is_refused() -> None:
    with pytest.raises(ArgumentError, match="dtype"):
        audit(lift(), "p4", 8, dtype=torch.int64)


def test_no_size_is_proposed_where_none_is_exact() -> None:
    class Crop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[..., 1:, 1:]

    net = nn.Sequential(lift(), Crop())
    assert exact_sizes(net, "p4", 8) == ()
    report = audit(net, "p4", 8)
    assert (report.first is not None and report.first.name, report.sizes) == ("1", ())
    assert exact_sizes(RotMNISTNet("gc", 2), "p4", 28) == (28,)


# The command and the plot.


def save_run(folder: Path, task: str, model: str, first: int, **options: Any) -> str:
    """Write the files of a run, untrained."""
    torch.manual_seed(0)
    config = RunConfig.for_task(task, model=model, width=first)
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json())
    state = {f"model.{key}": value for key, value in build_model(model, **options).state_dict().items()}
    torch.save({"state_dict": state}, folder / "last.ckpt")
    return str(folder)


@pytest.fixture
def digits(tmp_path: Path) -> str:
    return save_run(tmp_path / "digits", "rotmnist", "gc-p4cnn-small", 6, width=6)


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["audit", *arguments])
    return int(stop.value.code or 0), *capsys.readouterr()


def test_the_command_prints_a_row_for_every_call_and_draws_the_errors(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = command(capsys, digits)
    assert (code, err) == (0, "")
    assert out.count("\n") == 28  # a row for every call, the activations among them
    assert "\nexact under p4 (4 elements) at 1×28×28" in out
    plot = tmp_path / "plots" / "audit.png"
    code, out, err = command(capsys, digits, "--group", "p4m", "--figure", str(plot))
    assert (code, err) == (0, "")
    assert "\nnot exact under p4m (8 elements) at 1×28×28" in out
    assert "\nfirst:  conv1 (LiftingConv2d)\ncause:  it is equivariant under p4 alone" in out
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_command_on_a_resnet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = save_run(tmp_path / "photos", "cifar10", "p4m-resnet44", 1, widths=(1, 2, 4))
    code, out, _ = command(capsys, run, "--group", "p2", "--size", "9")
    assert code == 0
    assert "not exact under p2 (2 elements) at 3×9×9" in out
    assert "first:  fc (Linear)" in out


@pytest.mark.parametrize("options", [("--group", "p5"), ("--size", "0"), ("--size", "29")])
def test_command_misuse(digits: str, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]) -> None:
    found, out, err = command(capsys, digits, *options)
    assert (found, out) == (2, "")
    assert err.count("\n") == 1


def test_command_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = command(capsys, str(tmp_path / "nothing"))
    assert code == 1
    assert "nothing" in err


@pytest.mark.parametrize(("size", "seed"), [(12, 14), (17, 3)])
def test_convolutions_read_rows_and_columns_whatever_else_the_values_fit(size: int, seed: int) -> None:
    """Under p2 the axes may differ in size: with these parameters, channels fit the values better than rows do."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 12, 3, 2, 1), nn.ReLU()]
    layers += [nn.Conv2d(12, 12, 3, 2, 1, groups=12), nn.ReLU(), nn.Conv2d(12, 4, 3, padding=1)]
    assert not audit(nn.Sequential(*layers), "p2", size).exact
