"""Group convolutions whose filters are separable along group axis and input channels, under their published names."""

from ..groups import C4, D4
from ._published import published

gcP4ConvZ2 = published(__name__, "gcP4ConvZ2", C4, "gc", lifting=True)
gcP4ConvP4 = published(__name__, "gcP4ConvP4", C4, "gc", lifting=False)
gcP4MConvZ2 = published(__name__, "gcP4MConvZ2", D4, "gc", lifting=True)
gcP4MConvP4M = published(__name__, "gcP4MConvP4M", D4, "gc", lifting=False)

__all__ = ["gcP4ConvP4", "gcP4ConvZ2", "gcP4MConvP4M", "gcP4MConvZ2"]
