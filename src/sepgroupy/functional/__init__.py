"""Pure functions from feature maps, parameters and a group to feature maps. No modules, no state."""

from ..backends import full_filter as full_filter
from ..backends import merge_group as merge_group
from ..backends import split_group as split_group
from ._ops import group_conv as group_conv
from ._ops import group_conv2d as group_conv2d
from ._ops import lifting_conv as lifting_conv
from ._ops import lifting_conv2d as lifting_conv2d
from ._ops import separable_group_conv as separable_group_conv
from ._ops import separable_group_conv2d as separable_group_conv2d
from ._transform import transform as transform

__all__ = [
    "full_filter",
    "group_conv",
    "group_conv2d",
    "lifting_conv",
    "lifting_conv2d",
    "merge_group",
    "separable_group_conv",
    "separable_group_conv2d",
    "split_group",
    "transform",
]
