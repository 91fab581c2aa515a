"""Random flips, motions and deformations of one image and its mask, by torchvision, and of one volume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from ..data import smooth_field
from ._objective import IGNORE

if TYPE_CHECKING:
    from ._image_config import ImageConfig


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of a training image (C, Y, X) and, in a segmentation, of its mask (Y, X); or of a volume.

    Args:
        transforms: functions such as those of ``torchvision.transforms.v2``, one after another.
        masks: whether the targets are masks.
    """

    transforms: tuple[Any, ...]
    masks: bool

    @classmethod
    def of(cls, config: ImageConfig, fill: Sequence[float]) -> Augmentation | None:
        """Return the augmentation of a configuration; None if there is none.

        Args:
            config: of the run.
            fill: a value for each channel, which comes in from outside the image: the mean.
        """
        from torchvision import tv_tensors
        from torchvision.transforms import v2

        filled = {tv_tensors.Image: list(fill), tv_tensors.Mask: IGNORE}
        transforms: list[Any] = []
        if config.hflip:
            transforms.append(v2.RandomHorizontalFlip())
        if config.vflip:
            transforms.append(v2.RandomVerticalFlip())
        if config.dimension == 3:
            amounts = config.rotation, config.shift, config.scale, config.elastic
            transforms += [_RandomMotion(*amounts, tuple(fill))] if any(amounts) else []
        elif config.rotation or config.shift or config.scale:
            transforms.append(
                v2.RandomAffine(
                    config.rotation,
                    translate=(config.shift, config.shift) if config.shift else None,
                    scale=(1 - config.scale, 1 + config.scale) if config.scale else None,
                    interpolation=v2.InterpolationMode.BILINEAR,
                    fill=filled,
                )
            )
        if config.dimension == 2 and config.elastic:
            transforms.append(_RandomElastic(config.elastic, filled))
        if config.crop:
            transforms.append(_RandomCrop(config.crop, filled))
        return cls(tuple(transforms), config.task == "segmentation") if transforms else None

    def __call__(self, image: Tensor, target: Any, seed: int) -> tuple[Tensor, Any]:
        """Return the augmented image, and the mask; other targets stay. The random numbers are those of the seed."""
        from torchvision import tv_tensors

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            if not self.masks:
                image = tv_tensors.Image(image)
                for transform in self.transforms:
                    image = transform(image)
                return image.as_subclass(Tensor), target
            pair = tv_tensors.Image(image), tv_tensors.Mask(target)
            for transform in self.transforms:
                pair = transform(*pair)
            return tuple(part.as_subclass(Tensor) for part in pair)  # type: ignore[return-value]


@dataclass(frozen=True)
class _RandomMotion:
    """A random rotation of a cubic volume (C, Z, Y, X) about its center, a scale, a shift and a deformation, trilinear.

    ``y(p) = x(R⁻¹(p − t)/s + field(p))``: R rotates by an angle in ±rotation degrees about an axis in any direction, s
    is in 1 ± scale, and t in ±shift, in parts of the volume's side. The field is as of RandomAffine, but trilinear.
    """

    rotation: float
    shift: float
    scale: float
    elastic: float
    fill: tuple[float, ...]

    def __call__(self, volume: Tensor) -> Tensor:
        axis = torch.nn.functional.normalize(torch.randn(3), dim=0)
        angle, factor, *shift = (2 * torch.rand(5) - 1).unbind()
        x, y, z = axis.tolist()
        cross = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
        angle = angle * math.radians(self.rotation)
        inverse = torch.eye(3) - angle.sin() * cross + (1 - angle.cos()) * (cross @ cross)  # Rodrigues' formula
        inverse = inverse / (1 + self.scale * factor)
        matrix = torch.cat([inverse, inverse @ (-2 * self.shift * torch.stack(shift))[:, None]], 1)
        grid = affine_grid(matrix[None], [1, *volume.shape], align_corners=False)  # whose sides are 2
        if self.elastic:
            grid = grid + 2 * self.elastic * smooth_field(1, volume.shape[-3:]).flip(1).permute(0, 2, 3, 4, 1)
        fill = torch.tensor(self.fill).view(-1, 1, 1, 1)
        moved = grid_sample(volume.as_subclass(Tensor)[None] - fill, grid, mode="bilinear", align_corners=False)
        return moved[0] + fill


@dataclass(frozen=True)
class _RandomElastic:
    """A random elastic deformation, as of RandomAffine."""

    elastic: float
    fill: Any

    def __call__(self, *images: Any) -> Any:
        from torchvision.transforms.v2 import InterpolationMode, functional

        size = images[0].shape[-2:]
        displacement = 2 * self.elastic * smooth_field(1, size).flip(1).permute(0, 2, 3, 1)
        moved = [
            functional.elastic(image, displacement, InterpolationMode.BILINEAR, self.fill[type(image)])
            for image in images
        ]
        return moved if len(moved) > 1 else moved[0]


@dataclass(frozen=True)
class _RandomCrop:
    """A random crop to the size of the image, after it was padded."""

    padding: int
    fill: Any

    def __call__(self, *images: Any) -> Any:
        from torchvision.transforms import v2

        return v2.RandomCrop(images[0].shape[-2:], padding=self.padding, fill=self.fill)(*images)
