"""The exact action on grids, for every group and on sizes of every shape."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import oracle
from sepgroupy.errors import ArgumentError
from sepgroupy.groups import C2, C4, D4, PointGroup, action_table, moved_size

SIZES: dict[int, list[tuple[int, ...]]] = {
    1: [(1,), (4,), (5,)],
    2: [(1, 1), (3, 3), (4, 4), (2, 5), (4, 1)],
    3: [(2, 2, 2), (2, 3, 4)],
    4: [(2, 1, 3, 2)],
}


@pytest.mark.parametrize("fiber", [False, True])
def test_table_moves_arrays_as_the_definition_does(group: PointGroup, fiber: bool) -> None:
    for size in SIZES[group.dimension]:
        a = np.random.default_rng(0).random((group.order, *size) if fiber else size)
        table = action_table(group, size, fiber)
        assert table.shape == (group.order, a.size)
        for g, matrix in enumerate(group.arrays):
            expected = oracle.move_fiber(a, group, g) if fiber else oracle.move(a, matrix)
            np.testing.assert_array_equal(a.ravel()[table[g]], expected.ravel())
            assert moved_size(matrix, size) == expected.shape[fiber:]


@pytest.mark.parametrize("fiber", [False, True])
def test_the_action_is_a_homomorphism(group: PointGroup, fiber: bool) -> None:
    for size in SIZES[group.dimension]:
        first = action_table(group, size, fiber)
        for g, h in itertools.product(range(group.order), repeat=2):
            then = action_table(group, moved_size(group.arrays[h], size), fiber)[g]
            np.testing.assert_array_equal(first[group.cayley_table[g, h]], first[h][then])  # (g·h)·a = g·(h·a)


def test_the_identity_moves_nothing(group: PointGroup) -> None:
    for size in SIZES[group.dimension]:
        np.testing.assert_array_equal(action_table(group, size)[0], np.arange(np.prod(size)))


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (4, 4), (2, 5), (4, 3)])
def test_p4_and_p4m_are_turns_and_flips_of_torch(size: tuple[int, int]) -> None:
    x = torch.arange(size[0] * size[1]).reshape(size)
    for r in range(4):
        turned = torch.rot90(x, r, (-2, -1))
        for m in range(2):
            expected = (turned.flip(-2) if m else turned).ravel().numpy()
            np.testing.assert_array_equal(action_table(D4, size)[4 * m + r], expected)
        np.testing.assert_array_equal(action_table(C4, size)[r], turned.ravel().numpy())


def test_the_table_is_made_once_and_cannot_be_changed() -> None:
    table = action_table(D4, (3, 3), True)
    assert table is action_table(D4, (3, 3), True)
    assert table.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        table[0, 0] = 1


@pytest.mark.parametrize("size", [(3,), (3, 3, 3), ()])
def test_a_size_of_another_dimension_is_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"size \(.*p2.* 2"):
        action_table(C2, size)
