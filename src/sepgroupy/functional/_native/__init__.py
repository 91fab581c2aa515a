"""Group convolutions by compiled kernels, where a C compiler was at hand when the package was installed."""

from ._library import kernels as kernels
from ._library import serves as serves
from ._library import statistics as statistics
from ._operator import Inputs as Inputs
from ._operator import convolve as convolve
from ._operator import is_ordinary as is_ordinary
from ._operator import takes as takes
