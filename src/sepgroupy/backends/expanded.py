"""One convolution of PyTorch's with the filter bank of all transformed filters."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .base import Backend, Filters, convolve, repeat_bias
from .constants import group_index, spatial_index
from .conv_spec import ConvSpec
from .filter_bank import expand_filter, full_filter
from .group_axis import merge_group_into_channels, split_group_from_channels


class Expanded(Backend):
    """Multiply the factors of a separable filter, expand the filter, and convolve once."""

    name = "expanded"

    def unsupported_reason(self, spec: ConvSpec, x: Tensor | None = None) -> str | None:
        """Return None: every convolution is supported."""
        return None

    def expand_filters(self, spec: ConvSpec, parameters: Mapping[str, Tensor]) -> Filters:
        """Return the filter bank, (groups·|H|·O/groups, |H|·I/groups, k, …)."""
        weight = parameters.get("weight")
        if weight is None:
            weight = full_filter(parameters["depthwise_weight"], parameters["pointwise_weight"])
        (table,) = (spatial_index if spec.kind == "lifting" else group_index)(spec, weight.device)
        return (expand_filter(weight, table, spec.groups),)

    def run(self, spec: ConvSpec, x: Tensor, filters: Filters, bias: Tensor | None) -> Tensor:
        """Convolve."""
        (bank,) = filters
        assert bank is not None
        channels = x if spec.kind == "lifting" else merge_group_into_channels(x, spec.groups)
        y = convolve(channels, bank, repeat_bias(bias, spec), spec, spec.groups)
        return split_group_from_channels(y, spec.group.order, spec.groups)
