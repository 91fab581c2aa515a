"""Algorithms for the same convolutions, a file or folder each, and the rule that chooses between them.

``conv_spec`` specifies a convolution, ``geometry`` parses its kernel sizes and paddings, ``base`` defines a backend,
``dispatch`` selects one and has every threshold. To add one, see docs/extend.md. Nothing here knows modules or
networks.
"""

from .base import CONV as CONV
from .base import Backend as Backend
from .base import Filters as Filters
from .base import can_bypass_dispatcher as can_bypass_dispatcher
from .base import has_plain_values as has_plain_values
from .base import is_plain_eager_tensor as is_plain_eager_tensor
from .base import repeat_bias as repeat_bias
from .batch_norm import BatchNormReLU as BatchNormReLU
from .constants import fourier_matrices as fourier_matrices
from .constants import group_index as group_index
from .constants import pointwise_index as pointwise_index
from .constants import spatial_index as spatial_index
from .conv_spec import KINDS as KINDS
from .conv_spec import PADDING_MODES as PADDING_MODES
from .conv_spec import ConvSpec as ConvSpec
from .conv_spec import exceeds_any_memory as exceeds_any_memory
from .dispatch import RULES as RULES
from .dispatch import available_backends as available_backends
from .dispatch import check_backend as check_backend
from .dispatch import native_for as native_for
from .dispatch import register as register
from .dispatch import registered_backends as registered_backends
from .dispatch import select_backend as select_backend
from .dispatch import unregister as unregister
from .dispatch import worth_caching as worth_caching
from .filter_bank import expand_filter as expand_filter
from .filter_bank import full_filter as full_filter
from .filter_bank import with_group_axis as with_group_axis
from .geometry import Pair as Pair
from .geometry import Sizes as Sizes
from .group_axis import check_group_feature_map as check_group_feature_map
from .group_axis import merge_group as merge_group
from .group_axis import split_group as split_group
from .native import empty_cache as empty_cache
from .pooling import Window as Window
from .pooling import has_windows as has_windows
from .pooling import max_pool as max_pool
from .pooling import max_pool_window as max_pool_window
from .tracing import constant_to_dynamo as constant_to_dynamo
from .tracing import name_for_tracing as name_for_tracing
from .tracing import traced_value as traced_value
