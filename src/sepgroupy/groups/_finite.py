"""Finite point groups as frozen values: elements, Cayley table, inverses, subgroups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError

Matrix = tuple[tuple[int, ...], ...]
Matrices = Iterable[Sequence[Sequence[int]]]  # what a user may write: lists, tuples or arrays of integers


@dataclass(frozen=True)
class PointGroup:
    """A finite group of signed permutation matrices, the symmetries of the square grid in d dimensions.

    A matrix acts on positions ``(axis 0, axis 1, …)`` measured from the centre of an array: in two
    dimensions on (row, column). Two groups are equal when their elements are, in the same order,
    because that order is the layout of every feature map and filter on the group.

    Make one with :meth:`generate`; ``as_group`` also understands names and lists of generators.

    >>> group = PointGroup.generate([[[0, -1], [1, 0]]], name="p4")
    >>> group.order, int(group.cayley_table[1, 3]), group.inverses.tolist()
    (4, 0, [0, 3, 2, 1])
    """

    elements: tuple[Matrix, ...]
    name: str = field(default="", compare=False)

    @classmethod
    def generate(cls, generators: Matrices, name: str = "") -> PointGroup:
        """Return the group that the matrices generate.

        Elements come coset by coset: those of the first generators ``H₀``, then ``s·H₀``, and so on for
        each further generator ``s``. From (R, F) this gives ``F^m R^r`` at index ``4m + r``.

        Raises:
            ArgumentError: a generator is no signed permutation matrix, or they differ in size.
        """
        if isinstance(generators, str) or not isinstance(generators, Iterable):
            raise ArgumentError(f"generators (={generators!r}) must be a list of signed permutation matrices")
        matrices = [_parse(m) for m in generators]
        if not matrices:
            raise ArgumentError("generators is empty: give at least one matrix, e.g. the identity")
        if len({len(m) for m in matrices}) > 1:
            raise ArgumentError(f"generators differ in size: {[len(m) for m in matrices]}")
        elements = [_identity(len(matrices[0]))]
        for count, generator in enumerate(matrices, start=1):
            if generator in elements:
                continue
            subgroup, representatives = list(elements), [elements[0]]
            for representative in representatives:  # grows while it is read
                for factor in reversed(matrices[:count]):
                    candidate = _product(factor, representative)
                    if candidate not in elements:
                        representatives.append(candidate)
                        elements += [_product(candidate, h) for h in subgroup]
        return cls(tuple(elements), name)

    def __post_init__(self) -> None:
        if not all(_is_signed_permutation(np.asarray(element)) for element in self.elements):
            raise ArgumentError("elements must be signed permutation matrices: use PointGroup.generate")
        found = set(self.elements)
        if len(found) != len(self.elements) or self.elements[:1] != (_identity(self.dimension),):
            raise ArgumentError("elements must be distinct and begin with the identity: use PointGroup.generate")
        if any(_product(a, b) not in found for a in self.elements for b in self.elements):
            raise ArgumentError("elements are not closed under the product: use PointGroup.generate")

    @property
    def order(self) -> int:
        """The number of elements, ``|H|``."""
        return len(self.elements)

    @property
    def dimension(self) -> int:
        """The number of spatial axes that the group acts on."""
        return len(self.elements[0]) if self.elements else 0

    @cached_property
    def cayley_table(self) -> NDArray[np.int64]:
        """``table[g, h]`` is the index of the product g·h; shape (|H|, |H|)."""
        index = {element: i for i, element in enumerate(self.elements)}
        return _frozen([[index[_product(g, h)] for h in self.elements] for g in self.elements])

    @cached_property
    def inverses(self) -> NDArray[np.int64]:
        """``inverses[g]`` is the index of g⁻¹; shape (|H|,)."""
        return _frozen(np.argmin(self.cayley_table, axis=1))

    @cached_property
    def left_quotients(self) -> NDArray[np.int64]:
        """``table[g, h]`` is the index of g⁻¹·h; shape (|H|, |H|)."""
        return _frozen(self.cayley_table[self.inverses])

    @cached_property
    def arrays(self) -> NDArray[np.int64]:
        """The elements as integer matrices, shape (|H|, d, d)."""
        return _frozen(self.elements)

    def is_subgroup_of(self, other: PointGroup) -> bool:
        """Whether every element is one of ``other``'s; the order of elements does not matter."""
        return set(self.elements) <= set(other.elements)

    def __reduce__(self) -> tuple[type[PointGroup], tuple[tuple[Matrix, ...], str]]:
        return type(self), (self.elements, self.name)  # tables are made again, read-only

    def __repr__(self) -> str:
        return f"PointGroup({self.name or '?'}, order={self.order}, dimension={self.dimension})"


def _parse(matrix: Sequence[Sequence[int]]) -> Matrix:
    try:
        array = np.asarray(matrix)
    except ValueError:  # rows of unequal length
        array = np.empty(0)
    if not _is_signed_permutation(array):
        raise ArgumentError(
            f"generator {matrix} is no signed permutation matrix: it must be square, with one entry +1 or -1 in each "
            "row and column and 0 elsewhere"
        )
    return tuple(tuple(int(v) for v in row) for row in array)


def _is_signed_permutation(array: NDArray[np.int64]) -> bool:
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.size == 0 or not np.isin(array, (-1, 0, 1)).all():
        return False
    return bool((np.abs(array).sum(0) == 1).all() and (np.abs(array).sum(1) == 1).all())


def _identity(size: int) -> Matrix:
    return tuple(tuple(int(i == j) for j in range(size)) for i in range(size))


def _product(a: Matrix, b: Matrix) -> Matrix:
    return tuple(
        tuple(sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*b, strict=True)) for row in a
    )


def _frozen(values: object) -> NDArray[np.int64]:
    array = np.array(values, dtype=np.int64)
    array.setflags(write=False)
    return array


_TURN = ((0, -1), (1, 0))  # R: 90° counter-clockwise, torch.rot90(x, 1, (-2, -1))
_FLIP = ((-1, 0), (0, 1))  # F: rows in reverse order, x.flip(-2)
_HALF_TURN = ((-1, 0), (0, -1))

C1 = PointGroup.generate([_identity(2)], "p1")
C2 = PointGroup.generate([_HALF_TURN], "p2")
C4 = PointGroup.generate([_TURN], "p4")
D1 = PointGroup.generate([_FLIP], "pm")
D2 = PointGroup.generate([_HALF_TURN, _FLIP], "p2mm")
D4 = PointGroup.generate([_TURN, _FLIP], "p4m")

_NAMES = {g.name: g for g in (C1, C2, C4, D1, D2, D4)} | {
    "c1": C1,
    "c2": C2,
    "c4": C4,
    "d1": D1,
    "d2": D2,
    "d4": D4,
}


def as_group(group: PointGroup | str | Matrices) -> PointGroup:
    """Parse what a user calls a group: a PointGroup, a name (``"p4m"`` or ``"D4"``, in any case) or generators.

    >>> as_group("P4M") is D4
    True
    >>> as_group([[[0, 1], [1, 0]]]).order  # the mirror in the diagonal
    2

    Raises:
        ArgumentError: the name is unknown or the generators are no signed permutation matrices.
    """
    if isinstance(group, PointGroup):
        return group
    if isinstance(group, str):
        if group.lower() not in _NAMES:
            raise ArgumentError(f"group {group!r} is unknown: use one of {', '.join(_NAMES)}, or a list of generators")
        return _NAMES[group.lower()]
    if not isinstance(group, Iterable):
        raise ArgumentError(f"group (={group!r}) must be a PointGroup, a name such as 'p4m', or a list of generators")
    return PointGroup.generate(group)
