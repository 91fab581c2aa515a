"""A small data set in the files of CIFAR-10: ten textures at random positions and angles."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ._batch_file import CLASSES, IMAGE_SHAPE, batch_bytes
from ._cifar import FOLDER, TEST_FILE, TRAIN_FILES, load_cifar10
from ._split import ImageData

_PATTERNS = ("broad stripes", "fine stripes", "checks", "rings", "spokes")
_COLOURS = {"red-green": (1.0, -1.0, 0.0), "yellow-blue": (0.5, 0.5, -1.0)}
_CHUNK = 1000  # images at a time


def write_synthetic_cifar10(folder: str | os.PathLike[str], train: int = 2000, test: int = 500, seed: int = 0) -> Path:
    """Write a synthetic data set of ten classes in the files of CIFAR-10.

    A class is one of five patterns in one of two pairs of colours. Each image has an angle, a position, a phase,
    a brightness and noise of its own, so that neither a pixel nor the mean colour tells the class. A 90° rotation or a
    reflection does not change the class.

    Args:
        folder: where to make the folder ``cifar-10-batches-py``.
        train: the number of training images, spread over the five data batches.
        test: the number of test images.
        seed: of the random numbers.

    Returns:
        The folder that was made.

    Raises:
        ArgumentError: there would be a batch without an image, or the folder is there already.
    """
    if train < len(TRAIN_FILES) or test < 1:
        least = len(TRAIN_FILES)
        raise ArgumentError(f"train (={train}) must be at least {least} and test (={test}) at least 1")
    target = Path(folder) / FOLDER
    if target.exists():
        raise ArgumentError(f"folder (={os.fspath(folder)!r}) holds {FOLDER} already: give another")
    target.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.Generator(np.random.PCG64(seed))
    with TemporaryDirectory(dir=target.parent) as temporary:
        made = Path(temporary) / FOLDER
        made.mkdir()
        counts = [len(part) for part in np.array_split(np.arange(train), len(TRAIN_FILES))]
        for name, count in zip((*TRAIN_FILES, TEST_FILE), (*counts, test), strict=True):
            (made / name).write_bytes(batch_bytes(_batch(name, count, generator)))
        names = [f"{colour} {pattern}".encode() for colour in _COLOURS for pattern in _PATTERNS]
        meta = {b"num_cases_per_batch": counts[0], b"label_names": names, b"num_vis": math.prod(IMAGE_SHAPE)}
        (made / "batches.meta").write_bytes(batch_bytes(meta))
        made.rename(target)
    return target


def load_synthetic_cifar10(train: int = 2000, test: int = 500, seed: int = 0) -> ImageData:
    """Make the data set of :func:`write_synthetic_cifar10` and read it, contrast-normalised but not whitened.

    So few images span too few directions to be whitened: each would be made orthogonal to all others.

    Args:
        train: the number of training images.
        test: the number of test images.
        seed: of the random numbers.

    Raises:
        ArgumentError: as :func:`write_synthetic_cifar10`.
    """
    with TemporaryDirectory() as folder:
        write_synthetic_cifar10(folder, train, test, seed)
        data = load_cifar10(folder, whiten=False)
    return replace(data, name="synthetic CIFAR-10")


def _batch(name: str, count: int, generator: np.random.Generator) -> dict[bytes, object]:
    labels = generator.permutation(np.arange(count) % CLASSES)
    chunks = [_draw(labels[start : start + _CHUNK], generator) for start in range(0, count, _CHUNK)]
    return {
        b"batch_label": name.replace("_", " ").encode(),
        b"labels": labels.tolist(),
        b"data": np.concatenate(chunks).reshape(count, -1),
        b"filenames": [f"{name}_{number:05}.png".encode() for number in range(count)],
    }


def _draw(labels: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one image for each label, shape (N, 3, 32, 32)."""
    shape = (len(labels), 1, 1)
    height, width = IMAGE_SHAPE[1:]
    top, left = generator.uniform(0.25, 0.75, (2, *shape))
    angle, phase = generator.uniform(0, 2 * math.pi, (2, *shape))
    y, x = np.mgrid[:height, :width]
    y, x = y - top * height, x - left * width
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    patterns = [  # in the order of _PATTERNS
        np.cos(2 * math.pi / 11 * u + phase),
        np.cos(2 * math.pi / 5 * u + phase),
        np.cos(2 * math.pi / 7 * u + phase) * np.cos(2 * math.pi / 7 * v),
        np.cos(2 * math.pi / 8 * np.hypot(u, v) + phase),
        np.cos(6 * np.arctan2(v, u) + phase),
    ]
    pattern = np.choose(labels[:, None, None] % len(_PATTERNS), patterns)
    colour = np.array(list(_COLOURS.values()))[labels // len(_PATTERNS)]
    images = 128 + 55 * pattern[:, None] * colour[:, :, None, None]
    images += 20 * generator.standard_normal((len(labels), 3, 1, 1))
    images += 30 * generator.standard_normal(images.shape)
    return images.round().clip(0, 255).astype(np.uint8)
