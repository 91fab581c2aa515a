"""The group axis: where it lies in memory, and how it is merged into the batch or the channels and split off again.

The logical shape of a group feature map is (B, C, |H|, Y, X). As ``channels_last`` does for images, the layers return
it with the strides of a contiguous ``(B, |H|, C, Y, X)``. Merging the group axis into the batch is then a view, and so
is handing all channels of all elements to one convolution.
"""

from __future__ import annotations

import torch.fx
from torch import Tensor

from ..errors import ArgumentError


def merge_group(x: Tensor) -> Tensor:
    """Merge the group axis into the batch, so that any 2-D module can read a group feature map.

    Args:
        x: group feature map, (B, C, |H|, Y, X).

    Returns:
        The same values as (B·|H|, C, Y, X); a view of what the layers return.

    Raises:
        ArgumentError: x has another number of axes.
    """
    if isinstance(x, torch.fx.Proxy):  # one step to torch.fx, which could not follow the checks
        return x.tracer.create_proxy("call_function", merge_group, (x,), {})  # type: ignore[no-any-return]
    if x.ndim != 5:
        raise ArgumentError(f"x has shape {tuple(x.shape)}; a group feature map has five axes (B, C, |H|, Y, X)")
    return x.transpose(1, 2).flatten(0, 1)


def split_group(x: Tensor, order: int) -> Tensor:
    """Undo :func:`merge_group`: (B·|H|, C, …) to (B, C, |H|, …), always a view.

    Args:
        x: (B·|H|, C, …).
        order: the group's order |H|.

    Raises:
        ArgumentError: the first axis is not a multiple of the order.
    """
    if isinstance(x, torch.fx.Proxy):
        return x.tracer.create_proxy("call_function", split_group, (x, order), {})  # type: ignore[no-any-return]
    if x.shape[0] % order:
        raise ArgumentError(f"x has {x.shape[0]} rows, which is no multiple of the group's order (={order})")
    return x.view(x.shape[0] // order, order, *x.shape[1:]).transpose(1, 2)


def merge_group_into_channels(x: Tensor, groups: int = 1) -> Tensor:
    """Return (B, C, |H|, Y, X) as the (B, groups·|H|·C/groups, Y, X) that a filter bank reads."""
    if groups == 1:
        return x.transpose(1, 2).flatten(1, 2)
    channels = x.shape[1] // groups
    return x.transpose(1, 2).unflatten(2, (groups, channels)).transpose(1, 2).flatten(1, 3)


def split_group_from_channels(y: Tensor, order: int, groups: int = 1) -> Tensor:
    """Return the (B, groups·|H|·C/groups, Y, X) that a filter bank gives as (B, C, |H|, Y, X)."""
    batch, channels, *size = y.shape
    channels //= order * groups
    if groups == 1:
        return y.view(batch, order, channels, *size).transpose(1, 2)
    return y.unflatten(1, (groups, order, channels)).transpose(1, 2).flatten(2, 3).transpose(1, 2)
