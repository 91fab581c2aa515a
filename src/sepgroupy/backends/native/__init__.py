"""Compiled kernels for CPUs, where a C++ compiler was available when the package was installed.

``backend`` is the entry point. A call passes from there to ``convolution``, which has the derivatives, and to
``launch``, which calls the kernels. ``problem`` states a convolution to them and checks shapes, ``library`` finds and
loads them, ``limits`` says what they can compute, ``dtypes`` in which dtypes. ``operator`` is the same convolution for
compilers and dispatch modes, ``transform`` the Fourier transform of the group axis. ``windows`` turns windows into
channels, ``orbits`` lifting convolutions into pointwise ones. ``memory`` has the buffers, ``batch_norm`` the kernels
around a batch norm, ``max_pool`` those of pooling.
"""

from . import flops
from .backend import FusedOutput as FusedOutput
from .backend import Native as Native
from .backend import reads_as_it_is as reads_as_it_is
from .batch_norm import batch_statistics as batch_statistics
from .batch_norm import norm_clamp as norm_clamp
from .batch_norm import norm_relu_max_pool as norm_relu_max_pool
from .dtypes import result_dtype as result_dtype
from .launch import parameter_dtype as parameter_dtype
from .max_pool import max_pool as max_pool
from .max_pool import supports_max_pool as supports_max_pool
from .memory import empty_cache as empty_cache

flops.register()
