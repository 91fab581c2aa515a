"""Convert a plain network to an equivariant one."""

from ._convert import convert as convert
from ._modules import MergedGroupConv as MergedGroupConv
from ._modules import MergedGroupPool as MergedGroupPool

__all__ = ["MergedGroupConv", "MergedGroupPool", "convert"]
