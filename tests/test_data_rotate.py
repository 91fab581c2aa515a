"""Rotation: 90° rotations, a slow definition for other angles, batches and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sepgroupy.data import rotate
from sepgroupy.errors import ArgumentError


def slow_rotate(image: np.ndarray, angle: float) -> np.ndarray:
    """Rotate one image: look, from each pixel, back to where it came from."""
    rows, columns = image.shape

    def value(row: int, column: int) -> float:
        return image[row, column] if 0 <= row < rows and 0 <= column < columns else 0.0

    rotated = np.zeros(image.shape)
    for row in range(rows):
        for column in range(columns):
            right, up = column - (columns - 1) / 2, (rows - 1) / 2 - row
            from_right = math.cos(angle) * right + math.sin(angle) * up
            from_up = -math.sin(angle) * right + math.cos(angle) * up
            y, x = (rows - 1) / 2 - from_up, from_right + (columns - 1) / 2
            top, left = math.floor(y), math.floor(x)
            for r, weight_r in ((top, top + 1 - y), (top + 1, y - top)):
                for c, weight_c in ((left, left + 1 - x), (left + 1, x - left)):
                    rotated[row, column] += weight_r * weight_c * value(r, c)
    return rotated


@pytest.mark.parametrize("size", [1, 2, 7, 28])
@pytest.mark.parametrize("multiple", [-3, -1, 0, 1, 2, 3, 4])
def test_rotations_by_multiples_of_90_degrees_are_rot90(size, multiple):
    images = torch.rand(3, 2, size, size, generator=torch.Generator().manual_seed(size))
    wanted = torch.rot90(images, multiple, (-2, -1))
    torch.testing.assert_close(rotate(images, multiple * math.pi / 2), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 6), (5, 8), (9, 4)])
def test_any_angle_follows_the_definition(shape):
    images = torch.rand(8, 1, *shape, generator=torch.Generator().manual_seed(1))
    angles = torch.tensor([0.0, 0.3, 1.0, 1.9, 2.7, -0.8, 4.4, 6.2])
    wanted = np.stack([slow_rotate(i[0].double().numpy(), float(a)) for i, a in zip(images, angles, strict=True)])
    np.testing.assert_allclose(rotate(images, angles)[:, 0].numpy(), wanted, atol=1e-6)


def test_every_image_is_rotated_by_its_own_angle_across_batches():
    images = torch.rand(2500, 1, 5, 5, generator=torch.Generator().manual_seed(2))
    multiple = torch.arange(2500) % 4
    wanted = torch.stack([torch.rot90(i, int(m), (-2, -1)) for i, m in zip(images, multiple, strict=True)])
    torch.testing.assert_close(rotate(images, multiple * math.pi / 2), wanted, rtol=0, atol=1e-6)


def test_the_dtype_is_preserved_and_the_input_not_changed():
    images = torch.rand(2, 1, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    before = images.clone()
    assert rotate(images, 0.5).dtype == torch.float64
    assert rotate(images.float(), 0.5).dtype == torch.float32
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("images", "angles", "message"),
    [
        (torch.zeros(2, 5, 5), 0.1, "images must be"),
        (torch.zeros(2, 1, 5, 5, dtype=torch.uint8), 0.1, "images must be"),
        (torch.zeros(2, 1, 5, 5), torch.zeros(3), r"angles must be one number or of shape \(2,\), not \(3,\)"),
        (torch.zeros(2, 1, 5, 5), torch.zeros(1, 2), "angles must be one number"),
        (torch.zeros(2, 1, 5, 5), math.nan, "finite"),
    ],
)
def test_images_or_angles_that_do_not_fit_are_refused(images, angles, message):
    with pytest.raises(ArgumentError, match=message):
        rotate(images, angles)
