"""Pure functions on tensors: maps, parameters and a group in, maps out. No modules, no state."""

from ._backends import backends as backends
from ._conv import group_conv2d as group_conv2d
from ._conv import lifting_conv2d as lifting_conv2d
from ._conv import separable_group_conv2d as separable_group_conv2d
from ._filters import full_filter as full_filter
from ._layout import fold as fold
from ._layout import unfold as unfold
from ._transform import transform as transform

__all__ = [
    "backends",
    "fold",
    "full_filter",
    "group_conv2d",
    "lifting_conv2d",
    "separable_group_conv2d",
    "transform",
    "unfold",
]
