"""Ordinary modules on the group by folding, and pooling over the group axis."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sepgroupy.functional import transform
from sepgroupy.groups import D4
from sepgroupy.nn import GroupConv2d, GroupPool, PerElement

PUBLISHED = (3, 5, 8, 4, 6)  # (B, C, |H|, Y, X)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.3}, {"affine": False}, {"track_running_stats": False}], ids=str)
def test_batch_norm_is_batch_norm_3d_on_the_published_layout(options: dict[str, Any]) -> None:
    folded, published = PerElement(nn.BatchNorm2d(5, **options)).double(), nn.BatchNorm3d(5, **options).double()
    for parameter in published.parameters():
        nn.init.normal_(parameter)
    folded.module.load_state_dict(published.state_dict(), strict=True)
    for training in (True, True, False):
        folded.train(training)
        published.train(training)
        x = torch.randn(PUBLISHED, dtype=torch.float64) * 2 + 1
        torch.testing.assert_close(folded(x), published(x), atol=1e-12, rtol=0)
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
    "module", [nn.MaxPool2d(2), nn.AvgPool2d(3, 2, 1), nn.Upsample(scale_factor=2), nn.GELU()], ids=str
)
def test_every_elements_map_goes_through_the_module(module: nn.Module) -> None:
    x = torch.randn(PUBLISHED)
    expected = torch.stack([module(x[:, :, g]) for g in range(8)], 2)
    torch.testing.assert_close(PerElement(module)(x), expected)


def test_the_number_of_channels_may_change() -> None:
    x, module = torch.randn(PUBLISHED), nn.Conv2d(5, 7, 1)
    torch.testing.assert_close(PerElement(module)(x), torch.stack([module(x[:, :, g]) for g in range(8)], 2))


def test_an_empty_batch_gives_an_empty_output() -> None:
    assert PerElement(nn.MaxPool2d(2))(torch.zeros(0, 5, 8, 4, 6)).shape == (0, 5, 8, 2, 3)
    assert GroupPool()(torch.zeros(0, 5, 8, 4, 6)).shape == (0, 5, 4, 6)


@pytest.mark.parametrize("mode", ["max", "mean"])
def test_group_pooling_takes_maximum_or_mean_over_the_elements(mode: str) -> None:
    x = torch.randn(PUBLISHED, dtype=torch.float64)
    expected = x.numpy().max(2) if mode == "max" else x.numpy().mean(2)
    torch.testing.assert_close(GroupPool(mode)(x), torch.from_numpy(expected), atol=1e-15, rtol=0)
    assert torch.equal(GroupPool()(x), torch.from_numpy(x.numpy().max(2)))


@pytest.mark.parametrize("mode", ["max", "mean"])
def test_group_pool_and_its_gradient_are_equivariant(mode: str) -> None:
    pool, layer = GroupPool(mode), GroupConv2d(5, 4, 1, group=D4, dtype=torch.float64)
    x = torch.randn(PUBLISHED, dtype=torch.float64)
    x[:, :, 3] = x[:, :, 5]  # a tie, where a maximum might pick a side
    for t in range(8):
        moved = transform(x, D4, t, group_axis=True).requires_grad_()
        still = x.clone().requires_grad_()
        torch.testing.assert_close(pool(moved), transform(pool(still), D4, t, group_axis=False))
        gradients = [torch.autograd.grad(pool(z).square().sum(), z)[0] for z in (moved, still)]
        torch.testing.assert_close(gradients[0], transform(gradients[1], D4, t, group_axis=True), atol=1e-12, rtol=0)
    assert pool(layer(x)).shape == (3, 4, 4, 6)


def test_the_description_names_module_and_mode() -> None:
    assert repr(GroupPool("mean")) == "GroupPool(mean)"
    assert "MaxPool2d" in repr(PerElement(nn.MaxPool2d(2)))
