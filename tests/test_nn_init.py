"""Fresh layers keep the scale of what passes through them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import DIAGONAL
from torch import nn

import oracle
from sepgroupy.groups import C4, D2, D4, PointGroup
from sepgroupy.nn import GroupConv2d, LiftingConv2d

KINDS = ("dense", "g", "gc")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [C4, D4, DIAGONAL], ids=["p4", "p4m", "diagonal"])
@pytest.mark.parametrize("kernel", [1, 3, 4])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_full_filter_has_the_variance_that_relu_needs(
    kind: str, group: PointGroup, kernel: int, groups: int
) -> None:
    layer = GroupConv2d(32, 64, kernel, groups=groups, group=group, kind=kind, dtype=torch.float64)
    filters = oracle.full_filter({name: p.detach().numpy() for name, p in layer.named_parameters()})
    wanted = 2 / (32 // groups * group.order * kernel**2)
    # Independent factors at least: 64 k² of a gc layer. The squares of a uniform variable scatter by 0.9 of their mean.
    assert filters.var() == pytest.approx(wanted, rel=4 * 0.9 / np.sqrt(64 * kernel**2))
    assert abs(filters.mean()) < 4 * np.sqrt(wanted / (64 * kernel**2))


@pytest.mark.parametrize("kernel", [1, 3, 4])
def test_a_lifting_filter_too(kernel: int) -> None:
    layer = LiftingConv2d(16, 128, kernel, groups=2, group="p4m")
    wanted = 2 / (8 * kernel**2)
    assert layer.weight.var().item() == pytest.approx(wanted, rel=4 * 0.9 / np.sqrt(128 * 8 * kernel**2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [C4, D2, D4], ids=["p4", "p2mm", "p4m"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_deep_stack_without_norm_keeps_its_mean_square(kind: str, group: PointGroup, kernel: int) -> None:
    ratios = []
    for _ in range(4):
        options: dict[str, Any] = {"padding": kernel // 2, "padding_mode": "circular", "group": group}
        layers: list[nn.Module] = [LiftingConv2d(3, 32, kernel, **options), nn.ReLU()]
        for _ in range(20):
            layers += [GroupConv2d(32, 32, kernel, kind=kind, **options), nn.ReLU()]
        with torch.no_grad():
            x = torch.randn(2, 3, 5, 5)
            ratios.append((nn.Sequential(*layers)(x).square().mean() / x.square().mean()).item())
    assert 1 / 4 < np.exp(np.mean(np.log(ratios))) < 4


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


def test_reset_draws_anew() -> None:
    layer: Any = GroupConv2d(4, 4, 3, group="p4", kind="gc")
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    nn.init.ones_(layer.bias)
    layer.reset_parameters()
    assert not torch.equal(layer.pointwise_weight, before["pointwise_weight"])
    assert not torch.equal(layer.depthwise_weight, before["depthwise_weight"])
    assert (layer.bias == 0).all()
