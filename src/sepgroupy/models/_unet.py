"""A U-Net from images to masks that is equivariant to rounding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..groups import GroupLike
from ..nn import DEFAULT_INIT, GroupPool
from ._layers import Layers, check_counts, check_images


class UNet(nn.Module):
    """Encoder and decoder with skip connections, from an image to one score for each class and pixel.

    Each level has two 3×3 convolutions with batch norm and ReLU. In the encoder a maximum over 2×2 pixels halves the
    image and the width doubles. In the decoder a transposed 2×2 convolution with stride 2 undoes both, and the
    encoder's feature map of the same level is concatenated. The last layers are group pooling and a 1×1 convolution.
    All windows tile sizes divisible by ``2**depth``, so that ``net(t·x) = t·net(x)`` for every t of the group, to
    rounding.

    Args:
        kind: "plain" (plain convolutions), or the "dense", "g" or "gc" of a group.
        width: channels of the first level.
        group: the point group of the kinds dense, g and gc; by default "p4m", of volumes "O".
        in_channels: channels of the image.
        classes: number of classes.
        depth: the number of times that the image is halved.
        backend: as :class:`sepgroupy.nn.GroupConv2d`, for the layers that support it.
        init: "variance", the default, or "published": draws the parameters of the lifting, group and transposed group
            convolutions, as :class:`sepgroupy.nn.GroupConv2d`. Plain convolutions have PyTorch's initialization.
        dimension: 3 for volumes: kernels 3×3×3, windows 2×2×2.

    Shape:
        (B, in_channels, Y, X) to logits (B, classes, Y, X), Y and X divisible by ``2**depth``; volumes have Z too.

    Raises:
        ArgumentError: an argument has an unknown value, or the image is of another size.

    Source of the architecture: Ronneberger, Fischer & Brox (2015), U-Net, figure 1; padded here.
    """

    def __init__(
        self,
        kind: str = "gc",
        width: int = 16,
        group: GroupLike | None = None,
        in_channels: int = 3,
        classes: int = 2,
        depth: int = 3,
        backend: str = "auto",
        init: str = DEFAULT_INIT,
        dimension: int = 2,
    ) -> None:
        super().__init__()
        check_counts(width=width, in_channels=in_channels, classes=classes, depth=depth)
        layers = Layers(kind, group, backend=backend, init=init, dimension=dimension)
        self.group, self.order = layers.group, layers.order
        self.in_channels, self.depth, self.dimension = in_channels, depth, dimension
        widths = [width * 2**level for level in range(depth + 1)]
        first = layers.first(in_channels, width, 3, padding=1, bias=False)
        self.down = nn.ModuleList([_Level(layers, first, width)])
        for channels in widths[1:]:
            self.down.append(_Level(layers, layers.hidden(channels // 2, channels, 3, padding=1, bias=False), channels))
        self.grow, self.up = nn.ModuleList(), nn.ModuleList()
        for channels in reversed(widths[:-1]):
            self.grow.append(layers.upsampling(2 * channels, channels))
            self.up.append(_Level(layers, layers.hidden(2 * channels, channels, 3, padding=1, bias=False), channels))
        self.max_pool = layers.pool("MaxPool")
        self.pool = nn.Identity() if layers.group is None else GroupPool("max", dimension)
        self.classify = layers.plain("Conv", width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (B, classes, Y, X)."""
        x = check_images(x, self.in_channels, depth=self.depth, dimension=self.dimension)
        x = self.down[0](x)
        skipped = []
        for level in self.down[1:]:
            skipped.append(x)
            x = level(self.max_pool(x))
        for grow, level in zip(self.grow, self.up, strict=True):
            x = level(_concatenate(skipped.pop(), grow(x), self.dimension))
        return self.classify(self.pool(x))


def _concatenate(a: Tensor, b: Tensor, dimension: int) -> Tensor:
    """Concatenate channels, with the group axis outermost in memory, as in the output of the layers."""
    axis = -1 - dimension
    return torch.cat([a.movedim(1, axis), b.movedim(1, axis)], axis).movedim(axis, 1)


class _Level(nn.Module):
    """``y = relu(bn2(conv2(relu(bn1(conv1(x))))))``."""

    def __init__(self, layers: Layers, first: nn.Module, channels: int) -> None:
        super().__init__()
        self.conv1 = first
        self.bn1 = layers.norm(channels)
        self.conv2 = layers.hidden(channels, channels, 3, padding=1, bias=False)
        self.bn2 = layers.norm(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve twice."""
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
