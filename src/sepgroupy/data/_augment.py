"""Random crops, flips, rotations, shifts, scales and deformations of whole batches, each image by its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate, pad

from .._devices import send
from ..errors import ArgumentError
from ._rotate import move


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
        top, left = send(torch.randint(2 * self.padding + 1, (2, count, 1), generator=generator), device)
        flipped = send(torch.rand(count, 1, generator=generator), device) < (0.5 if self.hflip else 0)
        columns = torch.arange(width, device=device).expand(count, width)
        columns = left + torch.where(flipped, columns.flip(1), columns)
        rows = top + torch.arange(height, device=device)
        # One index for each pixel of an image, shared by its channels.
        index = rows[:, :, None] * (width + 2 * self.padding) + columns[:, None, :]
        index = index.view(count, 1, -1).expand(-1, channels, -1)
        return pad(images, [self.padding] * 4).flatten(2).gather(2, index).view(images.shape)


_NODES = 5  # of the grid of an elastic deformation, on each axis


@dataclass(frozen=True)
class RandomAffine:
    """A random scale, rotation, shift and elastic deformation of each image, zeros coming in. For training images only.

    ``y(p) = x(R(-θ)(p − t)/s + field(p))``, bicubic, so that training images are as sharp as others. The field of an
    elastic deformation is smooth: its values at 5×5 nodes that span the image are drawn from a normal distribution, and
    it is bicubic between them.

    Unlike ``torchvision.transforms.v2.RandomAffine``, which draws once for a batch, every image has its own draw: the
    angle is uniform in ±rotation, the factor in 1 ± scale, the shift in ±shift on either axis.

    Args:
        rotation: largest angle in degrees; 180 for every orientation.
        shift: largest shift, in parts of the image's height and width.
        scale: largest change of the size.
        elastic: standard deviation of the displacement at a node, in parts of the image's height and width.

    Raises:
        ArgumentError: a value is negative or not finite, or ``scale`` is not below 1.
    """

    rotation: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    elastic: float = 0.0

    def __post_init__(self) -> None:
        for name, value, least_wrong in (
            ("rotation", self.rotation, math.inf),
            ("shift", self.shift, math.inf),
            ("scale", self.scale, 1.0),
            ("elastic", self.elastic, math.inf),
        ):
            if not 0 <= value < least_wrong:
                raise ArgumentError(f"{name} (={value!r}) must be in [0, {least_wrong:g})")

    def __call__(
        self,
        images: Tensor,  # (N, C, Y, X), floating point, on any device
        generator: Generator | None = None,  # on the CPU, so that the draw is the same on every device
    ) -> Tensor:
        """Return a batch of the same shape; angles, factors, shifts and displacements are drawn in this order.

        Raises:
            ArgumentError: the images have another number of axes, or are not floating point.
        """
        if images.ndim != 4 or not images.is_floating_point():
            shape = f"{images.dtype} of shape {tuple(images.shape)}"
            raise ArgumentError(f"images must be floating point of shape (N, C, Y, X), not {shape}")
        drawn = send(2 * torch.rand(4, len(images), generator=generator) - 1, images.device).to(images.dtype)
        angles, factors = math.radians(self.rotation) * drawn[0], 1 + self.scale * drawn[1]
        field = None
        if self.elastic:
            field = self.elastic * send(smooth_field(len(images), images.shape[-2:], generator), images.device)
        return move(images, angles, factors, self.shift * drawn[2:].T, field, "bicubic")


def smooth_field(count: int, size: Sequence[int], generator: Generator | None = None) -> Tensor:
    """Draw smooth fields of displacements ``(N, d, *size)``, standard normal at 5 nodes along each of the d axes.

    Between the nodes an image's field (d = 2) is bicubic, a volume's (d = 3) trilinear.
    """
    nodes = torch.randn(count, len(size), *[_NODES] * len(size), generator=generator)
    return interpolate(nodes, list(size), mode="bicubic" if len(size) == 2 else "trilinear", align_corners=True)
