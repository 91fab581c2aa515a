"""Pooling over space and over the group axis, under the published names."""

from torch import nn

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


class GroupCosetMaxPool(GroupPool):
    """The maximum over the group axis: (B, C, |H|, Y, X) to (B, C, Y, X)."""

    def __init__(self) -> None:
        super().__init__("max")


__all__ = ["GroupCosetMaxPool", "GroupMaxPool2d"]
