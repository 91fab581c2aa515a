"""Rotated MNIST from one of three sources."""

from __future__ import annotations

import os

from ..data import ImageData, load_amat
from ..errors import ArgumentError
from ._digits import load_digits
from ._idx import load_idx


def load_rotmnist(source: str = "digits", path: str | os.PathLike[str] | None = None) -> ImageData:
    """Read rotated MNIST from a source by its name.

    Args:
        source: ``"digits"`` (:func:`load_digits`), ``"amat"`` (:func:`load_amat`) or ``"idx"``
            (:func:`load_idx`).
        path: the folder of the files, for ``"amat"`` and ``"idx"``.

    Raises:
        ArgumentError: the source is unknown, or it needs a path and has none, or the other way round.
        DataError: a file is missing or broken.
    """
    loaders = {"amat": load_amat, "idx": load_idx}
    if source != "digits" and source not in loaders:
        raise ArgumentError(f"source (={source!r}) must be one of digits, {', '.join(loaders)}")
    if (path is None) != (source == "digits"):
        wanted = "there is no path" if source == "digits" else "path must be the folder of its files"
        raise ArgumentError(f"path (={path!r}) is wrong for source {source!r}: {wanted}")
    return load_digits() if path is None else loaders[source](path)
