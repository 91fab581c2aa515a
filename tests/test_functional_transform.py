"""The action on tensors: one index table for maps, filters and gradients."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch

import oracle
from sepgroupy.errors import ArgumentError
from sepgroupy.functional import transform
from sepgroupy.groups import C4, D4, PointGroup

SIZE = (2, 3, 4, 2)


@pytest.mark.parametrize("fiber", [False, True])
def test_transform_is_the_action(group: PointGroup, fiber: bool) -> None:
    size = SIZE[: group.dimension]
    x = torch.randn(2, 3, *((group.order, *size) if fiber else size))
    for g, matrix in enumerate(group.arrays):
        expected = oracle.move_fiber(x.numpy(), group, g) if fiber else oracle.move(x.numpy(), matrix)
        np.testing.assert_array_equal(transform(x, group, g, fiber).numpy(), expected)


@pytest.mark.parametrize("fiber", [False, True])
def test_one_element_after_another_is_their_product(plane_group: PointGroup, fiber: bool) -> None:
    x = torch.randn(1, plane_group.order, 3, 4)
    for g, h in itertools.product(range(plane_group.order), repeat=2):
        twice = transform(transform(x, plane_group, h, fiber), plane_group, g, fiber)
        assert torch.equal(twice, transform(x, plane_group, int(plane_group.cayley_table[g, h]), fiber))


def test_transform_is_rot90_and_flip_of_torch() -> None:
    x = torch.randn(2, 3, 5)
    for m, r in itertools.product(range(2), range(4)):
        turned = torch.rot90(x, r, (-2, -1))
        assert torch.equal(transform(x, "p4m", 4 * m + r, fiber=False), turned.flip(-2) if m else turned)


def test_a_quarter_turn_of_a_map_on_p4_moves_the_fiber_too() -> None:
    f = torch.randn(2, 4, 3, 3)
    expected = torch.stack([torch.rot90(f[:, (g - 1) % 4], 1, (-2, -1)) for g in range(4)], 1)
    assert torch.equal(transform(f, C4, 1, fiber=True), expected)


@pytest.mark.parametrize("fiber", [False, True])
def test_the_gradient_goes_back_by_the_inverse(fiber: bool) -> None:
    x = torch.randn(2, 8, 3, 4, requires_grad=True)
    for g in range(8):
        y = transform(x, D4, g, fiber)
        grad = torch.randn_like(y)
        (back,) = torch.autograd.grad(y, x, grad)
        assert torch.equal(back, transform(grad, D4, int(D4.inverses[g]), fiber))


def test_any_dtype() -> None:
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float16, torch.complex64):
        x = torch.ones(2, 3, 3).to(dtype)
        assert transform(x, "p4", 1, fiber=False).dtype == dtype


@pytest.mark.parametrize("element", [-1, 4, 100])
def test_an_element_that_is_none_is_refused(element: int) -> None:
    with pytest.raises(ArgumentError, match=rf"element \(={element}\).*0 to 3"):
        transform(torch.zeros(4, 3, 3), "p4", element, fiber=True)


@pytest.mark.parametrize(("shape", "fiber"), [((3,), False), ((3, 3), True), ((3, 3, 3), True), ((4, 8, 3, 3), True)])
def test_a_shape_that_the_group_does_not_act_on_is_refused(shape: tuple[int, ...], fiber: bool) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"x has shape {shape}")):
        transform(torch.zeros(shape), "p4", 1, fiber=fiber)
