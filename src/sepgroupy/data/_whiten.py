"""Contrast normalisation and ZCA whitening of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ArgumentError

_CHUNK = 2048  # images at a time in float64, so that 50,000 fit into memory
_MIN_DEVIATION = 1e-8  # an image of less contrast than this is only centred
_EPSILON = 1e-5
_RANK_TOLERANCE = 1e-6  # far above the rounding of float32 images, far below any detail of real ones


def contrast_normalize(images: Tensor) -> Tensor:
    """Subtract from each image its mean over all its values and divide it by its standard deviation.

    ``y = (x - mean(x)) / std(x)``, with n - 1 in the variance; a deviation below 1e-8 counts as 1.
    Each image is computed in float64 and rounded once, so that its values sum to 0 as nearly as float32 allows.

    Args:
        images: any real type, shape (N, …), at least two values an image.

    Returns:
        float32, same shape.

    Raises:
        ArgumentError: an image has fewer than two values.
    """
    values = _flat(images)
    if values.shape[1] < 2:
        raise ArgumentError(f"images of shape {tuple(images.shape)} have no contrast: give (N, C, Y, X)")
    normalized = values.new_empty(values.shape, dtype=torch.float32)
    for source, target in zip(values.split(_CHUNK), normalized.split(_CHUNK), strict=True):
        centred = source.double()
        centred = centred - centred.mean(1, keepdim=True)
        deviation = centred.std(1, keepdim=True)
        target.copy_(centred / deviation.where(deviation >= _MIN_DEVIATION, 1.0))
    return normalized.view(images.shape)


@dataclass(frozen=True, eq=False)
class ZCA:
    """Whitening that changes images as little as possible: ``y = (x - mean) W``, with W symmetric.

    ``W = U diag(1 / (S + 1e-5)) Uᵀ``, with U the principal axes of the training images and S the standard
    deviations along them. Whatever is whitened, training or test images, is centred and multiplied with the
    statistics of the images that :meth:`fit` saw.

    Where the training images do not vary at all (S under 1e-6 of the largest S) the factor is 0, not 1e5: the
    formula multiplies an exact zero there, a computer would amplify its rounding. One such direction is
    the constant image, after :func:`contrast_normalize`. This changes the formula's result only if there are fewer
    training images than directions, and then only for test images that leave the span of the training images.

    Args:
        mean: float32, shape of an image, (C, Y, X).
        matrix: W, float32, shape (n, n), n = C·Y·X.

    Raises:
        ArgumentError: ``matrix`` does not fit ``mean``.

    >>> images = torch.tensor([[1.0, 2.0], [3.0, 2.0], [2.0, 0.0], [2.0, 4.0]]).view(4, 1, 1, 2)
    >>> ZCA.fit(images).matrix.inverse()  # the deviations: the axes are those of the image
    tensor([[0.8165, 0.0000],
            [0.0000, 1.6330]])
    """

    mean: Tensor
    matrix: Tensor

    def __post_init__(self) -> None:
        if self.matrix.shape != (self.mean.numel(), self.mean.numel()):
            wanted = f"square with {self.mean.numel()} rows, as mean has {self.mean.numel()} values"
            raise ArgumentError(f"matrix must be {wanted}, not of shape {tuple(self.matrix.shape)}")

    @classmethod
    def fit(cls, images: Tensor) -> ZCA:
        """Return the whitening whose statistics are those of ``images``.

        Mean, covariance and axes are computed in float64. The smallest deviations of images with a natural spectrum
        are about 1e-3 of the largest, so that the rounding of a float32 covariance is as large as their squares.

        Args:
            images: the training images, any real type, shape (N, C, Y, X), N at least 2.

        Raises:
            ArgumentError: there are fewer than two images, or a value is not finite.
        """
        values = _flat(images)
        count, size = values.shape
        if count < 2:
            raise ArgumentError(f"images must be at least two to vary, not {count}")
        mean = sum(chunk.double().sum(0) for chunk in values.split(_CHUNK)) / count
        if not mean.isfinite().all():
            raise ArgumentError("images must be finite")
        if count <= size:  # cheaper than a covariance of this size
            _, singular, rows = torch.linalg.svd(values.double() - mean, full_matrices=False)
            axes, deviations = rows.T, singular / (count - 1) ** 0.5
        else:
            scatter = mean.new_zeros(size, size)
            for chunk in values.split(_CHUNK):
                centred = chunk.double() - mean
                scatter.addmm_(centred.T, centred)
            squares, axes = torch.linalg.eigh(scatter)
            deviations = (squares.clamp_(min=0) / (count - 1)).sqrt()
        varying = deviations > _RANK_TOLERANCE * deviations.max()
        factors = torch.where(varying, 1 / (deviations + _EPSILON), 0)
        matrix = (axes * factors) @ axes.T
        return cls(mean.float().view(images.shape[1:]), matrix.float())

    def __call__(self, images: Tensor) -> Tensor:
        """Return the whitened images.

        Args:
            images: any real type, shape (N, C, Y, X), of the size that was fitted, on the same device.

        Returns:
            float32, same shape.

        Raises:
            ArgumentError: the images have another size.
        """
        if images.shape[1:] != self.mean.shape:
            raise ArgumentError(f"images must have the shape (N, *{tuple(self.mean.shape)}), not {tuple(images.shape)}")
        values, mean = _flat(images), self.mean.flatten()
        whitened = mean.new_empty(values.shape)
        for source, target in zip(values.split(_CHUNK), whitened.split(_CHUNK), strict=True):
            torch.mm(source.float() - mean, self.matrix, out=target)
        return whitened.view(images.shape)


def _flat(images: Tensor) -> Tensor:
    if images.ndim < 2:
        raise ArgumentError(f"images must have the shape (N, C, Y, X), not {tuple(images.shape)}")
    return images.flatten(1)
