"""Finite point groups as frozen values: elements, Cayley table, inverses, subgroups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .._constants import Constant
from ..errors import ArgumentError

Matrix = tuple[tuple[int, ...], ...]
Matrices: TypeAlias = Iterable[Sequence[Sequence[int]] | NDArray[Any]]
"""Generators as a user may write them: lists, tuples or arrays of integers."""


@dataclass(frozen=True)
class PointGroup(Constant):
    """A finite group of signed permutation matrices, symmetries of the grid in d dimensions.

    A matrix acts on positions ``(axis 0, axis 1, …)`` measured from the centre of an array: in two
    dimensions on (row, column). Two groups are equal when their elements are, in the same order,
    because that order is the layout of every feature map and filter on the group.

    Create a group by :meth:`generate`; :func:`as_group` also takes names and lists of generators.

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
            ArgumentError: a generator is not a signed permutation matrix, or the generators differ in size.
        """
        if isinstance(generators, str) or not isinstance(generators, Iterable):
            raise ArgumentError(f"generators (={generators!r}) must be a list of signed permutation matrices")
        matrices = [_parse(m) for m in generators]
        if not matrices:
            raise ArgumentError("generators is empty: give at least one matrix, e.g. the identity")
        if len({len(m) for m in matrices}) > 1:
            raise ArgumentError(f"generators differ in size: {[len(m) for m in matrices]}")
        elements = [identity(len(matrices[0]))]
        for count, generator in enumerate(matrices, start=1):
            if generator in elements:
                continue
            subgroup, representatives = list(elements), [elements[0]]
            for representative in representatives:  # grows while it is read
                for factor in reversed(matrices[:count]):
                    candidate = product(factor, representative)
                    if candidate not in elements:
                        representatives.append(candidate)
                        elements += [product(candidate, h) for h in subgroup]
        return cls(tuple(elements), name)

    def __post_init__(self) -> None:
        if not all(_is_signed_permutation(element) for element in self.elements):
            raise ArgumentError("elements must be signed permutation matrices: use PointGroup.generate")
        found = set(self.elements)
        if len(found) != len(self.elements) or self.elements[:1] != (identity(self.dimension),):
            raise ArgumentError("elements must be distinct and begin with the identity: use PointGroup.generate")
        if any(product(a, b) not in found for a in self.elements for b in self.elements):
            raise ArgumentError("elements are not closed under the product: use PointGroup.generate")
        self.name_constant()

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
        return _frozen([[index[product(g, h)] for h in self.elements] for g in self.elements])

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

    @property
    def actions(self) -> tuple[str, ...]:
        """The action of each element on an image x, as a method call of ``torch.Tensor``.

        >>> PointGroup.generate([[[0, -1], [1, 0]]]).actions[:2]
        ('x', 'x.rot90(1, (-2, -1))')
        """
        return tuple(action_text(element) for element in self.elements)

    def is_subgroup_of(self, other: PointGroup) -> bool:
        """Whether every element is an element of ``other``, in any order."""
        return set(self.elements) <= set(other.elements)

    def __reduce__(self) -> tuple[type[PointGroup], tuple[tuple[Matrix, ...], str]]:
        return type(self), (self.elements, self.name)  # tables are computed again, read-only

    def __repr__(self) -> str:
        return f"PointGroup({self.name or '?'}, order={self.order}, dimension={self.dimension})"


def _parse(matrix: Sequence[Sequence[int]] | NDArray[Any]) -> Matrix:
    # Without numpy, so that torch.compile can trace a group that is written as a list.
    rows: Any = matrix.tolist() if hasattr(matrix, "tolist") else matrix
    if not (isinstance(rows, Sequence) and all(isinstance(row, (Sequence, np.ndarray)) for row in rows)):
        parsed: Any = ()
    else:
        parsed = tuple(tuple(row) for row in rows)
    if not _is_signed_permutation(parsed):
        raise ArgumentError(
            f"generator {matrix} is not a signed permutation matrix: it must be square, with one entry +1 or -1 in "
            "each row and column and 0 elsewhere"
        )
    return tuple(tuple(int(entry) for entry in row) for row in parsed)


def _is_signed_permutation(rows: Any) -> bool:
    """Whether tuples of rows are a square matrix with one entry ±1 in each row and column, 0 elsewhere."""
    if not rows or any(len(row) != len(rows) for row in rows):
        return False
    if not all(isinstance(entry, (int, float, np.number)) and entry in (-1, 0, 1) for row in rows for entry in row):
        return False
    return all(sum(abs(entry) for entry in line) == 1 for line in (*rows, *zip(*rows, strict=True)))


def identity(size: int) -> Matrix:
    """Return the identity matrix."""
    return tuple(tuple(int(i == j) for j in range(size)) for i in range(size))


def product(a: Matrix, b: Matrix) -> Matrix:
    return tuple(
        tuple(sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*b, strict=True)) for row in a
    )


def axes_and_flips(element: Matrix) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the axes of the transpose, then the flipped axes of its result, by which an element acts on an array."""
    axes = tuple(next(axis for axis, entry in enumerate(row) if entry) for row in element)
    return axes, tuple(axis for axis, row in enumerate(element) if row[axes[axis]] < 0)


def action_text(element: Matrix) -> str:
    """Return the action of an element on an array x, as a method call of ``torch.Tensor``."""
    axes, flips = axes_and_flips(element)
    size = len(element)
    if size == 2:
        exchanged = axes == (1, 0)
        rotations = {(False, (0, 1)): 2, (True, (0,)): 1, (True, (1,)): 3}
        if count := rotations.get((exchanged, flips)):
            return f"x.rot90({count}, (-2, -1))"
        transposed = ".mT" if exchanged else ""
    else:
        sources = tuple(axis - size for axis in axes)
        targets = tuple(range(-size, 0))
        transposed = f".movedim({sources}, {targets})" if sources != targets else ""
    flipped = f".flip({', '.join(str(axis - size) for axis in flips)})" if flips else ""
    return f"x{transposed}{flipped}"


def axis_names(dimension: int) -> tuple[str, ...]:
    """Return the names of the spatial axes: ("Y", "X") of images, ("Z", "Y", "X") of volumes.

    >>> axis_names(2)
    ('Y', 'X')
    """
    return ("Z", "Y", "X")[-dimension:] if dimension <= 3 else tuple(f"N{axis}" for axis in range(dimension))


def _frozen(values: object) -> NDArray[np.int64]:
    array = np.array(values, dtype=np.int64)
    array.setflags(write=False)
    return array
