"""Where the group axis lies in memory: the logical shape is (B, C, |H|, Y, X), the axis itself outermost.

As ``channels_last`` does for images, the layers keep the strides of a contiguous ``(B, |H|, C, Y, X)`` behind the
published shape. Folding the group axis into the batch is then free, and so is handing all maps to a convolution.
"""

from __future__ import annotations

from torch import Tensor

from ..errors import ArgumentError


def fold(x: Tensor) -> Tensor:
    """Fold the group axis into the batch, so that any planar module serves a map on the group.

    Args:
        x: map on the group, (B, C, |H|, Y, X).

    Returns:
        The same values as planar maps, (B·|H|, C, Y, X); a view of what the layers return.
    """
    if x.ndim != 5:
        raise ArgumentError(f"x has shape {tuple(x.shape)}; a map on the group has five axes (B, C, |H|, Y, X)")
    return x.transpose(1, 2).flatten(0, 1)


def unfold(x: Tensor, order: int) -> Tensor:
    """Undo :func:`fold`: (B·|H|, C, …) to (B, C, |H|, …), always a view.

    Args:
        x: planar maps, (B·|H|, C, …).
        order: the group's order |H|.
    """
    if x.shape[0] % order:
        raise ArgumentError(f"x has {x.shape[0]} rows, which is no multiple of the group's order (={order})")
    return x.view(x.shape[0] // order, order, *x.shape[1:]).transpose(1, 2)


def merge_fiber(x: Tensor, groups: int = 1) -> Tensor:
    """Turn (B, C, |H|, Y, X) into the (B, groups·|H|·C/groups, Y, X) that a bank of filters reads."""
    if groups == 1:
        return x.transpose(1, 2).flatten(1, 2)
    channels = x.shape[1] // groups
    return x.transpose(1, 2).unflatten(2, (groups, channels)).transpose(1, 2).flatten(1, 3)


def split_fiber(y: Tensor, order: int, groups: int = 1) -> Tensor:
    """Turn the (B, groups·|H|·C/groups, Y, X) that a bank of filters gives into (B, C, |H|, Y, X)."""
    batch, channels, *size = y.shape
    channels //= order * groups
    if groups == 1:
        return y.view(batch, order, channels, *size).transpose(1, 2)
    return y.unflatten(1, (groups, order, channels)).transpose(1, 2).flatten(2, 3).transpose(1, 2)
