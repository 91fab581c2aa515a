"""``layer(t·x) = t·layer(x)`` for every element, where it must hold, and the sizes where it is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import oracle
from conftest import GROUPS, Build, LayerVariant, build_layer, pairs, random_input, refuses, variants_of
from sepgroupy.groups import D1, D2, D4, PointGroup
from sepgroupy.nn import GroupConv2d, GroupConvolution, GroupPool, LiftingConv2d, PerElement

pytestmark = pytest.mark.usefixtures("as_if_large")

CASES: dict[str, dict[str, Any]] = {
    **{f"kernel-{k}": {"kernel_size": k} for k in (1, 2, 3, 4)},
    "padding": {"kernel_size": 4, "padding": 3},
    "stride": {"kernel_size": 3, "padding": 1, "stride": 2},
    "stride-1x1": {"kernel_size": 1, "stride": 3},
    "dilated-stride": {"kernel_size": 2, "dilation": 3, "stride": 2, "padding": 1},
    "same": {"kernel_size": 5, "padding": "same"},
    "groups": {"kernel_size": 3, "groups": 2},
    "circular": {"kernel_size": 3, "padding": 2, "padding_mode": "circular"},
    "signals-stride": {"dimension": 1, "kernel_size": 3, "padding": 1, "stride": 2},
    "signals-even-stride": {"dimension": 1, "kernel_size": 4, "padding": 1, "stride": 3},
    "volumes-stride": {"dimension": 3, "kernel_size": 3, "padding": 1, "stride": 2},
    "volumes-even-stride": {"dimension": 3, "kernel_size": 4, "padding": 1, "stride": 2},
    "volumes-same": {"dimension": 3, "kernel_size": 3, "padding": "same", "dilation": 2},
    "volumes-1x1x1": {"dimension": 3, "kernel_size": 1},
}


def exact_size(kernel_size: int, stride: int = 1, padding: Any = 0, dilation: int = 1, **_: Any) -> int:
    """Find a size n with ``(n + 2·padding - dilation·(k-1) - 1) % stride == 0``."""
    if stride == 1:
        return 6
    return next(n for n in range(5, 5 + stride) if (n + 2 * padding - dilation * (kernel_size - 1) - 1) % stride == 0)


@pytest.mark.parametrize(("variant", "case"), pairs(CASES, rules=False))
def test_exact_in_float64(variant: LayerVariant, case: dict[str, Any]) -> None:
    size = exact_size(**case)
    for group in GROUPS[variant.dimension]:
        layer = build_layer(variant, 4 if variant.dimension < 3 else 1, 2, group=group, dtype=torch.float64, **case)
        x = random_input(layer, *(size,) * variant.dimension)
        assert refuses(layer, x) or error(layer, x) < 1e-10, layer


@pytest.mark.parametrize("kernel", [2, 3])
def test_to_rounding_in_float32(build: Build, kernel: int) -> None:
    layer = build(8, 8, kernel, padding=1, group=D4)
    x = random_input(layer, 9, 9, dtype=torch.float32)
    assert refuses(layer, x) or error(layer, x) < 1e-5


@pytest.mark.parametrize("variant", variants_of(kernel_size=3, stride=2), ids=str)
def test_rectangular_images(build: Build) -> None:
    layer = build(2, 2, 3, stride=2, padding=1, group=D4, dtype=torch.float64)
    assert error(layer, random_input(layer, 5, 9)) < 1e-10


UNEQUAL: dict[str, Any] = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)}


@pytest.mark.parametrize("group", [D1, D2], ids=["pm", "p2mm"])
@pytest.mark.parametrize("variant", variants_of(**UNEQUAL), ids=str)
def test_rectangular_kernels(group: PointGroup, build: Build) -> None:
    layer = build(2, 2, group=group, dtype=torch.float64, **UNEQUAL)
    assert error(layer, random_input(layer, 7, 6)) < 1e-10


STRIDED: dict[str, dict[str, Any]] = {
    "odd": {"kernel_size": 3, "padding": 1},
    "even": {"kernel_size": 2},
    "1x1": {"kernel_size": 1},
    "signals": {"dimension": 1, "kernel_size": 3, "padding": 1},
    "volumes": {"dimension": 3, "kernel_size": 3, "padding": 1},
}


@pytest.mark.parametrize(
    ("variant", "case"),
    pairs({name: {"stride": 2, **case} for name, case in STRIDED.items()}, every_backend=False, rules=False),
)
def test_a_stride_that_leaves_a_remainder_is_not_equivariant(variant: LayerVariant, case: dict[str, Any]) -> None:
    size = exact_size(**case) + 1
    for group in GROUPS[variant.dimension]:
        layer = build_layer(variant, 2, 2, group=group, dtype=torch.float64, **case)
        lost = error(layer, random_input(layer, *(size,) * variant.dimension))
        if (group.arrays < 0).any():  # some element reverses an axis, and with it the side where the remainder is
            assert lost > 0.2, layer
        else:
            assert lost < 1e-10, layer


def test_a_network_of_everything(plane_group: PointGroup) -> None:
    kinds: dict[str, Any] = {"group": plane_group, "bias": False}
    net = nn.Sequential(
        LiftingConv2d(1, 4, 3, padding=1, group=plane_group),
        PerElement(nn.BatchNorm2d(4)),
        nn.ReLU(),
        GroupConv2d(4, 6, 2, 2, kind="gc", **kinds),
        nn.GELU(),
        PerElement(nn.MaxPool2d(2)),
        GroupConv2d(6, 6, 3, padding="same", groups=3, kind="g", **kinds),
        nn.ReLU(),
        PerElement(nn.Upsample(scale_factor=2, mode="bilinear")),
        GroupConv2d(6, 2, 3, padding=1, padding_mode="circular", **kinds),
        GroupPool("mean"),
    ).double()
    assert error(net, torch.randn(3, 1, 8, 8, dtype=torch.float64)) < 1e-10


def test_rotated_and_reflected_copies_of_an_edge_filter_by_hand() -> None:
    # A vertical edge detector and three of its seven copies, by numbers that a reader can check.
    layer: Any = LiftingConv2d(1, 1, 3, group=D4, bias=False)
    kernel = torch.tensor([[1.0, 0, -1], [1, 0, -1], [2, 0, -2]])
    with torch.no_grad():
        layer.weight.copy_(kernel.reshape(layer.weight.shape))
    y = layer(torch.eye(9).reshape(9, 1, 3, 3)).reshape(3, 3, 8).permute(2, 0, 1)  # the expanded filters
    assert torch.equal(y[0], kernel)
    assert torch.equal(y[1], torch.tensor([[-1.0, -1, -2], [0, 0, 0], [1, 1, 2]]))
    assert torch.equal(y[4], torch.tensor([[2.0, 0, -2], [1, 0, -1], [1, 0, -1]]))
    assert torch.equal(y[5], torch.tensor([[1.0, 1, 2], [0, 0, 0], [-1, -1, -2]]))


def error(module: nn.Module, x: torch.Tensor) -> float:
    """Largest difference between the two sides over all elements, relative to the largest value."""
    group = next(m.group for m in module.modules() if isinstance(m, GroupConvolution))
    axes = group.dimension + 3  # of a group feature map
    with torch.no_grad():
        y = module(x).numpy()
        differences = []
        for t, matrix in enumerate(group.arrays):
            moved = oracle.move_feature_map(x.numpy(), group, t) if x.ndim == axes else oracle.move(x.numpy(), matrix)
            target = oracle.move_feature_map(y, group, t) if y.ndim == axes else oracle.move(y, matrix)
            differences.append(np.abs(module(torch.from_numpy(moved)).numpy() - target).max())
    return max(differences) / np.abs(y).max()
