"""The seven networks for rotated MNIST (Lengyel & van Gemert, 2021, section 4.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import unfold
from ..groups import PointGroup
from ..nn import GroupPool
from ..nn._norm import norm_relu_pool
from ._layers import Layers, check_counts, check_pictures, convolve

KERNELS = (3, 3, 3, 3, 3, 3, 4)


class RotMNISTNet(nn.Module):
    """Seven convolutions without padding, each with batch norm and ReLU, a maximum over the group, one linear layer.

    3×3, 3×3, max-pool 2, then 3×3 four times and 4×4: a 28×28 picture becomes one pixel. On a group the network is
    invariant, ``net(t·x) = net(x)``, exactly.

    Args:
        kind: "plain" (ordinary convolutions), "c" (1×1 then depthwise), or the "dense", "g" or "gc" of a group.
        width: channels of every convolution.
        group: the point group of the kinds dense, g and gc.
        in_channels: channels of the picture.
        classes: number of classes.
        algorithm: as :class:`sepgroupy.nn.GroupConv2d`, for the layers whose kind knows it.
        init: as :class:`sepgroupy.nn.GroupConv2d`, for group convolutions; with "published" parameters are, at equal
            seed, bitwise those of the published networks. Ordinary layers are drawn as PyTorch draws them.

    Shape:
        (B, in_channels, 28, 28) to log-probabilities (B, classes).

    Raises:
        ArgumentError: an argument is none of its values, or the picture is of another size.
    """

    def __init__(
        self,
        kind: str,
        width: int,
        group: PointGroup | str = "p4",
        in_channels: int = 1,
        classes: int = 10,
        algorithm: str = "auto",
        init: str = "published",
    ) -> None:
        super().__init__()
        self.bn2: nn.Module
        self.bn7: nn.Module
        check_counts(width=width, in_channels=in_channels, classes=classes)
        self.in_channels = in_channels
        layers = Layers(kind, group, ("plain", "c"), algorithm, init)
        self.group, self.order, self.kernels = layers.group, layers.order, layers.kernels
        for index, kernel in enumerate(KERNELS, start=1):
            convolution = (
                layers.first(in_channels, width, kernel) if index == 1 else layers.hidden(width, width, kernel)
            )
            self.add_module(f"conv{index}", convolution)
            self.add_module(f"bn{index}", nn.BatchNorm2d(width))
        self.pool = GroupPool("max")
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities, (B, classes)."""
        check_pictures(x, self.in_channels, 28)
        for index in range(1, len(KERNELS) + 1):
            # The norm and ReLU of the layer before go with the convolution, but for those that the pooling follows.
            norm = getattr(self, f"bn{index - 1}") if index not in (1, 3) else None
            x = convolve(getattr(self, f"conv{index}"), x, self.order, norm)
            if index == 2:
                x = norm_relu_pool(self.bn2, x, self.kernels)
        x = F.relu(self.bn7(x))
        return F.log_softmax(self.fc(torch.flatten(self.pool(unfold(x, self.order)), 1)), dim=1)
