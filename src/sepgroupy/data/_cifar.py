"""CIFAR-10: read, contrast-normalised and whitened."""

from __future__ import annotations

import hashlib
import os
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ._archive import unpack
from ._batch_file import CLASSES, read_batch
from ._cache import Arrays, cache_folder, cached
from ._split import ImageData, Split
from ._whiten import ZCA, contrast_normalize

FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_FILE = "test_batch"

_ARCHIVE = "cifar-10-python.tar.gz"
_VERSION = 1  # of the statistics: raise it when contrast_normalize or ZCA.fit changes its results


def load_cifar10(path: str | os.PathLike[str], *, download: bool = False, whiten: bool = True) -> ImageData:
    """Read CIFAR-10: 50,000 training and 10,000 test images of shape (3, 32, 32), in the order of the files.

    Each image is contrast-normalised (:func:`contrast_normalize`), then all are ZCA-whitened with the statistics
    of all training images (:class:`ZCA`). Those of the full set take about 20 seconds on two cores and are then stored
    in a cache file of 38 MB: ``zca-….npz`` in the folder of the data set or, where that cannot be written to, in
    ``$XDG_CACHE_HOME/sepgroupy`` or ``~/.cache/sepgroupy``.

    The files are pickles, but nothing that they name is imported or called. They may hold any number of images.

    Args:
        path: the folder that ``cifar-10-batches-py`` is in, or that folder itself.
        download: whether to have torchvision fetch ``cifar-10-batches-py`` if there is no such folder.
        whiten: if False, the images are contrast-normalised alone.

    Raises:
        DataError: a file is missing, broken or holds anything else than a batch of CIFAR-10, or the download
            failed.

    Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    folder = _find(Path(path), download)
    missing = [name for name in (*TRAIN_FILES, TEST_FILE) if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} has no file {', '.join(missing)}: give the folder that {_ARCHIVE} was unpacked in")
    pixels, labels = _read(folder, TRAIN_FILES)
    test_pixels, test_labels = _read(folder, (TEST_FILE,))
    train, test = contrast_normalize(pixels), contrast_normalize(test_pixels)
    if whiten:
        zca = _whitening(folder, pixels, train)
        train, test = zca(train), zca(test)
    return ImageData("CIFAR-10", Split(train, labels), Split(test, test_labels), CLASSES)


def _find(path: Path, download: bool) -> Path:
    folder = path if path.name == FOLDER or (path / TEST_FILE).is_file() else path / FOLDER
    if download and not folder.exists():
        _fetch(folder.parent)
    return folder


def _fetch(path: Path) -> None:
    try:
        from torchvision.datasets import CIFAR10
        from torchvision.datasets.utils import download_url

        download_url(CIFAR10.url, str(path), filename=_ARCHIVE, md5=CIFAR10.tgz_md5)
    except (ImportError, OSError, RuntimeError, HTTPException) as error:
        raise DataError(
            f"CIFAR-10 could not be fetched ({error}): without a network, unpack {_ARCHIVE} into {path}"
        ) from error
    with TemporaryDirectory(dir=path) as temporary:
        unpack(path / _ARCHIVE, Path(temporary), [f"{FOLDER}/{name}" for name in (*TRAIN_FILES, TEST_FILE)])
        (Path(temporary) / FOLDER).rename(path / FOLDER)


def _read(folder: Path, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    batches = [read_batch(folder / name) for name in names]
    images, labels = (torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*batches, strict=True))
    return images, labels


def _whitening(folder: Path, pixels: Tensor, images: Tensor) -> ZCA:
    """Return the whitening fitted to the images, from a cache that goes by the pixels that they were made of."""

    def fit() -> Arrays:
        zca = ZCA.fit(images)
        return {"mean": zca.mean.numpy(), "matrix": zca.matrix.numpy()}

    digest = hashlib.sha256(pixels.numpy().data).hexdigest()
    name = f"zca-{digest[:16]}.npz"
    places = [folder / name, cache_folder() / name]
    arrays = cached(places, f"zca {_VERSION} {digest}", {"mean": "float32", "matrix": "float32"}, fit)
    return ZCA(torch.from_numpy(arrays["mean"]), torch.from_numpy(arrays["matrix"]))
