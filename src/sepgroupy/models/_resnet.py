"""The pre-activation ResNets for CIFAR-10 (Lengyel & van Gemert, 2021, section 4.2; after He et al., 2016)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import ArgumentError
from ..groups import GroupLike
from ._layers import Layers, check_choice, check_counts


class ResNet(nn.Module):
    """A 3×3 convolution, three stages of pre-activation basic blocks, global average, one linear layer.

    Stages 2 and 3 halve the image. The published network reads the average of every group element separately
    (channels × group), so that its output depends on the orientation (``head="oriented"``); ``head="invariant"`` takes
    the mean over the group first. The published downsampling (``"strided"``: stride 2 of a 3×3 kernel and of the 1×1 in
    the residual connection) samples a grid that is asymmetric on an even number of pixels.
    ``downsampling="equivariant"`` uses a 4×4 kernel instead, and an average of 2×2 pixels before the 1×1. The network
    is then equivariant to rounding as long as the sizes are even.

    Args:
        kind: "plain" (plain convolutions), or the "dense", "g" or "gc" of a group.
        depth: 6n + 2 layers, n blocks in each stage.
        widths: channels of the three stages.
        group: the point group of the kinds dense, g and gc; by default "p4m", of volumes "O".
        in_channels: channels of the image.
        classes: number of classes.
        head: "oriented" or "invariant".
        downsampling: "strided" or "equivariant".
        backend: as :class:`sepgroupy.nn.GroupConv2d`, for the layers that support it.
        init: as :class:`sepgroupy.nn.GroupConv2d`, for group convolutions. With "published" the parameters
            equal, at equal seed, those of the published networks bitwise: the convolutions of a plain network are drawn
            twice, the second time from a normal distribution with variance ``2/(out_channels·k²)``. With "variance"
            they have PyTorch's initialization.
        dimension: 3 for volumes: kernels 3×3×3, or 4×4×4 in equivariant downsampling.

    Shape:
        (B, in_channels, Y, X) to logits (B, classes); volumes have Z too.

    Raises:
        ArgumentError: an argument has an unknown value.
    """

    def __init__(
        self,
        kind: str,
        depth: int = 44,
        widths: Sequence[int] = (32, 64, 128),
        group: GroupLike | None = None,
        in_channels: int = 3,
        classes: int = 10,
        head: str = "oriented",
        downsampling: str = "strided",
        backend: str = "auto",
        init: str = "published",
        dimension: int = 2,
    ) -> None:
        super().__init__()
        self.layer1: nn.Sequential
        self.layer2: nn.Sequential
        self.layer3: nn.Sequential
        check_choice("head", head, ("oriented", "invariant"))
        check_choice("downsampling", downsampling, ("strided", "equivariant"))
        if not isinstance(depth, int) or depth < 8 or (depth - 2) % 6:
            raise ArgumentError(f"depth (={depth!r}) must be 6n + 2 with n at least 1, such as 20, 32 or 44")
        if not isinstance(widths, Sequence) or len(widths) != 3:
            raise ArgumentError(f"widths (={widths!r}) must be three numbers of channels")
        check_counts(in_channels=in_channels, classes=classes, **{f"widths[{i}]": w for i, w in enumerate(widths)})
        layers = Layers(kind, group, backend=backend, init=init, dimension=dimension)
        self.group, self.order, self.head, self.dimension = layers.group, layers.order, head, dimension
        self.conv1 = layers.first(in_channels, widths[0], 3, padding=1, bias=False)
        channels = widths[0]
        for stage, width in enumerate(widths, start=1):
            blocks = []
            for index in range((depth - 2) // 6):
                blocks.append(_Block(layers, channels, width, stage > 1 and index == 0, downsampling == "equivariant"))
                channels = width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.bn1 = layers.norm(channels)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(channels * (1 if head == "invariant" else self.order), classes)
        if layers.group is None and init == "published":
            for module in self.modules():
                if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                    fan_out = module.out_channels * math.prod(module.kernel_size)
                    nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (B, classes)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = self.relu(self.bn1(x)).mean(tuple(range(-self.dimension, 0)))  # (B, C, |H|), or (B, C)
        return self.fc(x.mean(2) if self.head == "invariant" and self.group is not None else x.flatten(1))


class _Block(nn.Module):
    """``y = conv2(relu(bn2(conv1(relu(bn1(x))))))``, plus x or, where the shape changes, plus bn(conv1x1(x))."""

    def __init__(self, layers: Layers, in_channels: int, out_channels: int, halve: bool, exact: bool) -> None:
        super().__init__()
        stride, kernel = (2 if halve else 1), (4 if halve and exact else 3)
        downsample, average = None, None
        if halve or in_channels != out_channels:  # built first: the published code draws it first
            average = layers.pool("AvgPool") if halve and exact else None
            pointwise = layers.hidden(in_channels, out_channels, 1, 1 if average is not None else stride, bias=False)
            downsample = nn.Sequential(pointwise, layers.norm(out_channels))
        self.bn1 = layers.norm(in_channels)
        self.conv1 = layers.hidden(in_channels, out_channels, kernel, stride, padding=1, bias=False)
        self.bn2 = layers.norm(out_channels)
        self.conv2 = layers.hidden(out_channels, out_channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        self.average = average
        self.downsample = downsample  # registered last: the order of the published state dicts

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual to the output of two convolutions."""
        y = self.conv1(self.relu(self.bn1(x)))
        if self.average is not None:
            x = self.average(x)
        if self.downsample is not None:
            x = self.downsample(x)
        return self.conv2(self.relu(self.bn2(y))) + x
