"""Pooling over space and over the group axis, under the published names."""

from torch import nn

from ..nn import GroupPool, PerElement


class GroupMaxPool2d(PerElement):
    """Spatial max-pooling of a map on the group; arguments as ``torch.nn.MaxPool2d``."""

    def __init__(self, kernel_size: int, stride: int | None = None, padding: int = 0) -> None:
        super().__init__(nn.MaxPool2d(kernel_size, stride, padding))


class GroupCosetMaxPool(GroupPool):
    """The maximum over the group axis: (B, C, |H|, Y, X) to (B, C, Y, X)."""

    def __init__(self) -> None:
        super().__init__("max")


__all__ = ["GroupCosetMaxPool", "GroupMaxPool2d"]
