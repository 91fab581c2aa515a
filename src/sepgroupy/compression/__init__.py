"""Compress a trained dense network to a separable one."""

from ._compress import CompressedLayer as CompressedLayer
from ._compress import Compression as Compression
from ._compress import compress as compress

__all__ = ["CompressedLayer", "Compression", "compress"]
