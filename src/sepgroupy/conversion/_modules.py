"""The layers of a converted network, whose feature maps have the group axis merged into the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .._nested import map_leaves
from ..functional import merge_group, split_group
from ..nn import GroupConv, LiftingConv


class MergedGroupConv(nn.Module):
    """A lifting or group convolution between feature maps (B·|H|, …), the group axis merged into the batch.

    Args:
        convolution: the group layer.
        layout: of its input: "maps" (N, C, *spatial); "pixels" (N, *spatial, C), as a linear layer reads them; or
            "values" (N, C·…), feature maps of the kernel's size, flattened.
    """

    def __init__(self, convolution: LiftingConv | GroupConv, layout: str = "maps") -> None:
        super().__init__()
        self.convolution, self.layout = convolution, layout

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; an image (B, …) becomes (B·|H|, …)."""
        if self.layout == "pixels":
            return self._convolve(x.movedim(-1, 1)).movedim(1, -1)
        if self.layout == "values":
            return self._convolve(x.unflatten(1, (-1, *self.convolution.kernel_size))).flatten(1)
        return self._convolve(x)

    def _convolve(self, x: Tensor) -> Tensor:
        layer = self.convolution
        return merge_group(layer(x if layer.kind == "lifting" else split_group(x, layer.group.order)), layer.dimension)

    def extra_repr(self) -> str:
        """Name the layout."""
        return self.layout


class MergedGroupPool(nn.Module):
    """Pool over the group, (B·|H|, C, …) to (B, C, …): :class:`sepgroupy.nn.GroupPool` on a merged group axis.

    Args:
        order: the group's order |H|.
        mode: "max" or "mean".
        outputs: if the input is nested, the names of the tensors to pool, such as ``output['out']``; by default all.
    """

    def __init__(self, order: int, mode: str, outputs: Sequence[str] | None = None) -> None:
        super().__init__()
        self.order, self.mode = order, mode
        self.outputs = None if outputs is None else tuple(outputs)

    def forward(self, x: Any) -> Any:
        """Take the maximum or the mean over the |H| feature maps of each image."""
        return map_leaves(self._pool, x, "output")

    def _pool(self, name: str, x: Any) -> Any:
        if name not in self.outputs if self.outputs is not None else x is None:
            return x
        values = split_group(x, self.order)
        return values.amax(2) if self.mode == "max" else values.mean(2)

    def extra_repr(self) -> str:
        """Name order and mode."""
        return f"{self.order}, {self.mode}"
