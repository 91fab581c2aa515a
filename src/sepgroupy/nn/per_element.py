"""Modules that treat all elements of the group alike, for which the group axis is a batch axis; and group pooling."""

from __future__ import annotations

from typing import Any

import torch.fx
from torch import Tensor, nn

from ..backends import merge_group, split_group
from ..errors import ArgumentError
from .base import call_as_leaf


class PerElement(nn.Module):
    """Apply a 2-D module to a group feature map: ``y[·, g] = module(x[·, g])``, with parameters shared over g.

    The group axis is merged into the batch, so one wrapper gives pooling over space, dropout, activation and resizing.
    It is equivariant when the module itself treats rotated and reflected images alike, as those do. For batch norm
    there is :class:`GroupBatchNorm2d`.

    Args:
        module: any module from (N, C, Y, X) to (N, C', Y', X'), or to a tuple of such.

    Shape:
        (B, C, |H|, Y, X) to (B, C', |H|, Y', X').

    >>> import torch
    >>> pool = PerElement(nn.AvgPool2d(2))
    >>> pool(torch.zeros(2, 16, 8, 10, 10)).shape
    torch.Size([2, 16, 8, 5, 5])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        """Apply the module to the feature maps of every group element."""
        if isinstance(x, torch.fx.Proxy):
            return call_as_leaf(self, x)
        y = self.module(merge_group(x))
        if isinstance(y, tuple):  # such as pooling with indices
            return tuple(split_group(part, x.shape[2]) for part in y)
        return split_group(y, x.shape[2])


class GroupBatchNorm2d(nn.BatchNorm2d):
    """Batch norm of a group feature map, its statistics and affine parameters shared over the group axis.

    Equal to ``torch.nn.BatchNorm2d`` of (B·|H|, C, Y, X), whose arguments, parameters and buffers it has.

    Shape:
        (B, C, |H|, Y, X) to the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each channel."""
        if isinstance(x, torch.fx.Proxy):
            return call_as_leaf(self, x)
        return split_group(super().forward(merge_group(x)), x.shape[2])


class GroupPool(nn.Module):
    """Pool over the group axis: ``y = max_g x[·, g]`` or its mean, from group feature maps to invariant ones.

    For every t of the group ``pool(t·x) = t·pool(x)``, where t rotates and reflects the feature map alone.

    Args:
        mode: "max" or "mean".

    Shape:
        (B, C, |H|, Y, X) to (B, C, Y, X).

    Raises:
        ArgumentError: the mode is neither.

    Source: Cohen & Welling (2016), section 6.3.
    """

    def __init__(self, mode: str = "max") -> None:
        super().__init__()
        if mode not in ("max", "mean"):
            raise ArgumentError(f"mode (={mode!r}) must be 'max' or 'mean'")
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        """Pool over the third axis."""
        if isinstance(x, torch.fx.Proxy):
            return call_as_leaf(self, x)
        if x.ndim != 5:
            raise ArgumentError(f"x has shape {tuple(x.shape)}; a group feature map has five axes (B, C, |H|, Y, X)")
        return x.amax(2) if self.mode == "max" else x.mean(2)

    def extra_repr(self) -> str:
        """Name the mode."""
        return self.mode
