"""Random crops and flips of whole batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from ..errors import ArgumentError


@dataclass(frozen=True)
class RandomCropFlip:
    """The augmentation of CIFAR10+: a random crop of each zero-padded image, then a random horizontal flip.

    Each image is padded by ``padding`` zeros on all sides, cut to its former size at an offset of its own, uniform
    in 0..2·padding on both axes, and flipped with probability ½. For training images only.

    Args:
        padding: in pixels; 0 for no crop.
        hflip: whether to flip.

    Raises:
        ArgumentError: ``padding`` is negative.

    >>> augment = RandomCropFlip(padding=1, hflip=False)
    >>> augment(torch.ones(1, 1, 2, 2), torch.Generator().manual_seed(0))
    tensor([[[[0., 1.],
              [0., 0.]]]])
    """

    padding: int = 4
    hflip: bool = True

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ArgumentError(f"padding (={self.padding}) must be at least 0")

    def __call__(
        self,
        images: Tensor,  # (N, C, Y, X), on any device
        generator: Generator | None = None,  # on the CPU, so that the draw is the same on every device
    ) -> Tensor:
        """Return a batch of the same shape; the rows' and columns' offsets are drawn first, then the flips.

        Raises:
            ArgumentError: the images have another number of axes.
        """
        if images.ndim != 4:
            raise ArgumentError(f"images must have the shape (N, C, Y, X), not {tuple(images.shape)}")
        count, channels, height, width = images.shape
        device = images.device
        top, left = torch.randint(2 * self.padding + 1, (2, count, 1), generator=generator).to(device)
        flipped = torch.rand(count, 1, generator=generator).to(device) < (0.5 if self.hflip else 0)
        columns = torch.arange(width, device=device).expand(count, width)
        columns = left + torch.where(flipped, columns.flip(1), columns)
        rows = top + torch.arange(height, device=device)
        # One index for each pixel of an image, shared by its channels.
        index = rows[:, :, None] * (width + 2 * self.padding) + columns[:, None, :]
        index = index.view(count, 1, -1).expand(-1, channels, -1)
        return pad(images, [self.padding] * 4).flatten(2).gather(2, index).view(images.shape)
