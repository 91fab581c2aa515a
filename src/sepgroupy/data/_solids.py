"""A data set of volumes: ten solids at random orientations, positions and sizes, with noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ArgumentError
from ..groups import as_group

Array = NDArray[np.float64]
ORIENTATIONS = ("any", "cube", "fixed")


def _box(p: Array, *half: float) -> Array:
    return np.max(np.abs(p) - np.array(half), axis=-1)


def _cylinder(p: Array, radius: float, half: float) -> Array:
    return np.maximum(np.hypot(p[..., 1], p[..., 2]) - radius, np.abs(p[..., 0]) - half)


def _cone(p: Array) -> Array:
    slope = np.hypot(p[..., 1], p[..., 2]) - 0.35 * (0.8 - p[..., 0])
    return np.maximum(slope, np.abs(p[..., 0]) - 0.8)


def _pyramid(p: Array) -> Array:
    slope = np.maximum(np.abs(p[..., 1]), np.abs(p[..., 2])) - 0.4 * (0.7 - p[..., 0])
    return np.maximum(slope, np.abs(p[..., 0]) - 0.7)


def _torus(p: Array) -> Array:
    return np.hypot(np.hypot(p[..., 1], p[..., 2]) - 0.6, p[..., 0]) - 0.25


def _union(*parts: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda p: np.minimum.reduce([part(p) for part in parts])


def _rod(axis: int, shift: tuple[float, float, float] = (0, 0, 0), length: float = 0.85) -> Callable[[Array], Array]:
    half = [0.22] * 3
    half[axis] = length
    return lambda p: _box(p - np.array(shift), *half)


SOLIDS: dict[str, Callable[[Array], Array]] = {
    "ball": lambda p: np.linalg.norm(p, axis=-1) - 0.7,
    "cube": lambda p: _box(p, 0.56, 0.56, 0.56),
    "plate": lambda p: _box(p, 0.25, 0.75, 0.75),
    "rod": lambda p: _box(p, 0.9, 0.3, 0.3),
    "cylinder": lambda p: _cylinder(p, 0.5, 0.75),
    "cone": _cone,
    "pyramid": _pyramid,
    "torus": _torus,
    "cross": _union(_rod(0), _rod(1), _rod(2)),
    "angle": _union(_rod(0), _rod(1, (-0.63, 0.4, 0.0), 0.62)),
}
"""A function of points (…, 3) for each class, negative inside the solid."""


def load_solids(
    count: int, size: int = 16, orientation: str = "any", noise: float = 0.5, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Generate volumes of ten solids: ball, cube, plate, rod, cylinder, cone, pyramid, torus, cross, angle.

    Each has a size, a position and an orientation of its own. Values are 1 inside and 0 outside, with a soft edge, and
    Gaussian noise.

    Args:
        count: the number of volumes; the classes take turns.
        size: voxels along each axis.
        orientation: "any" for uniformly random rotations, "cube" for the 24 rotations of the grid, "fixed" for none.
        noise: standard deviation.
        seed: of the random numbers; the first volumes are the same for any count.

    Returns:
        Volumes (count, 1, size, size, size) in float32, and their classes, the indices in ``SOLIDS``.

    Raises:
        ArgumentError: an argument has an unsupported value.

    >>> volumes, labels = load_solids(20, size=8)
    >>> volumes.shape, labels[:11].tolist()
    (torch.Size([20, 1, 8, 8, 8]), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0])
    """
    for name, value in (("count", count), ("size", size)):
        if not isinstance(value, int) or value < 1:
            raise ArgumentError(f"{name} (={value!r}) must be a positive integer")
    if orientation not in ORIENTATIONS:
        raise ArgumentError(f"orientation (={orientation!r}) must be one of {', '.join(ORIENTATIONS)}")
    if not noise >= 0:
        raise ArgumentError(f"noise (={noise!r}) must not be negative")
    grid = np.stack(np.meshgrid(*[(np.arange(size) + 0.5) * 2 / size - 1] * 3, indexing="ij"), axis=-1)
    shapes = list(SOLIDS.values())
    volumes = np.empty((count, 1, size, size, size), dtype=np.float32)
    for index in range(count):
        random = np.random.default_rng((seed, index))
        rotation = _rotation(orientation, random)
        shift, scale = random.uniform(-0.1, 0.1, 3), random.uniform(0.7, 0.95)
        distance = shapes[index % len(shapes)]((grid - shift) @ rotation / scale)
        values = 1 / (1 + np.exp(np.clip(distance * size * scale, -40, 40)))
        volumes[index, 0] = values + noise * random.standard_normal(values.shape)
    return torch.from_numpy(volumes), torch.arange(count) % len(shapes)


def _rotation(orientation: str, random: np.random.Generator) -> Array:
    """Draw a rotation matrix."""
    if orientation == "any":  # of a quaternion that is uniform on the sphere
        w, x, y, z = (q := random.standard_normal(4)) / np.linalg.norm(q)
        return np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
    elements = as_group("O").arrays
    return elements[random.integers(len(elements)) if orientation == "cube" else 0].astype(np.float64)
