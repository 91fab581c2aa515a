"""A separable convolution in two steps: pointwise over channels and group axis, then depthwise in space."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .base import CONV, CONV_TRANSPOSE, Backend, Filters, convolve, repeat_bias
from .constants import pointwise_index, spatial_index
from .conv_spec import ConvSpec
from .filter_bank import expand_filter, with_group_axis
from .group_axis import merge_group_into_channels, split_group_from_channels


class TwoStep(Backend):
    """Convolve pointwise, then depthwise.

    ``u[o,i,g] = Σ_h pw[o,i,g⁻¹h] x[i,h]``, then ``y[o,g] = Σ_i (g·dw[o,i]) ⋆ u[o,i,g] + b[o]``. For gc the sum over i
    is part of the first step. A transposed convolution reverses the steps.
    Source: Lengyel & van Gemert (2021), section 3.2.
    """

    name = "two_step"

    def unsupported_reason(self, spec: ConvSpec, x: Tensor | None = None) -> str | None:
        """Return None for layers of kind gc, and for layers of kind g that are not transposed."""
        if spec.kind not in ("g", "gc"):
            return "a layer of kind g or gc"
        return "a layer of kind gc where it is transposed" if spec.transposed and spec.kind == "g" else None

    def expand_filters(self, spec: ConvSpec, parameters: Mapping[str, Tensor]) -> Filters:
        """Return the filter banks of the pointwise and of the depthwise factor."""
        pointwise, depthwise = (
            parameters["pointwise_weight"],
            with_group_axis(parameters["depthwise_weight"], spec.dimension),
        )
        (point_table,), (plane_table,) = pointwise_index(spec, pointwise.device), spatial_index(spec, depthwise.device)
        return expand_filter(pointwise, point_table, spec.groups), expand_filter(depthwise, plane_table, spec.groups)

    def run(self, spec: ConvSpec, x: Tensor, filters: Filters, bias: Tensor | None) -> Tensor:
        """Convolve."""
        pointwise, depthwise = filters
        assert pointwise is not None
        assert depthwise is not None
        order, groups, channels = spec.group.order, spec.groups, merge_group_into_channels(x, spec.groups)
        if spec.transposed:
            u = convolve(channels, depthwise, None, spec, depthwise.shape[0])
            y = CONV_TRANSPOSE[spec.dimension](u, pointwise, repeat_bias(bias, spec), groups=groups)
            return split_group_from_channels(y, order, groups)
        u = (
            CONV[spec.dimension](channels, pointwise, groups=groups)
            if spec.kind == "gc"
            else _sum_over_h(channels, pointwise, spec)
        )
        y = convolve(u, depthwise, repeat_bias(bias, spec), spec, depthwise.shape[0])
        return split_group_from_channels(y, order, groups)


def _sum_over_h(
    x: Tensor,  # (B, groups·|H|·I/groups, *spatial)
    pointwise: Tensor,  # (groups·|H|·O/groups, |H|·I/groups, 1, …)
    spec: ConvSpec,
) -> Tensor:  # (B, groups·|H|·O/groups·I/groups, *spatial)
    """Compute the first step of a g layer: the sum over h for each input channel separately."""
    order, groups = spec.group.order, spec.groups
    maps = x.unflatten(1, (groups, order, x.shape[1] // (groups * order)))
    matrix = pointwise.reshape(groups, pointwise.shape[0] // groups, order, maps.shape[3])
    return torch.einsum("kohi,bkhi...->bkoi...", matrix, maps).flatten(1, 3)
