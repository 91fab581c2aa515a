"""From free parameters to the bank of all transformed filters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

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
    order = table.shape[0]
    orbit = Orbit.apply(weight.flatten(2), table)  # (O, I, |H|, F·k²)
    orbit = orbit.reshape(groups, out_channels // groups, in_channels, order, fiber, kernel[0] * kernel[1])
    return orbit.permute(0, 3, 1, 4, 2, 5).reshape(order * out_channels, fiber * in_channels, *kernel)


class Orbit(torch.autograd.Function):
    """``y[…, g, n] = x[…, table[g, n]]``, every row of the table a permutation.

    Its transpose is again a gather, by the inverse permutations, and a sum over g. The general backward of indexing
    does not know that no index repeats in a row and adds value by value, ten times slower on a CPU.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, table: Tensor) -> Tensor:
        """Gather all transformed copies."""
        return x[..., table]

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the table."""
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Send each copy back by its inverse and add."""
        (table,) = ctx.saved_tensors
        return torch.take_along_dim(grad, table.argsort(dim=-1).expand_as(grad), dim=-1).sum(-2), None
