"""Filter banks against the definition, and the gradient of expanding a filter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import oracle
from sepgroupy.backends import ConvSpec, expand_filter, full_filter, group_index, spatial_index
from sepgroupy.groups import D2, D4, PointGroup


def index_table(group: PointGroup, kernel: tuple[int, int], group_axis: bool) -> torch.Tensor:
    (table,) = (group_index if group_axis else spatial_index)(ConvSpec(group, "dense", kernel), torch.device("cpu"))
    return table


@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)])
@pytest.mark.parametrize("group_axis", [False, True])
def test_the_bank_holds_every_transformed_filter(
    plane_group: PointGroup, kernel: tuple[int, int], group_axis: bool
) -> None:
    groups = 1 + kernel[0] % 2  # in one block of channels, or in two
    order = plane_group.order
    weight = torch.randn(4, 3, order if group_axis else 1, *kernel)
    bank = expand_filter(weight, index_table(plane_group, kernel, group_axis), groups)
    banks = bank.numpy().reshape(
        groups, order, 4 // groups, weight.shape[2], 3, *kernel
    )  # rows (block, g, o), cols (h, i)
    for g, matrix in enumerate(plane_group.arrays):
        moved = (
            oracle.move_feature_map(weight.numpy(), plane_group, g)
            if group_axis
            else oracle.move(weight.numpy(), matrix)
        )
        for o in range(4):
            block, within = divmod(o, 4 // groups)
            np.testing.assert_array_equal(banks[block, g, within].swapaxes(0, 1), moved[o])


@pytest.mark.parametrize("kernel", [(2, 3), (1, 4)])
def test_the_bank_of_rectangular_filters(kernel: tuple[int, int]) -> None:
    weight = torch.randn(2, 1, 4, *kernel)
    bank = expand_filter(weight, index_table(D2, kernel, True)).numpy().reshape(4, 2, 4, *kernel)
    for g in range(4):
        np.testing.assert_array_equal(bank[g], oracle.move_feature_map(weight.numpy()[:, 0], D2, g))


@pytest.mark.parametrize("depthwise_shape", [(3, 2, 5, 5), (3, 1, 1, 5, 5)], ids=["g", "gc"])
def test_full_filter_is_the_product_of_the_factors(depthwise_shape: tuple[int, ...]) -> None:
    factors = {
        "depthwise_weight": torch.randn(depthwise_shape, dtype=torch.float64),
        "pointwise_weight": torch.randn(3, 2, 4, 1, 1, dtype=torch.float64),
    }
    expected = oracle.full_filter({name: factor.numpy() for name, factor in factors.items()})
    np.testing.assert_array_equal(full_filter(**factors).numpy(), expected)


@pytest.mark.parametrize("group_axis", [False, True])
def test_the_gradient_of_the_bank_is_its_transpose(plane_group: PointGroup, group_axis: bool) -> None:
    table = index_table(plane_group, (3, 3), group_axis)
    order = plane_group.order
    weight = torch.randn(4, 3, order if group_axis else 1, 3, 3, dtype=torch.float64, requires_grad=True)
    other = torch.randn_like(weight)
    bank = expand_filter(weight, table, 2)
    cotangent = torch.randn_like(bank)
    (grad,) = torch.autograd.grad(bank, weight, cotangent)
    torch.testing.assert_close((grad * other).sum(), (expand_filter(other, table, 2) * cotangent).sum())
    assert torch.autograd.gradgradcheck(lambda w: expand_filter(w, table, 2), weight, fast_mode=True)


def test_vmap_over_a_batch_of_weights() -> None:
    table = index_table(D4, (3, 3), True)
    weights = torch.randn(5, 4, 2, 8, 3, 3)
    banks = torch.func.vmap(lambda weight: expand_filter(weight, table, 2))(weights)
    assert torch.equal(banks, torch.stack([expand_filter(weight, table, 2) for weight in weights]))


def test_vmap_over_gradients() -> None:
    table = index_table(D4, (2, 2), True)
    weights, targets = torch.randn(3, 1, 1, 8, 2, 2), torch.randn(3, 8, 8, 2, 2)

    def loss(weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (expand_filter(weight, table) * target).sum()

    together = torch.func.vmap(torch.func.grad(loss))(weights, targets)
    apart = torch.stack([torch.func.grad(loss)(w, t) for w, t in zip(weights, targets, strict=True)])
    torch.testing.assert_close(together, apart)
