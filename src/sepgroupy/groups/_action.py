"""The exact action of a point group on arrays: as steps for images, as an index table for filters."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ._finite import Matrix, PointGroup, axes_and_flips, product

CACHED_ENTRIES = 2**16
"""Entries of the largest cached table (512 KiB): tables of kernels up to 31×31 on p4m fit, tables of images do not."""


class ElementSteps(NamedTuple):
    """An element's action on an array: transpose to ``axes``, flip ``flips``, select ``sources`` on the group axis."""

    axes: tuple[int, ...]
    flips: tuple[int, ...]
    sources: tuple[int, ...]


def steps_of(group: PointGroup, element: int) -> ElementSteps:
    """Return the action of an element t, in integers: ``(t·f)[g] = flip(transpose(f[sources[g]], axes), flips)``.

    The function computes in Python integers, so that ``torch.compile`` can trace it.

    >>> from sepgroupy.groups import C4
    >>> steps_of(C4, 1)
    ElementSteps(axes=(1, 0), flips=(0,), sources=(3, 0, 1, 2))
    """
    matrix = group.elements[element]
    inverse = tuple(zip(*matrix, strict=True))  # of a signed permutation, its transpose
    axes, flips = axes_and_flips(matrix)
    index = {h: i for i, h in enumerate(group.elements)}
    return ElementSteps(axes, flips, tuple(index[product(inverse, h)] for h in group.elements))


def action_table(group: PointGroup, size: tuple[int, ...], group_axis: bool = False) -> NDArray[np.int64]:
    """Return the source index of each value of a transformed array, for every group element.

    For an array without group axis ``(g·a).ravel() == a.ravel()[table[g]]``, with ``(g·a)[q] = a[g⁻¹q]`` and
    positions measured from the centre of the array. With ``group_axis=True`` the array has a leading group axis and
    ``(g·f)[h] = g·(f[g⁻¹h])``. An element that exchanges axes gives an array of :func:`transformed_size`.

    Tables of kernels are cached, tables of images are not. To transform images use
    :func:`sepgroupy.functional.transform`, which needs no table.

    Args:
        group: the point group.
        size: spatial sizes, one for each axis that the group acts on.
        group_axis: whether the array has a leading axis of length |H|.

    Returns:
        Integer table of shape (|H|, n), n = prod(size), times |H| with a group axis; read-only.

    Raises:
        ArgumentError: the number of sizes is not the group's dimension.
    """
    if len(size) != group.dimension:
        raise ArgumentError(f"size {size} has {len(size)} axes, but {group} acts on {group.dimension}")
    entries = group.order * int(np.prod(size)) * (group.order if group_axis else 1)
    build = _cached_table if entries <= CACHED_ENTRIES else _build_table
    return build(group, tuple(size), bool(group_axis))


def _build_table(group: PointGroup, size: tuple[int, ...], group_axis: bool) -> NDArray[np.int64]:
    points = int(np.prod(size))
    table = np.stack([_sources(element, size) for element in group.elements])
    if group_axis:
        table = (group.left_quotients[:, :, None] * points + table[:, None, :]).reshape(group.order, -1)
    table.setflags(write=False)
    return table


_cached_table = lru_cache(maxsize=64)(_build_table)


def transformed_size(matrix: NDArray[np.int64], size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the spatial sizes of an array after the element has acted on it."""
    return tuple(size[int(np.argmax(np.abs(row)))] for row in matrix)


def _sources(element: Matrix, size: tuple[int, ...]) -> NDArray[np.int64]:
    axes, flips = axes_and_flips(element)
    return np.flip(np.arange(int(np.prod(size))).reshape(size).transpose(axes), flips).ravel()
