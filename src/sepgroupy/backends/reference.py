"""The definition: one convolution for each pair of group elements. Slow; all other backends are compared with it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .base import Backend, Filters, convolve
from .constants import group_index, spatial_index
from .conv_spec import ConvSpec
from .filter_bank import full_filter


class Reference(Backend):
    """Loop over g and h: ``y[o, g] = Σ_h Σ_i (g·w[o,i])[h] ⋆ x[i, h] + b[o]``."""

    name = "reference"

    def unsupported_reason(self, spec: ConvSpec, x: Tensor | None = None) -> str | None:
        """Return None: every convolution is supported."""
        return None

    def expand_filters(self, spec: ConvSpec, parameters: Mapping[str, Tensor]) -> Filters:
        """Return the dense filter, (O, I/groups, |H| or 1, k, …); of a transposed layer (I, O/groups, |H|, k, …)."""
        if "weight" in parameters:
            return (parameters["weight"],)
        return (full_filter(parameters["depthwise_weight"], parameters["pointwise_weight"]),)

    def run(self, spec: ConvSpec, x: Tensor, filters: Filters, bias: Tensor | None) -> Tensor:
        """Convolve."""
        (weight,) = filters
        assert weight is not None
        lifting, order = spec.kind == "lifting", spec.group.order
        (table,) = spatial_index(spec, weight.device) if lifting else group_index(spec, weight.device)
        copies = [weight.flatten(2)[..., sources].view_as(weight) for sources in table]  # g·w for each g
        maps = [x] if lifting else list(x.unbind(2))
        if spec.transposed:  # y[o, h] = Σ_g Σ_i (g·w[i,o])[h] ⋆ᵀ x[i, g] + b[o]
            pairs = [[(maps[g], copies[g][:, :, h]) for g in range(order)] for h in range(order)]
        else:
            pairs = [[(maps[h], copies[g][:, :, h]) for h in range(len(maps))] for g in range(order)]
        sums = [sum(convolve(m, w, None, spec, spec.groups) for m, w in terms) for terms in pairs]
        y = torch.stack(sums, 2)  # type: ignore[arg-type]
        y = y if bias is None else y + bias.to(y.dtype).view(-1, *(1,) * (1 + spec.dimension))
        return y.transpose(1, 2).contiguous().transpose(1, 2)
