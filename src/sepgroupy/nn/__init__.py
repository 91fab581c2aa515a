"""Equivariant modules: they hold parameters and call a backend. ``forward`` reads one tensor, as in ``torch.nn``."""

from .base import DEFAULT_INIT as DEFAULT_INIT
from .base import INITS as INITS
from .base import GroupConvolution as GroupConvolution
from .conv import GroupConv2d as GroupConv2d
from .conv import LiftingConv2d as LiftingConv2d
from .filter_cache import cached_filters as cached_filters
from .per_element import GroupBatchNorm2d as GroupBatchNorm2d
from .per_element import GroupPool as GroupPool
from .per_element import PerElement as PerElement
from .transpose import GroupConvTranspose2d as GroupConvTranspose2d

__all__ = [
    "GroupBatchNorm2d",
    "GroupConv2d",
    "GroupConvTranspose2d",
    "GroupPool",
    "LiftingConv2d",
    "PerElement",
    "cached_filters",
]
