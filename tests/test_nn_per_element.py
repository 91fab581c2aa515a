"""Ordinary modules on the group by folding, and pooling over the group axis."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from conftest import GROUPS
from sepgroupy.functional import transform
from sepgroupy.groups import D4, PointGroup
from sepgroupy.nn import GROUP_CONVS, GroupPool, PerElement

PUBLISHED = (3, 5, 8, 4, 6)  # (B, C, |H|, Y, X)
SHAPES = {1: (3, 5, 2, 9), 2: PUBLISHED, 3: (3, 5, 8, 4, 6, 2)}
"""Shapes of group feature maps by the number of spatial axes."""
BATCH_NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@pytest.mark.parametrize("dimension", SHAPES)
@pytest.mark.parametrize("options", [{}, {"momentum": 0.3}, {"affine": False}, {"track_running_stats": False}], ids=str)
def test_batch_norm_takes_the_statistics_of_a_channel_over_the_group_too(
    options: dict[str, Any], dimension: int
) -> None:
    folded = PerElement(BATCH_NORMS[dimension](5, **options), dimension).double()
    published = nn.BatchNorm1d(5, **options).double()  # of (B, C, all other axes)
    for parameter in published.parameters():
        nn.init.normal_(parameter)
    folded.module.load_state_dict(published.state_dict(), strict=True)
    for training in (True, True, False):
        folded.train(training)
        published.train(training)
        x = torch.randn(SHAPES[dimension], dtype=torch.float64) * 2 + 1
        torch.testing.assert_close(folded(x), published(x.flatten(2)).view_as(x), atol=1e-12, rtol=0)
        torch.testing.assert_close(folded.module.state_dict(), published.state_dict(), atol=1e-12, rtol=0)


def test_batch_norm_has_the_gradients_of_batch_norm_3d() -> None:
    x = torch.randn(PUBLISHED, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    gradients = [
        torch.autograd.grad((norm(x) * weight).sum(), x)[0]
        for norm in (PerElement(nn.BatchNorm2d(5)).double(), nn.BatchNorm3d(5).double())
    ]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("dimension", "module"),
    [
        (1, nn.MaxPool1d(2)),
        (1, nn.Conv1d(5, 7, 1)),
        (2, nn.MaxPool2d(2)),
        (2, nn.AvgPool2d(3, 2, 1)),
        (2, nn.Upsample(scale_factor=2)),
        (2, nn.GELU()),
        (2, nn.Conv2d(5, 7, 1)),
        (3, nn.AvgPool3d(2)),
        (3, nn.Upsample(scale_factor=2, mode="trilinear")),
        (3, nn.Conv3d(5, 7, 1)),
    ],
    ids=str,
)
def test_every_elements_map_goes_through_the_module(dimension: int, module: nn.Module) -> None:
    x = torch.randn(SHAPES[dimension])
    expected = torch.stack([module(x[:, :, g]) for g in range(x.shape[2])], 2)
    torch.testing.assert_close(PerElement(module, dimension)(x), expected)


def test_an_empty_batch_gives_an_empty_output() -> None:
    assert PerElement(nn.MaxPool2d(2))(torch.zeros(0, 5, 8, 4, 6)).shape == (0, 5, 8, 2, 3)
    assert GroupPool()(torch.zeros(0, 5, 8, 4, 6)).shape == (0, 5, 4, 6)


@pytest.mark.parametrize("dimension", SHAPES)
@pytest.mark.parametrize("mode", ["max", "mean"])
def test_group_pooling_takes_maximum_or_mean_over_the_elements(mode: str, dimension: int) -> None:
    x = torch.randn(SHAPES[dimension], dtype=torch.float64)
    expected = x.numpy().max(2) if mode == "max" else x.numpy().mean(2)
    torch.testing.assert_close(GroupPool(mode, dimension)(x), torch.from_numpy(expected), atol=1e-15, rtol=0)
    assert torch.equal(GroupPool(dimension=dimension)(x), torch.from_numpy(x.numpy().max(2)))


@pytest.mark.parametrize("group", [GROUPS[1][0], D4, GROUPS[3][0]], ids=str)
@pytest.mark.parametrize("mode", ["max", "mean"])
def test_group_pool_and_its_gradient_are_equivariant(mode: str, group: PointGroup) -> None:
    pool, shape = GroupPool(mode, group.dimension), SHAPES[group.dimension]
    layer = GROUP_CONVS[group.dimension](5, 4, 1, group=group, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    x[:, :, 0] = x[:, :, -1]  # a tie, where a maximum might pick a side
    for t in range(group.order):
        moved = transform(x, group, t, group_axis=True).requires_grad_()
        still = x.clone().requires_grad_()
        torch.testing.assert_close(pool(moved), transform(pool(still), group, t, group_axis=False))
        gradients = [torch.autograd.grad(pool(z).square().sum(), z)[0] for z in (moved, still)]
        torch.testing.assert_close(gradients[0], transform(gradients[1], group, t, group_axis=True), atol=1e-12, rtol=0)
    assert pool(layer(x)).shape == (3, 4, *shape[3:])


def test_the_description_names_module_and_mode() -> None:
    assert repr(GroupPool("mean")) == "GroupPool(mean)"
    assert "MaxPool2d" in repr(PerElement(nn.MaxPool2d(2)))
