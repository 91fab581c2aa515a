"""Finite point groups and their exact action on grids."""

from ._action import ElementSteps as ElementSteps
from ._action import action_table as action_table
from ._action import moved_size as moved_size
from ._action import steps_of as steps_of
from ._finite import C1 as C1
from ._finite import C2 as C2
from ._finite import C4 as C4
from ._finite import D1 as D1
from ._finite import D2 as D2
from ._finite import D4 as D4
from ._finite import GroupLike as GroupLike
from ._finite import PointGroup as PointGroup
from ._finite import as_group as as_group
from ._fourier import Block as Block
from ._fourier import FourierBasis as FourierBasis
from ._fourier import fourier_basis as fourier_basis

__all__ = [
    "C1",
    "C2",
    "C4",
    "D1",
    "D2",
    "D4",
    "Block",
    "ElementSteps",
    "FourierBasis",
    "GroupLike",
    "PointGroup",
    "action_table",
    "as_group",
    "fourier_basis",
    "moved_size",
    "steps_of",
]
