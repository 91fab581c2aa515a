"""Group convolutions by compiled kernels, where a C compiler was at hand when the package was installed."""

from ._call import Call as Call
from ._call import Inputs as Inputs
from ._call import call_for as call_for
from ._call import lifts as lifts
from ._call import serves as serves
from ._library import kernels as kernels
from ._maps import NormReluPool as NormReluPool
from ._maps import statistics as statistics
from ._operator import convolve as convolve
from ._operator import is_direct as is_direct
from ._operator import is_ordinary as is_ordinary
from ._operator import takes as takes
