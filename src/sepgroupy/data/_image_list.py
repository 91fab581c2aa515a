"""Images to predict on: files, folders and patterns."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ArgumentError, DataError
from ._image_file import UnusableError, fit, read_file, read_image, with_channels
from ._image_table import list_images


@dataclass(frozen=True, eq=False)
class ImageList(Dataset[tuple["Tensor | None", str, str]]):
    """Images without labels. An item is ``(image, name, problem)``: the image is None if there is a problem.

    For a loader that goes on where a file cannot be read::

        for images, names, unreadable in DataLoader(files, 64, num_workers=2, collate_fn=files.collate):
            ...
    """

    names: tuple[str, ...]
    channels: int
    size: int

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor | None, str, str]:
        name = self.names[index]
        try:
            image = with_channels(read_image(read_file(Path(name))), self.channels)
        except UnusableError as error:
            return None, name, str(error)
        return fit(image, self.size), name, ""

    def collate(
        self, items: Sequence[tuple[Tensor | None, str, str]]
    ) -> tuple[Tensor, list[str], list[tuple[str, str]]]:
        """Return a batch of the readable images (n, C, size, size), their names, and the others with their reasons."""
        images = [image for image, _, _ in items if image is not None]
        names = [name for image, name, _ in items if image is not None]
        unreadable = [(name, problem) for _, name, problem in items if problem]
        empty = torch.zeros(0, self.channels, self.size, self.size)
        return (torch.stack(images) if images else empty), names, unreadable


def open_image_files(
    paths: str | PathLike[str] | Iterable[str | PathLike[str]], *, channels: int, size: int
) -> ImageList:
    """Open images to predict on; they are read, cropped and resized when they are asked for.

    Args:
        paths: files, folders (with their subfolders) and patterns such as ``scans/*.png``.
        channels: of the network's input; gray images become RGB, others of another number are unreadable.
        size: of the network's input.

    Raises:
        ArgumentError: there is no path, or channels or size is not positive.
        DataError: a path does not exist, a folder holds no image or cannot be read, or a pattern matches nothing.
    """
    paths = [paths] if isinstance(paths, (str, PathLike)) else list(paths)
    if not paths:
        raise ArgumentError("paths is empty: name files, folders or patterns")
    for name, value in (("channels", channels), ("size", size)):
        if not isinstance(value, int) or value < 1:
            raise ArgumentError(f"{name} (={value!r}) must be a positive whole number")
    names: list[str] = []
    for path in map(Path, paths):
        names += _expand(path)
    return ImageList(tuple(dict.fromkeys(names)), channels, size)


def _expand(path: Path) -> list[str]:
    if path.is_dir():
        found = [str(file) for file in list_images(path)]
        if not found:
            raise DataError(f"{path} holds no image")
        return found
    if path.exists():
        return [str(path)]
    if glob.has_magic(str(path)):
        found = sorted(name for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not found:
            raise DataError(f"{path} matches no file")
        return found
    raise DataError(f"{path} does not exist")
