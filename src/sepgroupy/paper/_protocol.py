"""How rotated MNIST is made from upright digits: drawn by a fixed seed, each rotated by its own angle."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from ..data import ImageData, Split, rotate

_ORDER_SEED, _ANGLE_SEED = 1, 2


def random_order(count: int) -> NDArray[np.int64]:
    """Return 0..count-1 in an order that is the same on every call."""
    return np.argsort(_uniform(count, _ORDER_SEED), kind="stable")


def rotated_mnist(
    name: str,
    images: NDArray[np.uint8],  # (N, Y, X)
    labels: NDArray[np.uint8],  # (N,)
    order: NDArray[np.int64],
    train: int,
    rotated: bool = True,
) -> ImageData:
    """Return the images at ``order``, the first ``train`` of them for training and the others for testing.

    Pixels are scaled to [0, 1]. The angles are uniform in [0, 2π) and the same on every call; if not
    ``rotated``, the images stay upright.
    """
    angles = torch.from_numpy(2 * math.pi * _uniform(len(order), _ANGLE_SEED))

    def split(part: slice) -> Split:
        pixels = torch.from_numpy(images[order[part]]).unsqueeze(1).float().div(255)
        return Split(rotate(pixels, angles[part]) if rotated else pixels, torch.from_numpy(labels[order[part]]).long())

    return ImageData(name, split(slice(train)), split(slice(train, None)), classes=10)


def _uniform(count: int, seed: int) -> NDArray[np.float64]:
    # Plain doubles of a named bit generator: the stream that numpy is least likely ever to change.
    return np.random.Generator(np.random.PCG64(seed)).random(count)
