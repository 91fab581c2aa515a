"""Finite point groups and their exact action on grids."""

from ._action import ElementSteps as ElementSteps
from ._action import action_table as action_table
from ._action import steps_of as steps_of
from ._action import transformed_size as transformed_size
from ._finite import PointGroup as PointGroup
from ._finite import axis_names as axis_names
from ._fourier import Block as Block
from ._fourier import FourierBasis as FourierBasis
from ._fourier import fourier_basis as fourier_basis
from ._names import C1 as C1
from ._names import C2 as C2
from ._names import C4 as C4
from ._names import D1 as D1
from ._names import D2 as D2
from ._names import D4 as D4
from ._names import GroupLike as GroupLike
from ._names import as_group as as_group
from ._names import group_names as group_names

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
    "axis_names",
    "fourier_basis",
    "group_names",
    "steps_of",
    "transformed_size",
]
