"""The seven networks for rotated MNIST (Lengyel & van Gemert, 2021, section 4.1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..groups import PointGroup
from ..nn import GroupPool
from ._layers import Layers, check_counts, check_images

KERNELS = (3, 3, 3, 3, 3, 3, 4)


class RotMNISTNet(nn.Module):
    """Seven convolutions without padding, each with batch norm and ReLU, a maximum over the group, one linear layer.

    3×3, 3×3, max-pool 2, then 3×3 four times and 4×4: a 28×28 image becomes one pixel. On a group the network is
    invariant, ``net(t·x) = net(x)``, exactly.

    Args:
        kind: "plain" (plain convolutions), "c" (1×1 then depthwise), or the "dense", "g" or "gc" of a group.
        width: channels of every convolution.
        group: the point group of the kinds dense, g and gc.
        in_channels: channels of the image.
        classes: number of classes.
        backend: as :class:`sepgroupy.nn.GroupConv2d`, for the layers that support it.
        init: as :class:`sepgroupy.nn.GroupConv2d`, for group convolutions; with "published" the parameters
            equal, at equal seed, those of the published networks bitwise. Plain layers have PyTorch's initialization.

    Shape:
        (B, in_channels, 28, 28) to log-probabilities (B, classes).

    Raises:
        ArgumentError: an argument has an unknown value, or the image is of another size.
    """

    def __init__(
        self,
        kind: str,
        width: int,
        group: PointGroup | str = "p4",
        in_channels: int = 1,
        classes: int = 10,
        backend: str = "auto",
        init: str = "published",
    ) -> None:
        super().__init__()
        check_counts(width=width, in_channels=in_channels, classes=classes)
        self.in_channels = in_channels
        layers = Layers(kind, group, ("plain", "c"), backend, init)
        self.group, self.order = layers.group, layers.order
        for index, kernel in enumerate(KERNELS, start=1):
            convolution = (
                layers.first(in_channels, width, kernel) if index == 1 else layers.hidden(width, width, kernel)
            )
            self.add_module(f"conv{index}", convolution)
            self.add_module(f"bn{index}", layers.norm(width))
        self.relu = nn.ReLU()
        self.max_pool = layers.pool("MaxPool")
        self.pool = nn.Identity() if layers.group is None else GroupPool("max")
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities, (B, classes)."""
        x = check_images(x, self.in_channels, 28)
        for index in range(1, len(KERNELS) + 1):
            x = self.relu(getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(x)))
            if index == 2:
                x = self.max_pool(x)
        return F.log_softmax(self.fc(self.pool(x).flatten(1)), dim=1)
