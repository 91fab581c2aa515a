"""Where the images of a table are: files below a folder, or arrays in one MedMNIST archive."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ArgumentError, DataError
from ._image_file import UnusableError, read_file, read_image, read_mask
from ._image_table import SPLITS, Row, Table, list_class_folders, list_mask_folders, read_csv

MAX_ARCHIVE_BYTES = 32 * 2**30
"""Bytes that the arrays of an archive may have together, which are all in memory."""

LABELS_FILE = "labels.csv"  # in a folder, is read in place of class folders


class Source(Protocol):
    """Gives images by the path in their row."""

    @property
    def dimension(self) -> int:
        """2 for images, 3 for volumes."""

    def content(self, path: str) -> bytes:
        """Return the bytes that an image is made of."""

    def image(self, content: bytes) -> Tensor:
        """Decode them to (C, Y, X), or to (C, Z, Y, X)."""


@dataclass(frozen=True)
class FileSource:
    """Image files, by their paths relative to a folder."""

    root: Path
    dimension: ClassVar[int] = 2

    def content(self, path: str) -> bytes:
        """Read a file."""
        return read_file(self.root / path)

    def image(self, content: bytes) -> Tensor:
        """Decode an image."""
        return read_image(content)

    def mask(self, path: str) -> Tensor:
        """Read a mask (Y, X)."""
        if not path:
            raise UnusableError("it has no mask")
        try:
            return read_mask(read_file(self.root / path))
        except UnusableError as error:
            raise UnusableError(f"mask {path}: {error}") from None


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Images in uint8 arrays (N, C, Y, X) by split, or volumes (N, C, Z, Y, X), with paths such as ``train/12``."""

    arrays: dict[str, NDArray[np.uint8]]

    @property
    def dimension(self) -> int:
        """2 for images, 3 for volumes."""
        return next(iter(self.arrays.values())).ndim - 2

    def content(self, path: str) -> bytes:
        """Return the pixels of an image behind its shape."""
        split, _, index = path.partition("/")
        array = self.arrays.get(split)
        if array is None or not index.isdecimal() or int(index) >= len(array):
            raise UnusableError("there is no such image in the archive")
        return np.array(array.shape[1:], "<i8").tobytes() + array[int(index)].tobytes()

    def image(self, content: bytes) -> Tensor:
        """Scale an image to 0..1."""
        axes = self.dimension + 1
        shape = np.frombuffer(content, "<i8", axes)
        pixels = np.frombuffer(content, np.uint8, offset=8 * axes).reshape(shape)
        return torch.from_numpy(pixels.astype(np.float32) / np.float32(255))


def find_images(path: Path, task: str, labels: Path | None) -> tuple[Table, Source]:
    """Return the table of a data set and where its images are.

    Raises:
        ArgumentError: the task needs a CSV file.
        DataError: a file or folder is missing, unreadable or of another form.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist")
    several = task == "regression"
    if path.is_file():
        if path.suffix == ".npz":
            if task == "segmentation":
                raise ArgumentError(f"task (={task!r}) needs folders of images and masks, not {path}")
            source, table = _read_archive(path)
            return (table if labels is None else read_csv(labels, several)), source
        if path.suffix.lower() != ".csv" or labels is not None:
            raise DataError(f"{path} must be a folder, a CSV file of paths and labels, or a MedMNIST archive (.npz)")
        return read_csv(path, several), FileSource(path.parent)
    if labels is None and (path / LABELS_FILE).is_file():
        labels = path / LABELS_FILE
    if labels is not None:
        return read_csv(labels, several), FileSource(path)
    if task == "regression":
        raise ArgumentError(
            f"labels is missing: regression reads numbers from a CSV file, such as {path / LABELS_FILE}"
        )
    table = list_class_folders(path) if task == "classification" else list_mask_folders(path)
    return table, FileSource(path)


def _read_archive(file: Path) -> tuple[ArraySource, Table]:
    """Read the arrays of MedMNIST: ``train_images`` (N, Y, X), (N, Y, X, 3) or (N, Z, Y, X), ``train_labels`` (N, L).

    Volumes have one channel. Nothing is unpickled.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(part.file_size for part in archive.infolist())
            if size > MAX_ARCHIVE_BYTES:
                raise DataError(f"{file} holds {size:,} bytes, which must fit in memory: use a folder of image files")
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files if name.endswith(("_images", "_labels"))}
    except DataError:
        raise
    except Exception as error:  # which one depends on where the file is broken
        raise DataError(f"{file} is broken, or no archive of MedMNIST ({error!s:.100})") from None
    images, rows, widths = {}, [], set()
    for split in SPLITS:
        if f"{split}_images" not in arrays:
            continue
        images[split] = _channels_first(file, f"{split}_images", arrays[f"{split}_images"])
        found = arrays.get(f"{split}_labels")
        if found is None or found.dtype.kind not in "buif" or len(found) != len(images[split]) or found.ndim > 2:
            raise DataError(f"{file} has no {split}_labels with a row for each of its {len(images[split])} images")
        found = found.reshape(len(found), -1)
        widths.add(found.shape[1])
        rows += [Row(f"{split}/{index:07}", tuple(map(str, row)), split) for index, row in enumerate(found.tolist())]
    if len({array.ndim for array in images.values()}) > 1:
        raise DataError(f"{file} has images in one split and volumes in another")
    if not rows or len(widths) != 1:
        raise DataError(f"{file} has {', '.join(arrays) or 'no arrays'}: an archive of MedMNIST has train_images, …")
    (width,) = widths
    names = ("label",) if width == 1 else tuple(f"label_{index}" for index in range(width))
    return ArraySource(images), Table(tuple(sorted(rows, key=lambda row: row.path)), names)


def _channels_first(file: Path, name: str, array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        wanted = "uint8 (N, Y, X), (N, Y, X, 3) or (N, Z, Y, X)"
        raise DataError(f"{file}: {name} is {array.dtype} of shape {array.shape}, not {wanted}")
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 and array.shape[3] in (1, 3) else array[:, None]
