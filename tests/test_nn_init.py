"""Fresh layers keep the scale of what passes through them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import oracle
from conftest import DIAGONAL, GROUPS
from sepgroupy.groups import C4, D4, PointGroup
from sepgroupy.nn import GROUP_CONVS, LIFTING_CONVS, GroupConv2d

KINDS = ("dense", "g", "gc")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("group", "kernel", "groups"),
    [(C4, 1, 1), (D4, 3, 1), (D4, 4, 2), (DIAGONAL, 3, 2), (GROUPS[1][0], 5, 2), (GROUPS[3][0], 2, 1)],
    ids=str,
)
def test_the_full_filter_has_the_variance_that_relu_needs(
    kind: str, group: PointGroup, kernel: int, groups: int
) -> None:
    layer = GROUP_CONVS[group.dimension](32, 64, kernel, groups=groups, group=group, kind=kind, dtype=torch.float64)
    filters = oracle.full_filter({name: p.detach().numpy() for name, p in layer.named_parameters()})
    elements = kernel**group.dimension
    wanted = 2 / (32 // groups * group.order * elements)
    # Independent factors at least: 64 for each kernel element of a gc layer. The squares of a uniform variable scatter
    # by 0.9 of their mean.
    assert filters.var() == pytest.approx(wanted, rel=4 * 0.9 / np.sqrt(64 * elements))
    assert abs(filters.mean()) < 4 * np.sqrt(wanted / (64 * elements))


@pytest.mark.parametrize("group", [GROUPS[1][0], D4, GROUPS[3][0]], ids=str)
@pytest.mark.parametrize("kernel", [1, 3, 4])
def test_a_lifting_filter_too(kernel: int, group: PointGroup) -> None:
    layer: Any = LIFTING_CONVS[group.dimension](16, 128, kernel, groups=2, group=group)
    elements = kernel**group.dimension
    wanted = 2 / (8 * elements)
    assert layer.weight.var().item() == pytest.approx(wanted, rel=4 * 0.9 / np.sqrt(128 * 8 * elements))


# The mean over all draws is exact. A single draw strays from it, and its logarithm sinks, the more so the deeper
# and narrower the stack is; a gc layer has the fewest independent factors and is given the most channels.
@pytest.mark.parametrize(("kind", "width"), [("dense", 64), ("g", 64), ("gc", 128)])
@pytest.mark.parametrize(("group", "kernel"), [(C4, 3), (D4, 1), (GROUPS[1][0], 3)], ids=str)
def test_a_deep_stack_without_norm_keeps_its_mean_square(kind: str, width: int, group: PointGroup, kernel: int) -> None:
    options: dict[str, Any] = {"padding": kernel // 2, "padding_mode": "circular", "group": group}
    dimension, logarithms = group.dimension, []
    for _ in range(5):
        x = torch.randn(1, 3, *[6 if dimension == 2 else 36] * dimension)
        with torch.no_grad():
            y = LIFTING_CONVS[dimension](3, width, kernel, **options)(x).relu()
            for _ in range(20):
                y = GROUP_CONVS[dimension](width, width, kernel, kind=kind, **options)(y).relu()
        logarithms.append(np.log((y.square().mean() / x.square().mean()).item()))
    assert abs(np.mean(logarithms)) < np.log(5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", [1, 3])
def test_one_layer_keeps_the_mean_square_of_any_map(kind: str, kernel: int) -> None:
    x = torch.randn(1, 4, 4, 4, 4, dtype=torch.float64).relu()
    x[:, 1] += 3  # channels of different means, of pixels that are alike
    options: dict[str, Any] = {"padding": "same", "padding_mode": "circular", "dilation": 2, "bias": False}
    with torch.no_grad():
        layer = GroupConv2d(4, 5000, kernel, group=C4, kind=kind, dtype=torch.float64, **options)
        y = layer(x).relu()
    # Where all terms are alike, a channel of a gc layer is relu(s·z), whose square scatters by √17 of its mean.
    assert y.square().mean().item() == pytest.approx(x.square().mean().item(), rel=4 * np.sqrt(17 / 5000))


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_layers_differ_and_biases_are_zero(kind: str) -> None:
    layer, other = (GroupConv2d(4, 4, 3, group="p4", kind=kind) for _ in range(2))
    for (name, a), (_, b) in zip(layer.named_parameters(), other.named_parameters(), strict=True):
        assert (a == 0).all() if name == "bias" else not torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind: str) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(GroupConv2d(4, 4, 3, group="p4", kind=kind).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_reset_parameters_draws_other_values() -> None:
    layer: Any = GroupConv2d(4, 4, 3, group="p4", kind="gc")
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    nn.init.ones_(layer.bias)
    layer.reset_parameters()
    assert not torch.equal(layer.pointwise_weight, before["pointwise_weight"])
    assert not torch.equal(layer.depthwise_weight, before["depthwise_weight"])
    assert (layer.bias == 0).all()
