"""Any data set in the file format of MNIST (idx), rotated like rotated MNIST."""

from __future__ import annotations

import os

import numpy as np

from ..data import ImageData, read_idx
from ..errors import ArgumentError, DataError
from ._protocol import random_order, rotated_mnist


def load_idx(
    path: str | os.PathLike[str], train: int = 12_000, test: int = 50_000, download: str | None = None
) -> ImageData:
    """Rotate the images of MNIST, or of a data set of the same format such as Fashion-MNIST.

    Of the images of the training and test files together, ``train + test`` are drawn. Each is rotated by its own angle,
    uniform in [0, 2π). Draw and angles are the same in every call.

    Args:
        path: the folder of the four standard files (``train-images-idx3-ubyte`` …), plain or ``.gz``; they
            may also lie in its ``raw`` or ``MNIST/raw``, where torchvision puts them.
        train: the number of images for training.
        test: the number of images for testing.
        download: ``"MNIST"``, ``"FashionMNIST"`` or ``"KMNIST"`` to have torchvision fetch that data set into
            ``path`` unless it is there.

    Raises:
        ArgumentError: a count is not positive, or ``download`` is unknown.
        DataError: a file is missing, broken or of another form, the files hold fewer than ``train + test``
            images, or the download failed.
    """
    if train < 1 or test < 1:
        raise ArgumentError(f"train (={train}) and test (={test}) must be at least 1")
    folder, *parts = read_idx(path, download)
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if train + test > len(labels):
        raise DataError(
            f"{folder} holds {len(parts[0][1])} + {len(parts[1][1])} = {len(labels)} images, fewer than "
            f"train (={train}) + test (={test}) = {train + test}: ask for fewer"
        )
    named = folder.resolve().parent if folder.name == "raw" else folder.resolve()
    return rotated_mnist(f"rotated {named.name}", images, labels, random_order(len(labels))[: train + test], train)
