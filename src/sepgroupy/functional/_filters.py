"""From free parameters to the bank of all transformed filters."""

from __future__ import annotations

import torch
from torch import Tensor

from ..groups import PointGroup, action_table


def full_filter(
    depthwise_weight: Tensor,  # g: (O, I, k, k); gc: (O, 1, 1, k, k)
    pointwise_weight: Tensor,  # (O, I, |H|, 1, 1)
) -> Tensor:
    """Multiply the factors of a separable filter: ``w[o,i,h] = pw[o,i,h]·dw[o,i]`` (g) or ``·dw[o]`` (gc).

    Returns:
        The dense filter, (O, I, |H|, k, k). Source: Lengyel & van Gemert (2021), section 3.2.
    """
    return pointwise_weight * lift_depthwise(depthwise_weight)


def lift_depthwise(depthwise_weight: Tensor) -> Tensor:
    """Give a depthwise factor the five axes of a filter: (O, I or 1, 1, k, k)."""
    return depthwise_weight.unsqueeze(2) if depthwise_weight.ndim == 4 else depthwise_weight


def index_table(group: PointGroup, size: tuple[int, ...], fiber: bool) -> Tensor:
    """Return :func:`sepgroupy.groups.action_table` as a tensor, (|H|, n)."""
    return torch.from_numpy(action_table(group, size, fiber).copy())


def gather_bank(
    weight: Tensor,  # (O, I/groups, F, k, k), F = |H| or 1
    table: Tensor,  # (|H|, F·k²)
    groups: int = 1,
) -> Tensor:
    """Return every transformed copy of a filter, ready for ``torch.nn.functional.conv2d``.

    ``bank[g, o, h, i] = (g·w[o,i])[h]`` with ``(g·w)[h] = g·(w[g⁻¹h])``; for a planar filter
    ``bank[g, o, i] = g·w[o,i]``. Source: Cohen & Welling (2016), section 7.

    Args:
        weight: filter on the group, or planar with a third axis of length 1.
        table: :func:`index_table` of the kernel's size.
        groups: blocks of channels that do not see each other, as in ``torch.nn.Conv2d``.

    Returns:
        (groups·|H|·O/groups, F·I/groups, k, k): rows run over (block, g, o), columns over (h, i).
    """
    out_channels, in_channels, fiber, *kernel = weight.shape
    order, entries = table.shape
    # Rows of all pairs of channels are moved, and their gradients added, whole: single values take ten times as long.
    rows = weight.flatten(2).permute(2, 0, 1).reshape(entries, -1)
    copies = rows.index_select(0, table.flatten())
    pairs = copies.reshape(order, fiber, entries // fiber, groups, out_channels // groups, in_channels)
    return pairs.permute(3, 0, 4, 1, 5, 2).reshape(order * out_channels, fiber * in_channels, *kernel)
