"""Group convolutions with dense filters, under their published names."""

from ..groups import C4, D4
from ._published import published

P4ConvZ2 = published(__name__, "P4ConvZ2", C4, "dense", lifting=True)
P4ConvP4 = published(__name__, "P4ConvP4", C4, "dense", lifting=False)
P4MConvZ2 = published(__name__, "P4MConvZ2", D4, "dense", lifting=True)
P4MConvP4M = published(__name__, "P4MConvP4M", D4, "dense", lifting=False)

__all__ = ["P4ConvP4", "P4ConvZ2", "P4MConvP4M", "P4MConvZ2"]
