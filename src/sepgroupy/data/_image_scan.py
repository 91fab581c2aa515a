"""Decode every image once before training: what is broken is found, and the training images' mean is measured."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import DataError
from ._image_file import UnusableError, fit
from ._image_source import FileSource, Source
from ._image_table import Row


@dataclass(frozen=True, eq=False)
class Scanned:
    """Properties of one decoded image; ``problem`` is empty if it can be used."""

    problem: str = ""
    channels: int = 0
    pixels: tuple[int, ...] = (0, 0)
    mean: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Per channel, float64."""
    square: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Mean of the squares."""
    digest: bytes = b""
    values: frozenset[int] = frozenset()
    """Of its mask."""


def scan(source: Source, rows: Sequence[Row], size: int | None, masks: bool, progress: bool) -> list[Scanned]:
    """Decode all images, in threads, and their masks.

    Args:
        source: of the images.
        rows: the images.
        size: to which the images are resized before they are measured.
        masks: whether the labels are paths of masks.
        progress: draw a progress bar.
    """

    def look(row: Row) -> Scanned:
        return _scan_one(source, row, size, masks)

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(min(threads, 16)) as pool:
        found = pool.map(look, rows)
        if not progress:
            return list(found)
        from rich.progress import track

        return list(track(found, "checking the images", total=len(rows)))


def _scan_one(source: Source, row: Row, size: int | None, masks: bool) -> Scanned:
    try:
        content = source.content(row.path)
        image = source.image(content)
        pixels = tuple(image.shape[1:])
        values: frozenset[int] = frozenset()
        if masks:
            assert isinstance(source, FileSource)
            mask = source.mask(row.labels[0])
            if tuple(mask.shape) != pixels:
                sizes = f"{size_text(mask.shape)} pixels, its image {size_text(pixels)}"
                raise UnusableError(f"mask {row.labels[0]} has {sizes}")
            values = frozenset(mask.unique().tolist())
    except UnusableError as error:
        return Scanned(str(error))
    seen = (image if size is None else fit(image, size)).flatten(1).double()
    digest = hashlib.sha256(content).digest()
    return Scanned("", len(image), pixels, seen.mean(1), (seen * seen).mean(1), digest, values)


def common_channels(rows: Sequence[Row], found: Sequence[Scanned]) -> int:
    """Return the number of channels of all images, 3 if some are gray and all others RGB.

    Raises:
        DataError: the images differ in another way.
    """
    examples = {one.channels: row.path for row, one in zip(rows, found, strict=True)}
    if len(examples) == 1 or set(examples) == {1, 3}:
        return max(examples)
    named = ", ".join(f"{count} ({path})" for count, path in sorted(examples.items()))
    raise DataError(f"the images have different numbers of channels, {named}: convert them to one number")


def common_size(rows: Sequence[Row], found: Sequence[Scanned]) -> int:
    """Return the number of rows and columns of all images, and of slices of volumes.

    Raises:
        DataError: they are not square, or cubes, or not all of one size.
    """
    examples = {one.pixels: row.path for row, one in zip(rows, found, strict=True)}
    least, most = min(examples), max(examples)
    if least != most or len(set(least)) > 1:
        sizes = " to ".join(f"{size_text(one)} ({examples[one]})" for one in dict.fromkeys((least, most)))
        shape = "square" if len(least) == 2 else "cube"
        raise DataError(
            f"size is missing: the images have {sizes} pixels; give size (--size), to which the {shape} in the "
            "middle of each is resized"
        )
    return least[0]


def size_text(sizes: Sequence[int]) -> str:
    """Return sizes as text, such as 28×28."""
    return "×".join(map(str, sizes))


def statistics(found: Sequence[Scanned], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel over all pixels; a constant channel counts as of 1."""
    mean = torch.stack([one.mean.expand(channels) for one in found]).mean(0)
    square = torch.stack([one.square.expand(channels) for one in found]).mean(0)
    variance = (square - mean * mean).clamp(min=0)
    std = torch.where(variance > 1e-12, variance.sqrt(), 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())
