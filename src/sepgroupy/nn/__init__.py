"""Equivariant modules: thin holders of parameters over :mod:`sepgroupy.functional`."""

from ._conv import GroupConv2d as GroupConv2d
from ._conv import LiftingConv2d as LiftingConv2d
from ._fold import Folded as Folded
from ._fold import GroupPool as GroupPool
from ._transpose import GroupConvTranspose2d as GroupConvTranspose2d

__all__ = ["Folded", "GroupConv2d", "GroupConvTranspose2d", "GroupPool", "LiftingConv2d"]
