"""Images rotated about their center by any angle."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from ..errors import ArgumentError

_BATCH = 1024  # images at a time, so that the sampling grids of 60,000 stay small


def rotate(images: Tensor, angles: Tensor | float) -> Tensor:
    """Rotate each image counter-clockwise about its center, by its own angle.

    ``y(p) = x(R(-θ) p)``, with p measured from the centre of the array, x interpolated bilinearly between
    pixel centres and 0 outside. A 90° rotation of a square image is ``torch.rot90(x, 1, (-2, -1))`` to
    rounding.

    Args:
        images: floating point, shape (N, C, Y, X).
        angles: in radians, shape (N,), or one angle for all.

    Raises:
        ArgumentError: ``images`` or ``angles`` has another shape or type, or an angle is not finite.

    >>> rotate(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.pi / 2).round(decimals=5)
    tensor([[[[2., 4.],
              [1., 3.]]]])
    """
    if images.ndim != 4 or not images.is_floating_point():
        shape = f"{images.dtype} of shape {tuple(images.shape)}"
        raise ArgumentError(f"images must be floating point of shape (N, C, Y, X), not {shape}")
    angles = torch.as_tensor(angles, dtype=torch.float64, device=images.device)
    if angles.shape not in ((), images.shape[:1]):
        raise ArgumentError(f"angles must be one number or of shape ({len(images)},), not {tuple(angles.shape)}")
    if not angles.isfinite().all():
        raise ArgumentError("angles must be finite")
    rotated = torch.empty_like(images)
    each = angles.expand(len(images))
    for start in range(0, len(images), _BATCH):
        part = slice(start, start + _BATCH)
        rotated[part] = _rotate(images[part], each[part])
    return rotated


def _rotate(
    images: Tensor,  # (N, C, Y, X)
    angles: Tensor,  # (N,) float64
) -> Tensor:
    # In float64, so that the result in float32 does not depend on the machine's order of rounding.
    still = torch.zeros_like(angles)
    return move(images.double(), angles, still + 1, torch.stack([still, still], 1))


def move(
    images: Tensor,  # (N, C, Y, X)
    angles: Tensor,  # (N,) in radians
    scales: Tensor,  # (N,)
    shifts: Tensor,  # (N, 2): down and to the right, in parts of the image's height and width
    field: Tensor | None = None,  # (N, 2, Y, X), of the same kind
    mode: str = "bilinear",
) -> Tensor:
    """Scale each image, rotate it counter-clockwise, and shift it: ``y(p) = x(R(-θ)(p - t)/s)``, as :func:`rotate`.

    With a field of displacements, ``y(p) = x(R(-θ)(p - t)/s + field(p))``.
    """
    rows, columns = images.shape[-2:]
    cos, sin = angles.cos() / scales, angles.sin() / scales
    # grid_sample's coordinates are (x, y), y pointing down, with the edges of the image at -1 and 1.
    inverse = torch.stack([cos, -sin * rows / columns, sin * columns / rows, cos], 1).view(-1, 2, 2)
    matrix = torch.cat([inverse, inverse @ (-2 * shifts.flip(1)).unsqueeze(2)], 2)
    grid = affine_grid(matrix, list(images.shape), align_corners=False)
    if field is not None:
        grid = grid + 2 * field.flip(1).permute(0, 2, 3, 1)
    return grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)
