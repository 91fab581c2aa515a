"""Arrays that take long to make, cached in a file until what they were made from changes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .._files import atomic, refuse_compressed_archive

Arrays = dict[str, NDArray]


def cached(places: Iterable[Path], key: str, types: Mapping[str, str], make: Callable[[], Arrays]) -> Arrays:
    """Return ``make()``, or the arrays that an earlier call cached under the same key.

    A cache is only ever a saving of time: a file that is missing, broken or of another key is made
    again, and where no place can be written to the arrays are not cached.

    Args:
        places: ``.npz`` files to look in, then to write to: the first one that can be written.
        key: says everything that the arrays depend on.
        types: the arrays' names and types; a cache of others is as good as broken.
        make: computes the arrays, by name; no name may be ``"key"``.
    """
    places = list(places)
    for place in places:
        try:
            return _read(place, key, types)
        except Exception:  # however a cache is broken, it is made again
            continue
    arrays = make()
    for place in places:
        try:
            with atomic(place) as temporary:
                np.savez(temporary, key=np.array(key), **arrays)  # type: ignore[arg-type]
            break
        except OSError:
            continue
    return arrays


def cache_folder() -> Path:
    """Return the folder for caches that have no place beside their source."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sepgroupy"


def _read(place: Path, key: str, types: Mapping[str, str]) -> Arrays:
    with place.open("rb") as file:
        refuse_compressed_archive(file)
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    if arrays.pop("key").item() != key or {name: str(array.dtype) for name, array in arrays.items()} != dict(types):
        raise KeyError(key)
    return arrays
