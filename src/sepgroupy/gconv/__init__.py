"""The names of the published code, bound to the layers of :mod:`sepgroupy.nn`."""

from .g_splitgconv2d import gP4ConvP4 as gP4ConvP4
from .g_splitgconv2d import gP4ConvZ2 as gP4ConvZ2
from .g_splitgconv2d import gP4MConvP4M as gP4MConvP4M
from .g_splitgconv2d import gP4MConvZ2 as gP4MConvZ2
from .gc_splitgconv2d import gcP4ConvP4 as gcP4ConvP4
from .gc_splitgconv2d import gcP4ConvZ2 as gcP4ConvZ2
from .gc_splitgconv2d import gcP4MConvP4M as gcP4MConvP4M
from .gc_splitgconv2d import gcP4MConvZ2 as gcP4MConvZ2
from .pooling import GroupCosetMaxPool as GroupCosetMaxPool
from .pooling import GroupMaxPool2d as GroupMaxPool2d
from .splitgconv2d import P4ConvP4 as P4ConvP4
from .splitgconv2d import P4ConvZ2 as P4ConvZ2
from .splitgconv2d import P4MConvP4M as P4MConvP4M
from .splitgconv2d import P4MConvZ2 as P4MConvZ2

__all__ = [
    "GroupCosetMaxPool",
    "GroupMaxPool2d",
    "P4ConvP4",
    "P4ConvZ2",
    "P4MConvP4M",
    "P4MConvZ2",
    "gP4ConvP4",
    "gP4ConvZ2",
    "gP4MConvP4M",
    "gP4MConvZ2",
    "gcP4ConvP4",
    "gcP4ConvZ2",
    "gcP4MConvP4M",
    "gcP4MConvZ2",
]
