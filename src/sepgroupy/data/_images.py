"""Anyone's images as data sets for training, validation and test; each is read when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ArgumentError, DataError
from ._image_file import UnusableError, fit, fit_mask, with_channels
from ._image_source import FileSource, Source
from ._image_table import SPLITS


@dataclass(frozen=True, eq=False)
class Images(Dataset[tuple[Tensor, "int | Tensor"]]):
    """Images that are read from their files when they are asked for.

    An item is ``(image, target)``: float32 (channels, size, size), of a volume (channels, size, size, size), integers
    scaled to 0..1 and not normalized; and a class (int), numbers (float32, one for each), or a mask (int64, size ×
    size).

    Raises:
        DataError: at indexing: the file has become unreadable since :func:`open_images` has read it.
    """

    source: Source
    paths: tuple[str, ...]
    """Names for reports: paths relative to the data set's folder."""
    targets: Tensor
    """All at once, for class weights: int64 (N,), float32 (N, targets); of masks none, (N, 0)."""
    masks: tuple[str, ...]
    """Paths of masks; empty for other tasks."""
    mask_values: Tensor
    """The values in the files, in the order of the classes."""
    channels: int
    size: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        path = self.paths[index]
        try:
            image = self.source.image(self.source.content(path))
            image = fit(with_channels(image, self.channels), self.size)
            return image, self._target(index)
        except UnusableError as error:
            raise DataError(f"{path} cannot be used any more: {error}") from None

    def _target(self, index: int) -> int | Tensor:
        if self.masks:
            assert isinstance(self.source, FileSource)
            mask = fit_mask(self.source.mask(self.masks[index]), self.size)
            return torch.searchsorted(self.mask_values, mask)
        return int(self.targets[index]) if self.targets.ndim == 1 else self.targets[index]


@dataclass(frozen=True, eq=False)
class ImageSplits:
    """A data set of images in three splits, as :func:`open_images` returns it."""

    name: str
    """What reports call it."""
    task: str
    train: Images
    val: Images
    test: Images
    classes: tuple[str, ...]
    """Names of the classes in the order of their numbers; of masks, their values. Empty for regression."""
    target_names: tuple[str, ...]
    """Columns of the numbers of a regression; empty for other tasks."""
    channels: int
    size: int
    mean: tuple[float, ...]
    """Of each channel over the training images."""
    std: tuple[float, ...]
    skipped: tuple[tuple[str, str], ...]
    """Files that cannot be used, each with the reason."""
    fingerprint: str
    """Sixteen hexadecimal digits that depend on all files, labels and splits."""

    @property
    def dimension(self) -> int:
        """2 for images, 3 for volumes."""
        return self.train.source.dimension

    @property
    def outputs(self) -> int:
        """How many values a network computes for an image, or for a pixel."""
        return len(self.classes) or len(self.target_names)

    def split_table(self) -> list[tuple[str, ...]]:
        """Return a header and a row of path, label(s) and split for each image.

        Written as CSV, it is what ``open_images(path, labels=file)`` reads: the same images in the same splits.
        """
        columns = self.target_names or ("label",)
        rows: list[tuple[str, ...]] = [("path", *columns, "split")]
        for split in SPLITS:
            images: Images = getattr(self, split)
            for index, path in enumerate(images.paths):
                rows.append((path, *self._labels(images, index), split))
        return rows

    def resize(self, size: int) -> ImageSplits:
        """Return the data set with images of another size; mean and standard deviation stay.

        Raises:
            ArgumentError: the size is not at least 2.
        """
        check_size(size)
        splits = {split: replace(getattr(self, split), size=size) for split in SPLITS}
        return replace(self, size=size, **splits)

    def _labels(self, images: Images, index: int) -> tuple[str, ...]:
        if images.masks:
            return (images.masks[index],)
        if self.classes:
            return (self.classes[int(images.targets[index])],)
        return tuple(map(repr, images.targets[index].tolist()))


def check_size(size: int) -> None:
    """Raise ArgumentError unless images can have this size."""
    if not isinstance(size, int) or size < 2:
        raise ArgumentError(f"size (={size!r}) must be a whole number from 2")
