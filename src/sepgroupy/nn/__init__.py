"""Equivariant modules: they own parameters and call a backend. ``forward`` reads one tensor, as in ``torch.nn``."""

from .base import GroupConvolution as GroupConvolution
from .conv import GROUP_CONVS as GROUP_CONVS
from .conv import LIFTING_CONVS as LIFTING_CONVS
from .conv import GroupConv as GroupConv
from .conv import GroupConv1d as GroupConv1d
from .conv import GroupConv2d as GroupConv2d
from .conv import GroupConv3d as GroupConv3d
from .conv import LiftingConv as LiftingConv
from .conv import LiftingConv1d as LiftingConv1d
from .conv import LiftingConv2d as LiftingConv2d
from .conv import LiftingConv3d as LiftingConv3d
from .filter_cache import cached_filters as cached_filters
from .parameters import DEFAULT_INIT as DEFAULT_INIT
from .parameters import INITS as INITS
from .per_element import GROUP_BATCH_NORMS as GROUP_BATCH_NORMS
from .per_element import GroupBatchNorm as GroupBatchNorm
from .per_element import GroupBatchNorm1d as GroupBatchNorm1d
from .per_element import GroupBatchNorm2d as GroupBatchNorm2d
from .per_element import GroupBatchNorm3d as GroupBatchNorm3d
from .per_element import GroupPool as GroupPool
from .per_element import PerElement as PerElement
from .transpose import GROUP_CONV_TRANSPOSES as GROUP_CONV_TRANSPOSES
from .transpose import GroupConvTranspose as GroupConvTranspose
from .transpose import GroupConvTranspose1d as GroupConvTranspose1d
from .transpose import GroupConvTranspose2d as GroupConvTranspose2d
from .transpose import GroupConvTranspose3d as GroupConvTranspose3d

__all__ = [
    "GroupBatchNorm1d",
    "GroupBatchNorm2d",
    "GroupBatchNorm3d",
    "GroupConv1d",
    "GroupConv2d",
    "GroupConv3d",
    "GroupConvTranspose1d",
    "GroupConvTranspose2d",
    "GroupConvTranspose3d",
    "GroupPool",
    "LiftingConv1d",
    "LiftingConv2d",
    "LiftingConv3d",
    "PerElement",
    "cached_filters",
]
