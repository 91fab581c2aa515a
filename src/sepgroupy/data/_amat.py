"""The official files of rotated MNIST, read once as text and then from a cache."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DataError
from ._cache import Arrays, cache_folder, cached
from ._split import ImageData, Split

TRAIN_FILE = "mnist_all_rotation_normalized_float_train_valid.amat"
TEST_FILE = "mnist_all_rotation_normalized_float_test.amat"
AMAT_FILES = (TRAIN_FILE, TEST_FILE)

_log = logging.getLogger(__name__)

_SIDE = 28
_VALUES = _SIDE**2 + 1  # the pixels of a row, then its label
_LONGEST = 2**16  # characters of a row; those of the official files have 25 a value at most
_SAMPLE = 2**16  # bytes at either end of a file that the key of its cache looks at

MAX_ROWS = 100_000
"""Rows that a file may have."""


def load_amat(path: str | os.PathLike[str]) -> ImageData:
    """Read the official rotated MNIST: 12,000 training and 50,000 test images, in the order of the files.

    Each row of the text files is an image of 784 numbers and its label. The numbers should be in [0, 1]; others are
    read too, with a warning in the log, unless they are NaN or infinite. Files of up to 100,000 rows are read.

    The parsed arrays are stored in a cache beside each file (``….amat.cache.npz``) or, where that folder cannot be
    written to, in ``$XDG_CACHE_HOME/sepgroupy`` or ``~/.cache/sepgroupy``. The cache is used for as long as the file's
    size, time of modification and first and last 64 KiB stay as they were.

    Args:
        path: the folder that holds both files, under their official names.

    Raises:
        DataError: a file is missing, empty, cut off, or has a row that is no image with a label.

    Source: Larochelle et al., "An empirical evaluation of deep architectures on problems with many factors of
    variation", ICML 2007.
    """
    folder = Path(path)
    files = [folder / TRAIN_FILE, folder / TEST_FILE]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"{folder} has no file {' and no file '.join(missing)}: "
            f"give the folder that holds both {TRAIN_FILE} and {TEST_FILE}"
        )
    train, test = (_read(file) for file in files)
    return ImageData("rotated MNIST", train, test, classes=10)


def _read(file: Path) -> Split:
    elsewhere = hashlib.sha256(bytes(file.resolve())).hexdigest()[:16]
    places = [file.with_name(f"{file.name}.cache.npz"), cache_folder() / f"{file.name}.{elsewhere}.npz"]
    try:
        arrays = cached(places, _key(file), {"images": "float32", "labels": "int64"}, lambda: _parse(file))
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error})") from error
    images = torch.from_numpy(arrays["images"])
    if (least := images.min()) < 0 or images.max() > 1:
        _log.warning(
            "%s has pixel values from %g to %g, not in [0, 1]: they are used as they are", file, least, images.max()
        )
    return Split(images, torch.from_numpy(arrays["labels"]))


def _key(file: Path) -> str:
    status = file.stat()
    with file.open("rb") as opened:
        digest = hashlib.sha256(opened.read(_SAMPLE))
        opened.seek(max(0, status.st_size - _SAMPLE))
        digest.update(opened.read(_SAMPLE))
    return f"amat 1 {status.st_size} {status.st_mtime_ns} {digest.hexdigest()}"


def _parse(file: Path) -> Arrays:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns of an empty file: an error below
            with file.open(encoding="latin-1") as opened:
                lines = _bounded(opened)
                rows = np.loadtxt(lines, np.float32, comments=None, ndmin=2, max_rows=MAX_ROWS + 1)
        problem = _problem(rows)
    except ValueError:  # of which numpy's message counts rows from 0 or from 1
        problem = _unreadable(file)
    if problem:
        raise DataError(f"{file} {problem}: fetch the file again (a row is 784 finite numbers, then a label 0..9)")
    images = np.ascontiguousarray(rows[:, :-1]).reshape(-1, 1, _SIDE, _SIDE)
    return {"images": images, "labels": rows[:, -1].astype(np.int64)}


def _bounded(opened: TextIO) -> Iterator[str]:
    """Yield the lines of a file as long as they can be rows: numpy sees to it that all have as many values."""
    first = True
    while line := opened.readline(_LONGEST):
        if len(line) == _LONGEST or (first and line.strip() and len(line.split()) != _VALUES):
            raise ValueError("it is not a row")
        first = first and not line.strip()
        yield line


def _problem(rows: NDArray[np.float32]) -> str:
    """Say what is wrong with a table of numbers, rows counted from 1; nothing if it is right."""
    if not rows.size:
        return "is empty"
    if len(rows) > MAX_ROWS:
        return f"has more than {MAX_ROWS} rows"
    pixels, labels = rows[:, :-1], rows[:, -1]
    for row, column in np.argwhere(~np.isfinite(pixels))[:1]:
        return f"has the pixel value {pixels[row, column]:g} in row {row + 1}"
    for (row,) in np.argwhere(~np.isin(labels, range(10)))[:1]:
        return f"has the label {labels[row]:g} in row {row + 1}"
    return ""


def _unreadable(file: Path) -> str:
    """Say where a file that numpy refused stops being a table of numbers."""
    with file.open(encoding="latin-1") as opened:
        lines = iter(lambda: opened.readline(_LONGEST), "")
        for row, values in enumerate(filter(None, map(str.split, lines)), start=1):
            if len(values) != _VALUES:
                return f"has {len(values)} values in row {row} where {_VALUES} are due"
            for value in values:
                try:
                    float(value)
                except ValueError:
                    return f"has {value[:20]!r} in row {row}"
    return "is not a table of numbers"
