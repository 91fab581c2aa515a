"""Modules that treat the group axis as a batch axis, batch norm among them; and group pooling."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.fx
from torch import Tensor, nn

from ..backends import check_group_feature_map, merge_group, split_group
from ..backends.conv_spec import DIMENSIONS
from ..errors import ArgumentError
from .base import call_as_leaf


class PerElement(nn.Module):
    """Apply a module for images to a group feature map: ``y[·, g] = module(x[·, g])``, with parameters shared over g.

    The group axis is merged into the batch, so one wrapper serves spatial pooling, dropout, activations and resizing.
    The result is equivariant if the module commutes with rotations and reflections, as activations and dropout in
    inference mode do, and pooling and resizing on symmetric grids. For batch norm use :class:`GroupBatchNorm2d`.

    Args:
        module: any module from (N, C, *spatial) to (N, C', *spatial'), or to a tuple of such.
        dimension: the number of spatial axes; 3 for modules for volumes, such as ``nn.MaxPool3d``.

    Shape:
        (B, C, |H|, *spatial) to (B, C', |H|, *spatial').

    Raises:
        ArgumentError: the dimension is not 1, 2 or 3, or the input has another number of axes.

    >>> import torch
    >>> pool = PerElement(nn.AvgPool2d(2))
    >>> pool(torch.zeros(2, 16, 8, 10, 10)).shape
    torch.Size([2, 16, 8, 5, 5])
    """

    dimension = 2  # of modules in files of earlier versions

    def __init__(self, module: nn.Module, dimension: int = 2) -> None:
        super().__init__()
        self.module, self.dimension = module, check_dimension(dimension)

    def forward(self, x: Tensor) -> Any:
        """Apply the module to the feature maps of every group element."""
        if isinstance(x, torch.fx.Proxy):
            return call_as_leaf(self, x)
        y = self.module(merge_group(x, self.dimension))
        if isinstance(y, tuple):  # such as pooling with indices
            return tuple(split_group(part, x.shape[2]) for part in y)
        return split_group(y, x.shape[2])


class GroupBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm of a group feature map; abstract: a subclass has a dimension and the batch norm of torch.nn for it."""

    dimension: ClassVar[int]

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each channel."""
        if isinstance(x, torch.fx.Proxy):
            return call_as_leaf(self, x)
        return split_group(super().forward(merge_group(x, self.dimension)), x.shape[2])


class GroupBatchNorm1d(GroupBatchNorm, nn.BatchNorm1d):
    """Batch norm of a group feature map (B, C, |H|, X): ``torch.nn.BatchNorm1d`` of (B·|H|, C, X)."""

    dimension = 1


class GroupBatchNorm2d(GroupBatchNorm, nn.BatchNorm2d):
    """Batch norm of a group feature map, its statistics and affine parameters shared over the group axis.

    Equal to ``torch.nn.BatchNorm2d`` of (B·|H|, C, Y, X), whose arguments, parameters and buffers it has.

    Shape:
        (B, C, |H|, Y, X) to the same.
    """

    dimension = 2


class GroupBatchNorm3d(GroupBatchNorm, nn.BatchNorm3d):
    """Batch norm of a group feature map (B, C, |H|, Z, Y, X): ``torch.nn.BatchNorm3d`` of (B·|H|, C, Z, Y, X)."""

    dimension = 3


GROUP_BATCH_NORMS = {norm.dimension: norm for norm in (GroupBatchNorm1d, GroupBatchNorm2d, GroupBatchNorm3d)}
"""The batch norms by their dimension."""


class GroupPool(nn.Module):
    """Pool over the group axis: ``y = max_g x[·, g]`` or its mean. The result has no group axis.

    For every t of the group ``pool(t·x) = t·pool(x)``, where t acts on the spatial axes of the result.

    Args:
        mode: "max" or "mean".
        dimension: the number of spatial axes; 3 for volumes.

    Shape:
        (B, C, |H|, *spatial) to (B, C, *spatial).

    Raises:
        ArgumentError: the mode is neither, or the input has another number of axes.

    Source: Cohen & Welling (2016), section 6.3.
    """

    dimension = 2

    def __init__(self, mode: str = "max", dimension: int = 2) -> None:
        super().__init__()
        if mode not in ("max", "mean"):
            raise ArgumentError(f"mode (={mode!r}) must be 'max' or 'mean'")
        self.mode, self.dimension = mode, check_dimension(dimension)

    def forward(self, x: Tensor) -> Tensor:
        """Pool over the third axis."""
        if isinstance(x, torch.fx.Proxy):
            return call_as_leaf(self, x)
        check_group_feature_map(x, self.dimension)
        return x.amax(2) if self.mode == "max" else x.mean(2)

    def extra_repr(self) -> str:
        """Name the mode and, where it is not 2, the dimension."""
        return self.mode if self.dimension == 2 else f"{self.mode}, dimension={self.dimension}"


def check_dimension(dimension: int) -> int:
    """Return the number of spatial axes, refusing those that PyTorch has no modules for."""
    if dimension not in DIMENSIONS or isinstance(dimension, bool):
        raise ArgumentError(f"dimension (={dimension!r}) must be 1, 2 or 3")
    return int(dimension)
