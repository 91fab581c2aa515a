"""The exact action of a point group on grids: one cached index table serves maps, filters and their gradients."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ._finite import PointGroup


@lru_cache(maxsize=256)
def action_table(group: PointGroup, size: tuple[int, ...], fiber: bool = False) -> NDArray[np.int64]:
    """Return where each value of a transformed array comes from, for every element of the group.

    For a planar array ``(g·a).ravel() == a.ravel()[table[g]]``, with ``(g·a)[q] = a[g⁻¹q]`` and positions
    measured from the centre of the array. With ``fiber=True`` the array has a leading group axis and
    ``(g·f)[h] = g·(f[g⁻¹h])``. An element that exchanges axes gives an array of :func:`moved_size`.

    Args:
        group: the point group.
        size: spatial sizes, one for each axis that the group acts on.
        fiber: whether the array has a leading axis of length |H|.

    Returns:
        Integer table of shape (|H|, n), n = prod(size), times |H| with a fiber; read-only.

    Raises:
        ArgumentError: the number of sizes is not the group's dimension.
    """
    if len(size) != group.dimension:
        raise ArgumentError(f"size {size} has {len(size)} axes, but {group} acts on {group.dimension}")
    points = int(np.prod(size))
    table = np.stack([_sources(matrix, size) for matrix in group.arrays])
    if fiber:
        table = (group.left_quotients[:, :, None] * points + table[:, None, :]).reshape(group.order, -1)
    table.setflags(write=False)
    return table


def moved_size(matrix: NDArray[np.int64], size: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes of an array after the element has moved its axes."""
    return tuple(size[int(np.argmax(np.abs(row)))] for row in matrix)


def _sources(matrix: NDArray[np.int64], size: tuple[int, ...]) -> NDArray[np.int64]:
    # Axis a of the result is axis b of the source, read backwards where the entry is -1.
    axes = np.argmax(np.abs(matrix), axis=1)
    signs = matrix[np.arange(len(size)), axes]
    source = np.arange(int(np.prod(size))).reshape(size).transpose(axes)
    return source[tuple(slice(None, None, int(s)) for s in signs)].ravel()
