"""Compiled kernels for CPUs, where a C++ compiler was available when the package was installed.

``backend`` is the door: the :class:`Native` backend and the operator. ``launch`` states a convolution to the kernels,
``library`` finds and loads them, ``memory`` holds buffers, ``batch_norm`` has the kernels around a batch norm.
"""

from .backend import FusedOutput as FusedOutput
from .backend import Native as Native
from .batch_norm import batch_statistics as batch_statistics
from .batch_norm import norm_relu_max_pool as norm_relu_max_pool
from .launch import max_in_channels as max_in_channels
from .memory import empty_cache as empty_cache
