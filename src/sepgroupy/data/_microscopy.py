"""Synthetic microscopy-like images of cells at random angles, written as a folder of PNG files."""

from __future__ import annotations

import math
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError

MICROSCOPY_CLASSES = (
    "spindle-along", "spindle-across", "spindle-spotted", "stellate-radial", "stellate-ringed", "stellate-spotted",
)  # fmt: skip
"""Shape of the cell and course of its fibers: classes that a rotation or reflection leaves as they are."""

SIZE = 32
# Of hematoxylin and eosin.
_BACKGROUND, _CYTOPLASM, _FIBERS = (0.93, 0.88, 0.92), (0.86, 0.55, 0.72), (0.38, 0.22, 0.58)


def write_microscopy(folder: str | os.PathLike[str], train: int = 1000, test: int = 600, seed: int = 0) -> Path:
    """Write microscopy-like images as ``folder/train/CLASS/….png``, ``folder/val`` and ``folder/test``, RGB, 32×32.

    A class is a shape of cell (spindle or stellate) and a course of the fibers in it: along or across the spindle,
    radial or in rings, or spots. So the course alone does not tell the class, only its direction in the cell. Each
    image has an angle, a position, a size, a stain, a focus, debris and noise of its own. The first n training images
    are the same for every ``train`` of at least n.

    Args:
        folder: the folder to make.
        train: the number of training images.
        test: the number of test images, and of validation images.
        seed: of the random numbers.

    Returns:
        The folder.

    Raises:
        ArgumentError: there would be a class without an image, or the folder is there already.
    """
    from PIL import Image

    target, least = Path(folder), len(MICROSCOPY_CLASSES)
    if min(train, test) < least:
        raise ArgumentError(f"train (={train}) and test (={test}) must be at least {least}, one for each class")
    if target.exists():
        raise ArgumentError(f"folder (={os.fspath(folder)!r}) is there already: give another")
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent) as temporary:
        for number, (split, count) in enumerate((("train", train), ("val", test), ("test", test))):
            for index in range(count):
                label = index % least
                path = Path(temporary) / "made" / split / MICROSCOPY_CLASSES[label] / f"{index:05}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                generator = np.random.Generator(np.random.PCG64([seed, number, index]))
                Image.fromarray(draw_cell(label, generator)).save(path)
        (Path(temporary) / "made").rename(target)
    return target


def draw_cell(label: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Draw an image (32, 32, 3) of a class."""
    uniform = generator.uniform
    spindle, course = label < 3, label % 3
    angle, phase = uniform(0, 2 * math.pi, 2)
    top, left = uniform(0.42, 0.58, 2) * SIZE
    radius, softness = uniform(8, 10), uniform(0.7, 1.4)
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    u = (x - left) * math.cos(angle) + (y - top) * math.sin(angle)
    v = (y - top) * math.cos(angle) - (x - left) * math.sin(angle)
    distance, direction = np.hypot(u, v), np.arctan2(v, u)
    lobes, depth = (2, uniform(0.3, 0.42)) if spindle else (3, uniform(0.25, 0.35))
    edge = radius * (1 + depth * np.cos(lobes * direction))
    for harmonic in range(4, 8):  # the outline of no cell is regular
        edge += radius * uniform(0, 0.03) * np.cos(harmonic * direction + uniform(0, 2 * math.pi))
    inside = _step(edge - distance, softness)
    period = uniform(3.8, 5)
    fibers = _fibers(spindle, course, (u, v, distance, direction), period, phase, generator)
    stain = inside * (0.35 + 0.65 * _step(fibers, 0.8) * uniform(0.45, 0.8))
    nucleus = _step(uniform(1.2, 2) - np.hypot(u - uniform(-2, 2), v - uniform(-2, 2)), softness)
    stain = np.maximum(stain, nucleus * inside)
    image = _colors(inside, stain, generator)
    for _ in range(generator.integers(2, 6)):  # debris, and parts of other cells
        center, size = uniform(0, SIZE, 2), uniform(0.8, 2.5)
        speck = _step(size - np.hypot(y - center[0], x - center[1]), softness) * (1 - inside)
        image -= uniform(0.1, 0.5) * speck[..., None] * (1 - np.array(_FIBERS))
    slope = uniform(-0.08, 0.08, 2)  # uneven light
    image += (slope[0] * (y / SIZE - 0.5) + slope[1] * (x / SIZE - 0.5))[..., None]
    image += uniform(0.04, 0.08) * generator.standard_normal(image.shape)
    return (255 * image).round().clip(0, 255).astype(np.uint8)


def _fibers(
    spindle: bool,
    course: int,
    place: tuple[NDArray[np.float64], ...],
    period: float,
    phase: float,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """Return values that are positive on fibers or spots."""
    u, v, distance, direction = place
    wave = 2 * math.pi / period
    if course == 2:
        return np.cos(wave * u + phase) * np.cos(wave * v + generator.uniform(0, 2 * math.pi)) - 0.2
    if spindle:
        return np.cos(wave * (v if course == 0 else u) + phase)
    if course == 0:
        return np.cos(7 * direction + phase)
    return np.cos(wave * distance + phase)


def _step(values: NDArray[np.float64], softness: float) -> NDArray[np.float64]:
    """Return nearly 1 where values are positive, nearly 0 where they are negative."""
    return 1 / (1 + np.exp(-np.clip(values * 2 / softness, -40, 40)))


def _colors(
    inside: NDArray[np.float64], stain: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return an RGB image; stains vary from image to image."""
    background, cytoplasm, fibers = (
        np.array(color) + generator.uniform(-0.06, 0.06, 3) for color in (_BACKGROUND, _CYTOPLASM, _FIBERS)
    )
    image = background + (cytoplasm - background) * inside[..., None]
    return image + (fibers - image) * (stain * inside)[..., None]
