"""Named point groups in one, two and three dimensions, and the conversion of a user's argument to a group."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from ..errors import ArgumentError
from ._finite import Matrices, Matrix, PointGroup, identity

_ROT90 = ((0, -1), (1, 0))  # R: 90° counter-clockwise, x.rot90(1, (-2, -1))
_ROT180 = ((-1, 0), (0, -1))
_VFLIP = ((-1, 0), (0, 1))  # F: rows in reverse order, x.flip(-2)
_HFLIP = ((1, 0), (0, -1))  # columns in reverse order, x.flip(-1)
_DIAGONAL = ((0, 1), (1, 0))  # x.mT
_ANTIDIAGONAL = ((0, -1), (-1, 0))  # x.mT.flip(-2, -1)

# In three dimensions matrices act on (z, y, x). Rotations about the first axis come first, as in p4 and p4m.
_Z_ROT90 = ((1, 0, 0), (0, 0, -1), (0, 1, 0))
_Z_ROT180 = ((1, 0, 0), (0, -1, 0), (0, 0, -1))
_X_ROT180 = ((-1, 0, 0), (0, -1, 0), (0, 0, 1))
_CYCLE = ((0, 0, 1), (1, 0, 0), (0, 1, 0))  # 120° about a diagonal of the cube
_INVERSION = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
_Z_FLIP = ((-1, 0, 0), (0, 1, 0), (0, 0, 1))
_Y_FLIP = ((1, 0, 0), (0, -1, 0), (0, 0, 1))
_YX_DIAGONAL = ((1, 0, 0), (0, 0, 1), (0, 1, 0))  # exchanges y and x

_GENERATORS: dict[int, dict[str, tuple[Matrix, ...]]] = {
    2: {
        "p1": (identity(2),),
        "p2": (_ROT180,),
        "p4": (_ROT90,),
        "hflip": (_HFLIP,),
        "pm": (_VFLIP,),
        "diagonal": (_DIAGONAL,),
        "antidiagonal": (_ANTIDIAGONAL,),
        "p2mm": (_ROT180, _VFLIP),
        "diagonals": (_ROT180, _DIAGONAL),
        "p4m": (_ROT90, _VFLIP),
    },
    3: {
        "C1": (identity(3),),
        "Ci": (_INVERSION,),
        "Cs": (_Z_FLIP,),
        "C2": (_Z_ROT180,),
        "C2v": (_Z_ROT180, _Y_FLIP),
        "C2h": (_Z_ROT180, _Z_FLIP),
        "D2": (_Z_ROT180, _X_ROT180),
        "D2h": (_Z_ROT180, _X_ROT180, _INVERSION),
        "C4": (_Z_ROT90,),
        "C4v": (_Z_ROT90, _Y_FLIP),
        "C4h": (_Z_ROT90, _Z_FLIP),
        "D4": (_Z_ROT90, _X_ROT180),
        "D4h": (_Z_ROT90, _X_ROT180, _Z_FLIP),
        "T": (_Z_ROT180, _X_ROT180, _CYCLE),
        "Td": (_Z_ROT180, _X_ROT180, _CYCLE, _YX_DIAGONAL),
        "Th": (_Z_ROT180, _X_ROT180, _CYCLE, _INVERSION),
        "O": (_Z_ROT180, _X_ROT180, _CYCLE, _Z_ROT90),
        "Oh": (_Z_ROT180, _X_ROT180, _CYCLE, _Z_ROT90, _INVERSION),
    },
    1: {"C1": (identity(1),), "reflection": (((-1,),),)},
}
"""Names by dimension. A name in several dimensions means the first. In 2-D every subgroup of p4m has a name."""
_ALIASES = {
    1: {"p1": "c1", "d1": "reflection"},
    2: {"vflip": "pm", "c1": "p1", "c2": "p2", "c4": "p4", "d1": "pm", "d2": "p2mm", "d4": "p4m"},
    3: {},
}


_named: dict[tuple[int, str], PointGroup] = {}  # and not a cached function, which Dynamo would trace with a warning


def _find(name: str, dimension: int) -> PointGroup | None:
    """Return the group of a name in any case."""
    lower = _ALIASES[dimension].get(name.lower(), name.lower())
    if (dimension, lower) not in _named:
        proper = next((known for known in _GENERATORS[dimension] if known.lower() == lower), None)
        if proper is None:
            return None
        _named[dimension, lower] = PointGroup.generate(_GENERATORS[dimension][proper], proper)
    return _named[dimension, lower]


for _name in _GENERATORS[2]:  # those of three dimensions take a while
    _find(_name, 2)
C1, C2, C4 = (_named[2, name] for name in ("p1", "p2", "p4"))
D1, D2, D4 = (_named[2, name] for name in ("pm", "p2mm", "p4m"))

GroupLike: TypeAlias = PointGroup | str | Matrices
"""Everything that :func:`as_group` takes: a group, a name or a list of generators."""


def as_group(group: GroupLike, dimension: int | None = None) -> PointGroup:
    """Return the group for a PointGroup, a name in any case, or generators.

    In two dimensions:

    ================  ============================================================================
    name              elements, applied to an image x
    ================  ============================================================================
    "p1", "c1"        x
    "p2", "c2"        x, x.rot90(2, (-2, -1))
    "p4", "c4"        the four rotations x.rot90(k, (-2, -1))
    "hflip"           x, x.flip(-1): left-right
    "vflip", "pm"     x, x.flip(-2): up-down, the F of the published code; also "d1"
    "diagonal"        x, x.mT: reflection in the main diagonal
    "antidiagonal"    x, x.mT.flip(-2, -1)
    "p2mm", "d2"      x, x.rot90(2, (-2, -1)), x.flip(-2), x.flip(-1)
    "diagonals"       x, x.rot90(2, (-2, -1)), x.mT, x.mT.flip(-2, -1)
    "p4m", "d4"       the four rotations, then x.flip(-2) of each
    ================  ============================================================================

    In three dimensions, by Schoenflies symbol; the axis of a group with one is the first spatial axis, Z:

    ======================  ======================================================================
    name                    elements, applied to a volume x
    ======================  ======================================================================
    "C1"                    x
    "Ci"                    x, x.flip(-3, -2, -1): inversion
    "Cs"                    x, x.flip(-3): reflection of the first axis
    "C2", "C4"              the rotations of each slice by 180°, by 90°
    "C2v", "C4v"            and the reflections of each slice: p2mm, p4m
    "C2h", "C4h"            the rotations of each slice, and x.flip(-3) of each
    "D2", "D4"              the rotations of each slice, and rotations by 180° about axes in a slice
    "D2h"                   every combination of flips: volumes with three different spacings
    "D4h"                   D4 and x.flip(-3) of each: every symmetry of thick slices, 16
    "T", "Td", "Th"         the 12 rotations of a tetrahedron; with its reflections; with inversion
    "O"                     the 24 rotations of a cube
    "Oh"                    the 48 symmetries of a cube
    ======================  ======================================================================

    In one dimension: "C1", and "reflection" (or "d1").

    Args:
        group: a PointGroup, a name or a list of generators.
        dimension: the number of spatial axes that the group must act on. If None, a name that exists in
            several dimensions means the group in two: "D4" is p4m.

    >>> as_group("P4M") is D4
    True
    >>> as_group("hflip").actions
    ('x', 'x.flip(-1)')
    >>> as_group([[[0, 1], [1, 0]]]) == as_group("diagonal")
    True
    >>> as_group("D4", dimension=3), as_group("oh")
    (PointGroup(D4, order=8, dimension=3), PointGroup(Oh, order=48, dimension=3))

    Raises:
        ArgumentError: the name is unknown, the generators are not signed permutation matrices, or the group acts on
            another number of axes.
    """
    if isinstance(group, str):
        return _group_of_name(group, dimension)
    if not isinstance(group, PointGroup):
        if not isinstance(group, Iterable):
            raise ArgumentError(
                f"group (={group!r}) must be a PointGroup, a name such as 'p4m', or a list of generators"
            )
        group = PointGroup.generate(group)
    if dimension is not None and group.dimension != dimension:
        raise ArgumentError(
            f"group (={group}) must act on {_axes(dimension)} here, not on {group.dimension}: use a list of generators "
            f"or one of the names {', '.join(group_names(dimension))}"
        )
    return group


def _axes(dimension: int | None) -> str:
    return "1 axis" if dimension == 1 else f"{dimension} axes"


def group_names(dimension: int) -> tuple[str, ...]:
    """Return the names of the groups in 1, 2 or 3 dimensions, without aliases.

    >>> group_names(3)[-2:]
    ('O', 'Oh')
    """
    return tuple(_GENERATORS.get(dimension, ()))


def _group_of_name(name: str, dimension: int | None) -> PointGroup:
    for candidate in _GENERATORS if dimension is None else [dimension]:
        if candidate in _GENERATORS and (found := _find(name, candidate)) is not None:
            return found
    others = " or ".join(str(candidate) for candidate in _GENERATORS if _find(name, candidate) is not None)
    known = ", ".join(group_names(2 if dimension is None else dimension))
    problem = f"must act on {_axes(dimension)} here, not on {others}" if others else "is unknown"
    raise ArgumentError(f"group (={name!r}) {problem}: use a list of generators or one of the names {known}")
