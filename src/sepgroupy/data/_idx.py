"""The idx files of MNIST, or of any data set of its form."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, DataError

MAX_BYTES = 250 * 2**20
"""Bytes that a file may hold or grow to: those of 330,000 images."""

DOWNLOADS = ("MNIST", "FashionMNIST", "KMNIST")  # torchvision's names

_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


class IdxFiles(NamedTuple):
    """The folder of four idx files, and the images (N, 28, 28) and labels (N,) of each part."""

    folder: Path
    train: tuple[NDArray[np.uint8], NDArray[np.uint8]]
    test: tuple[NDArray[np.uint8], NDArray[np.uint8]]


def read_idx(path: str | os.PathLike[str], download: str | None = None) -> IdxFiles:
    """Read the four idx files of MNIST or of a data set of its form, e.g. Fashion-MNIST.

    Args:
        path: the folder of the four standard files (``train-images-idx3-ubyte`` …), plain or ``.gz``; they
            may also lie in its ``raw`` or ``MNIST/raw``, where torchvision puts them.
        download: ``"MNIST"``, ``"FashionMNIST"`` or ``"KMNIST"`` to have torchvision fetch that data set into
            ``path`` unless it is there.

    Raises:
        ArgumentError: ``download`` is unknown.
        DataError: a file is missing, broken or of another form, or the download failed.
    """
    if download is not None and download not in DOWNLOADS:
        raise ArgumentError(f"download (={download!r}) must be one of {', '.join(DOWNLOADS)}, or None")
    folder = _find(Path(path), download)
    files = [_present(folder, name) for name in _FILES]
    return IdxFiles(folder, _read_part(*files[:2]), _read_part(*files[2:]))


def _find(path: Path, download: str | None) -> Path:
    """Return the folder that the files are in, after they were fetched if need be."""
    places = [path / download / "raw"] if download else [path, path / "raw", path / "MNIST" / "raw"]
    folder = min(places, key=lambda place: len(_missing(place)))
    missing = _missing(folder)
    if missing and download:
        _fetch(path, download)
    elif missing:
        raise DataError(
            f"{folder} has no file {', '.join(missing)}, plain or .gz: give the folder that holds {', '.join(_FILES)}"
        )
    return folder


def _missing(folder: Path) -> list[str]:
    return [name for name in _FILES if not _present(folder, name).is_file()]


def _present(folder: Path, name: str) -> Path:
    """Return the plain file if it is there, else where its compressed form would be."""
    return folder / name if (folder / name).is_file() else folder / f"{name}.gz"


def _fetch(path: Path, download: str) -> None:
    from torchvision import datasets

    try:
        getattr(datasets, download)(path, download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        folder = path / download / "raw"
        raise DataError(
            f"{download} could not be fetched ({error}): without a network, put its four idx files into {folder}"
        ) from error


def _read_part(images_file: Path, labels_file: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images, labels = _read(images_file, axes=3), _read(labels_file, axes=1)
    if images.shape[1:] != (28, 28):
        raise DataError(f"{images_file} holds an array of shape {images.shape}: it must be (N, 28, 28)")
    if len(images) != len(labels):
        raise DataError(
            f"{labels_file} holds {len(labels)} labels for the {len(images)} images of {images_file.name}: "
            "take both files from the same data set"
        )
    for (row,) in np.argwhere(labels > 9)[:1]:
        raise DataError(f"{labels_file} has the label {labels[row]} in row {row + 1}: it must be in 0..9")
    return images, labels


def _read(file: Path, axes: int) -> NDArray[np.uint8]:
    """Read one idx file: 0, 0, 8 (for bytes), number of axes; their sizes as big-endian integers; values."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read ({error}): fetch the file again") from error
    if len(content) > MAX_BYTES:
        raise DataError(f"{file} holds more than {MAX_BYTES} bytes, as no data set of this form does")
    magic, found = bytes([0, 0, 8, axes]), content[:4]
    if found != magic:
        raise DataError(f"{file} begins with '{found.hex(' ')}', not '{magic.hex(' ')}': fetch the file again")
    start = 4 + 4 * axes
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    due = start + math.prod(shape)
    if len(content) != due:
        raise DataError(f"{file} holds {len(content)} bytes, not the {due} of its header {shape}: fetch the file again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
