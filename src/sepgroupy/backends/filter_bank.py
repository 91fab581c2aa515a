"""From free parameters to the filter bank of all transformed filters."""

from __future__ import annotations

import math

from torch import Tensor


def full_filter(
    depthwise_weight: Tensor,  # g: (O, I, k, …); gc: (O, 1, 1, k, …)
    pointwise_weight: Tensor,  # (O, I, |H|, 1, …)
) -> Tensor:
    """Multiply the factors of a separable filter: ``w[o,i,h] = pw[o,i,h]·dw[o,i]`` (g) or ``·dw[o]`` (gc).

    Shape:
        depthwise_weight (O, I, k, …) (g) or (O, 1, 1, k, …) (gc) and pointwise_weight (O, I, |H|, 1, …) to the dense
        filter (O, I, |H|, k, …).

    Source: Lengyel & van Gemert (2021), section 3.2.
    """
    return pointwise_weight * with_group_axis(depthwise_weight, pointwise_weight.ndim - 3)


def with_group_axis(depthwise_weight: Tensor, dimension: int) -> Tensor:
    """Return a depthwise factor with all axes of a filter on the group: (O, I or 1, 1, k, …)."""
    return depthwise_weight.unsqueeze(2) if depthwise_weight.ndim == dimension + 2 else depthwise_weight


def expand_filter(
    weight: Tensor,  # (O, I/groups, F, k, …), F = |H| or 1
    table: Tensor,  # (|H|, F·k·…)
    groups: int = 1,
) -> Tensor:
    """Return every transformed copy of a filter, ready for ``torch.nn.functional.conv2d`` or 1d or 3d.

    ``bank[g, o, h, i] = (g·w[o,i])[h]`` with ``(g·w)[h] = g·(w[g⁻¹h])``; for a spatial filter
    ``bank[g, o, i] = g·w[o,i]``. Source: Cohen & Welling (2016), section 7.

    Args:
        weight: filter on the group, or spatial filter with a third axis of length 1.
        table: ``group_index`` or ``spatial_index`` of :mod:`sepgroupy.backends.constants`.
        groups: blocks of channels that are convolved separately, as in ``torch.nn.Conv2d``.

    Returns:
        (groups·|H|·O/groups, F·I/groups, k, …): rows run over (block, g, o), columns over (h, i).
    """
    out_channels, in_channels, elements, *kernel = weight.shape
    entries = elements * math.prod(kernel)  # not from the table: Dynamo may not know the shape of a constant
    # Gather whole rows, of all pairs of channels: gathering single values takes ten times as long.
    rows = weight.flatten(2).permute(2, 0, 1).reshape(entries, -1)
    copies = rows.index_select(0, table.flatten())
    pairs = copies.reshape(-1, elements, math.prod(kernel), groups, out_channels // groups, in_channels)
    return pairs.permute(3, 0, 4, 1, 5, 2).reshape(-1, elements * in_channels, *kernel)
