"""What a converted network is made of: layers between rows, maps with the group axis folded into the batch."""

from __future__ import annotations

from torch import Tensor, nn

from ..functional import merge_group, split_group
from ..nn import GroupConv2d, LiftingConv2d


class FoldedConvolution(nn.Module):
    """A lifting or group convolution between rows, (B·|H|, …): the counterpart of :class:`sepgroupy.nn.PerElement`.

    Args:
        convolution: the layer on the group.
        layout: how the rows lie: "maps" (N, C, Y, X), "pixels" (N, Y, X, C), as a linear layer reads them, or
            "values" (N, C·Y·X), maps of the kernel's size, flattened.
    """

    def __init__(self, convolution: LiftingConv2d | GroupConv2d, layout: str = "maps") -> None:
        super().__init__()
        self.convolution, self.layout = convolution, layout

    def forward(self, x: Tensor) -> Tensor:
        """Map rows to rows, or an image to |H| rows."""
        if self.layout == "pixels":
            return self._convolve(x.movedim(-1, 1)).movedim(1, -1)
        if self.layout == "values":
            return self._convolve(x.unflatten(1, (-1, *self.convolution.kernel_size))).flatten(1)
        return self._convolve(x)

    def _convolve(self, x: Tensor) -> Tensor:
        layer = self.convolution
        return merge_group(layer(x if layer.kind == "lifting" else split_group(x, layer.group.order)))

    def extra_repr(self) -> str:
        """Name the layout."""
        return self.layout


class FoldedPool(nn.Module):
    """Pool rows over the group, (B·|H|, C, …) to (B, C, …): :class:`sepgroupy.nn.GroupPool` between rows.

    Args:
        order: the group's order |H|.
        mode: "max" or "mean".
    """

    def __init__(self, order: int, mode: str) -> None:
        super().__init__()
        self.order, self.mode = order, mode

    def forward(self, x: Tensor) -> Tensor:
        """Take the maximum or the mean of the |H| rows of each picture."""
        maps = split_group(x, self.order)
        return maps.amax(2) if self.mode == "max" else maps.mean(2)

    def extra_repr(self) -> str:
        """Name order and mode."""
        return f"{self.order}, {self.mode}"
