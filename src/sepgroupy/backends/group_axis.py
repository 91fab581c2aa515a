"""The group axis: its memory layout, and the functions that merge it into the batch or the channels and split it off.

The logical shape of a group feature map is (B, C, |H|, *spatial): (B, C, |H|, Y, X) of images. As ``channels_last``
does for images, the layers return it with the strides of a contiguous ``(B, |H|, C, *spatial)``. Merging the group axis
into the batch is then a view, and so is handing all channels of all elements to one convolution.
"""

from __future__ import annotations

import torch.fx
from torch import Tensor

from ..errors import ArgumentError
from ..groups import axis_names


def merge_group(x: Tensor, dimension: int = 2) -> Tensor:
    """Merge the group axis into the batch, so that modules for images or volumes can read a group feature map.

    Args:
        x: group feature map, (B, C, |H|, *spatial).
        dimension: the number of spatial axes.

    Returns:
        The same values as (B·|H|, C, *spatial); a view, if x is the output of a layer.

    Raises:
        ArgumentError: x has another number of axes.
    """
    if isinstance(x, torch.fx.Proxy):  # one node of a torch.fx graph: the checks cannot be traced
        return x.tracer.create_proxy("call_function", merge_group, (x, dimension), {})  # type: ignore[no-any-return]
    check_group_feature_map(x, dimension)
    return x.transpose(1, 2).flatten(0, 1)


def check_group_feature_map(x: Tensor, dimension: int) -> None:
    """Refuse tensors without the axes of a group feature map.

    Raises:
        ArgumentError: x has another number of axes than (B, C, |H|, *spatial).
    """
    if x.ndim != 3 + dimension:
        axes = ", ".join(axis_names(dimension))
        raise ArgumentError(
            f"x has shape {tuple(x.shape)}; a group feature map in {dimension}-D has {3 + dimension} axes "
            f"(B, C, |H|, {axes}): here dimension (={dimension}) must be the number of spatial axes"
        )


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
        raise ArgumentError(f"x has {x.shape[0]} rows, not a multiple of the group's order (={order})")
    return x.view(x.shape[0] // order, order, *x.shape[1:]).transpose(1, 2)


def merge_group_into_channels(x: Tensor, groups: int = 1) -> Tensor:
    """Return (B, C, |H|, *spatial) as the (B, groups·|H|·C/groups, *spatial) that a filter bank reads."""
    if groups == 1:
        return x.transpose(1, 2).flatten(1, 2)
    channels = x.shape[1] // groups
    return x.transpose(1, 2).unflatten(2, (groups, channels)).transpose(1, 2).flatten(1, 3)


def split_group_from_channels(y: Tensor, order: int, groups: int = 1) -> Tensor:
    """Return the (B, groups·|H|·C/groups, *spatial) that a filter bank gives as (B, C, |H|, *spatial)."""
    batch, channels, *size = y.shape
    channels //= order * groups
    if groups == 1:
        return y.view(batch, order, channels, *size).transpose(1, 2)
    return y.unflatten(1, (groups, order, channels)).transpose(1, 2).flatten(2, 3).transpose(1, 2)
