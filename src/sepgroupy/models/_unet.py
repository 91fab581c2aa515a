"""A U-Net that maps pictures to masks and turns with them, exactly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import fold, unfold
from ..groups import PointGroup
from ..nn import GroupConvTranspose2d, GroupPool
from ..nn._base import DEFAULT_INIT
from ._layers import Layers, check_counts, check_pictures, convolve


class UNet(nn.Module):
    """Encoder and decoder with skip connections, from a picture to one score for each class and pixel.

    Each level has two 3×3 convolutions with batch norm and ReLU. On the way down a maximum over 2×2 pixels halves
    the picture and the width doubles; on the way up a transposed 2×2 convolution with stride 2 undoes both and the
    map of the same level on the way down is concatenated. At the end come group pooling and a 1×1 convolution. All
    windows tile sizes that ``2**depth`` divides, so that ``net(t·x) = t·net(x)`` for every t of the group, to
    rounding.

    Args:
        kind: "plain" (ordinary convolutions), or the "dense", "g" or "gc" of a group.
        width: channels of the first level.
        group: the point group of the kinds dense, g and gc.
        in_channels: channels of the picture.
        classes: number of classes.
        depth: how often the picture is halved.
        init: as :class:`sepgroupy.nn.GroupConv2d`, for group convolutions.

    Shape:
        (B, in_channels, Y, X) to logits (B, classes, Y, X), Y and X divisible by ``2**depth``.

    Raises:
        ArgumentError: an argument is none of its values, or the picture is of another size.

    Source of the architecture: Ronneberger, Fischer & Brox (2015), U-Net, figure 1; padded here.
    """

    def __init__(
        self,
        kind: str = "gc",
        width: int = 16,
        group: PointGroup | str = "p4m",
        in_channels: int = 3,
        classes: int = 2,
        depth: int = 3,
        init: str = DEFAULT_INIT,
    ) -> None:
        super().__init__()
        check_counts(width=width, in_channels=in_channels, classes=classes, depth=depth)
        layers = Layers(kind, group, init=init)
        self.group, self.order = layers.group, layers.order
        self.in_channels, self.depth = in_channels, depth
        widths = [width * 2**level for level in range(depth + 1)]
        first = layers.first(in_channels, width, 3, padding=1, bias=False)
        self.down = nn.ModuleList([_Level(layers, first, width)])
        for channels in widths[1:]:
            self.down.append(_Level(layers, layers.hidden(channels // 2, channels, 3, padding=1, bias=False), channels))
        self.grow, self.up = nn.ModuleList(), nn.ModuleList()
        for channels in reversed(widths[:-1]):
            self.grow.append(_transposed(layers, 2 * channels, channels))
            self.up.append(_Level(layers, layers.hidden(2 * channels, channels, 3, padding=1, bias=False), channels))
        self.pool = GroupPool("max")
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (B, classes, Y, X)."""
        check_pictures(x, self.in_channels, depth=self.depth)
        x = self.down[0](x)
        skipped = []
        for level in self.down[1:]:
            skipped.append(x)
            x = level(F.max_pool2d(x, 2))
        for grow, level in zip(self.grow, self.up, strict=True):
            x = grow(x) if self.group is None else fold(grow(unfold(x, self.order)))
            x = level(torch.cat([skipped.pop(), x], 1))
        return self.classify(self.pool(unfold(x, self.order)))


class _Level(nn.Module):
    """``y = relu(bn2(conv2(relu(bn1(conv1(x))))))`` from folded maps, or a picture, to folded maps."""

    def __init__(self, layers: Layers, first: nn.Module, channels: int) -> None:
        super().__init__()
        self.order, self.conv1 = layers.order, first
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = layers.hidden(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve twice."""
        y = convolve(self.conv2, convolve(self.conv1, x, self.order), self.order, self.bn1)
        return F.relu(self.bn2(y))


def _transposed(layers: Layers, in_channels: int, out_channels: int) -> nn.Module:
    if layers.group is None:
        return nn.ConvTranspose2d(in_channels, out_channels, 2, 2)
    return GroupConvTranspose2d(in_channels, out_channels, 2, 2, group=layers.group, kind=layers.kind, init=layers.init)
