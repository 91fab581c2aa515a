"""Make an equivariant network from a plain one."""

from ._convert import convert as convert
from ._modules import FoldedConvolution as FoldedConvolution
from ._modules import FoldedPool as FoldedPool

__all__ = ["FoldedConvolution", "FoldedPool", "convert"]
