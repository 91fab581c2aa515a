"""Pooling over space and over the group axis, under the published names."""

from typing import Any

from torch import Tensor, nn

from ..nn import GroupPool, PerElement


class GroupMaxPool2d(PerElement):
    """Spatial max-pooling of a group feature map; arguments as ``torch.nn.MaxPool2d``.

    Shape:
        (B, C, |H|, Y, X) to (B, C, |H|, Y', X'); with ``return_indices`` also the indices, of the same shape.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode))

    def forward(self, x: Tensor) -> Any:
        """Pool the feature map of every group element."""
        if not self.module.return_indices:
            return super().forward(x)
        batch, _, order = x.shape[:3]
        pooled = self.module(x.transpose(1, 2).flatten(0, 1))
        return tuple(y.unflatten(0, (batch, order)).transpose(1, 2) for y in pooled)


class GroupCosetMaxPool(GroupPool):
    """The maximum over the group axis: (B, C, |H|, Y, X) to (B, C, Y, X)."""

    def __init__(self) -> None:
        super().__init__("max")


__all__ = ["GroupCosetMaxPool", "GroupMaxPool2d"]
