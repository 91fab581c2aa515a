"""Group convolutions whose filters are separable along the group axis, under their published names."""

from ..groups import C4, D4
from ._published import published

gP4ConvZ2 = published(__name__, "gP4ConvZ2", C4, "g", lifting=True)
gP4ConvP4 = published(__name__, "gP4ConvP4", C4, "g", lifting=False)
gP4MConvZ2 = published(__name__, "gP4MConvZ2", D4, "g", lifting=True)
gP4MConvP4M = published(__name__, "gP4MConvP4M", D4, "g", lifting=False)

__all__ = ["gP4ConvP4", "gP4ConvZ2", "gP4MConvP4M", "gP4MConvZ2"]
