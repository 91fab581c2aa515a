"""Make an equivariant network from a plain one."""

from ._convert import convert as convert
from ._rows import FoldedConvolution as FoldedConvolution
from ._rows import FoldedPool as FoldedPool

__all__ = ["FoldedConvolution", "FoldedPool", "convert"]
