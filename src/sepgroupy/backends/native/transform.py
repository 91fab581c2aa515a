"""The transform of the group axis that the kernels use, and the places of a filter's elements under the group."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...groups import PointGroup, action_table, fourier_basis, transformed_size
from . import library

GENERAL, CYCLIC4, DIHEDRAL4, OCTAHEDRAL, FULL_OCTAHEDRAL = 0, 4, 8, 24, 48  # as in csrc/interface.h


def _octahedral_rows() -> NDArray[np.float64]:
    """Return the rows of that transform: products of a row over the permutations of axes and one over their signs."""
    signs = np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, -1, 1], [1, -1, 1, -1]])  # none, of each axis
    even, odd = np.array([[1, 0], [0, 1]])
    first, second = np.array([2, -1, -1]), np.array([0, 1, -1]) * 3**0.5
    invariant = [np.kron(half, [1, 1, 1]) for half in (even + odd, even - odd)]
    invariant += [np.kron(even, a) + np.kron(odd, b) for a, b in ((first, first), (-second, -second))]
    invariant += [np.kron(even, a) + np.kron(odd, b) for a, b in ((second, -second), (first, -first))]
    rows = [np.kron(row, signs[0]) for row in invariant]
    for side in (1, -1):
        for i, j in np.ndindex(3, 3):  # the permutations that move axis j to i; the odd one reverses axis 1
            places = np.eye(6)[(i - j) % 3] + side * (-1) ** (i == 1) * np.eye(6)[3 + 2 * (i + j) % 3]
            rows.append(np.kron(places, signs[1 + j]))
    return np.stack(rows)


# The fast transforms of csrc/group_transform.h, row by row, and start, size and copies of their blocks.
_OCTAHEDRAL = _octahedral_rows()
_OCTAHEDRAL_BLOCKS = [(0, 1, 1), (1, 1, 1), (2, 2, 2), (6, 3, 3), (15, 3, 3)]
_FAST: dict[int, tuple[Any, list[tuple[int, int, int]]]] = {
    CYCLIC4: ([[1, 1, 1, 1], [1, -1, 1, -1], [1, 0, -1, 0], [0, 1, 0, -1]], [(0, 1, 1), (1, 1, 1), (2, 2, 1)]),
    DIHEDRAL4: (
        [
            [1, 1, 1, 1, 1, 1, 1, 1],
            [1, 1, 1, 1, -1, -1, -1, -1],
            [1, -1, 1, -1, 1, -1, 1, -1],
            [1, -1, 1, -1, -1, 1, -1, 1],
            [1, 0, -1, 0, 1, 0, -1, 0],
            [0, 1, 0, -1, 0, 1, 0, -1],
            [0, -1, 0, 1, 0, 1, 0, -1],
            [1, 0, -1, 0, -1, 0, 1, 0],
        ],
        [(0, 1, 1), (1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 2, 2)],
    ),
    OCTAHEDRAL: (_OCTAHEDRAL, _OCTAHEDRAL_BLOCKS),
    FULL_OCTAHEDRAL: (
        np.kron([[1, 1], [1, -1]], _OCTAHEDRAL),
        [(start + half, size, copies) for half in (0, 24) for start, size, copies in _OCTAHEDRAL_BLOCKS],
    ),
}


@lru_cache(maxsize=64)
def kernel_transform(group: PointGroup) -> tuple[int, NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
    """Return which transform the kernels take, the blocks, H, and the irreps scaled to go with it."""
    basis = fourier_basis(group)
    for kind, (rows, blocks) in _FAST.items():
        as_many = sum(size**2 * copies for _, size, copies in blocks) == basis.multiplications
        matrix = np.array(rows, dtype=np.float64)
        if as_many and len(matrix) == group.order and (irreps := _irreps_of(matrix, blocks, group)):
            return kind, np.array(blocks, dtype=np.int32), matrix, np.concatenate(irreps)
    found = np.array([(b.start, b.size, b.copies) for b in basis.blocks], dtype=np.int32)
    irreps = [b.irrep.reshape(-1, group.order) for b in basis.blocks]
    return GENERAL, found, np.ascontiguousarray(basis.matrix), np.concatenate(irreps)


def _irreps_of(
    rows: NDArray[np.float64], blocks: Sequence[tuple[int, int, int]], group: PointGroup
) -> list[NDArray[np.float64]] | None:
    """Return the scaled irrep of each block, (size², order), if these rows diagonalise the group's convolutions."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    basis = rows / norms
    shifts = np.tensordot(basis, basis[:, group.cayley_table], axes=(1, 1))  # Q ρ(k) Qᵀ, (row, row, k)
    shifts[np.abs(shifts) < 1e-9] = 0
    left, irreps = shifts.copy(), []
    for start, size, copies in blocks:
        irrep = shifts[start : start + size, start : start + size]
        for first in range(start, start + size * copies, size):
            left[first : first + size, first : first + size] -= irrep
        irreps.append(irrep.reshape(-1, group.order) / norms[start] ** 2)
    return irreps if np.abs(left).max() < 1e-9 else None


@lru_cache(maxsize=256)
def transformed_offsets(
    group: PointGroup, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> NDArray[np.int32]:  # (elements, order, 3)
    """Return slice, row and column of each kernel element after each group element, in pixels."""
    table = action_table(group, kernel)
    offsets = np.zeros((table.shape[1], group.order, library.AXES), dtype=np.int32)
    for g, sources in enumerate(table):
        places = np.unravel_index(np.arange(len(sources)), transformed_size(group.arrays[g], kernel))
        offsets[sources, g, -len(kernel) :] = np.stack(places, axis=1) * dilation
    return offsets
