"""The exact action on grids, for every group and on sizes of every shape."""

from __future__ import annotations

import gc
import itertools
import weakref

import numpy as np
import pytest
import torch

import oracle
from sepgroupy.errors import ArgumentError
from sepgroupy.groups import C2, C4, D4, PointGroup, action_table, steps_of, transformed_size

SIZES: dict[int, list[tuple[int, ...]]] = {
    1: [(1,), (4,), (5,)],
    2: [(1, 1), (3, 3), (4, 4), (2, 5), (4, 1)],
    3: [(2, 2, 2), (2, 3, 4)],
    4: [(2, 1, 3, 2)],
}


@pytest.mark.parametrize("group_axis", [False, True])
def test_table_moves_arrays_as_the_definition_does(group: PointGroup, group_axis: bool) -> None:
    for size in SIZES[group.dimension]:
        a = np.random.default_rng(0).random((group.order, *size) if group_axis else size)
        table = action_table(group, size, group_axis)
        assert table.shape == (group.order, a.size)
        for g, matrix in enumerate(group.arrays):
            expected = oracle.move_feature_map(a, group, g) if group_axis else oracle.move(a, matrix)
            np.testing.assert_array_equal(a.ravel()[table[g]], expected.ravel())
            assert transformed_size(matrix, size) == expected.shape[group_axis:]


@pytest.mark.parametrize("group_axis", [False, True])
def test_the_action_is_a_homomorphism(group: PointGroup, group_axis: bool) -> None:
    for size in SIZES[group.dimension]:
        first = action_table(group, size, group_axis)
        for g, h in itertools.product(range(group.order), repeat=2):
            then = action_table(group, transformed_size(group.arrays[h], size), group_axis)[g]
            np.testing.assert_array_equal(first[group.cayley_table[g, h]], first[h][then])  # (g·h)·a = g·(h·a)


def test_the_identity_moves_nothing(group: PointGroup) -> None:
    for size in SIZES[group.dimension]:
        np.testing.assert_array_equal(action_table(group, size)[0], np.arange(np.prod(size)))


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (4, 4), (2, 5), (4, 3)])
def test_p4_and_p4m_are_rotations_and_flips_of_torch(size: tuple[int, int]) -> None:
    x = torch.arange(size[0] * size[1]).reshape(size)
    for r in range(4):
        rotated = torch.rot90(x, r, (-2, -1))
        for m in range(2):
            expected = (rotated.flip(-2) if m else rotated).ravel().numpy()
            np.testing.assert_array_equal(action_table(D4, size)[4 * m + r], expected)
        np.testing.assert_array_equal(action_table(C4, size)[r], rotated.ravel().numpy())


def test_steps_are_the_action_too(group: PointGroup) -> None:
    for size in SIZES[group.dimension]:
        f = np.random.default_rng(0).random((group.order, *size))
        for g in range(group.order):
            steps = steps_of(group, g)
            moved = np.stack([np.flip(f[h].transpose(steps.axes), steps.flips) for h in steps.sources])
            np.testing.assert_array_equal(moved, oracle.move_feature_map(f, group, g))


def test_the_table_of_an_image_is_not_cached() -> None:
    gc.collect()
    size = (300, 300)
    table = weakref.ref(action_table(D4, size))
    gc.collect()
    assert table() is None
    np.testing.assert_array_equal(action_table(D4, size)[4], np.arange(300 * 300).reshape(size)[::-1].ravel())
    assert action_table(D4, (31, 31), True) is action_table(D4, (31, 31), True)  # a large kernel's is


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
