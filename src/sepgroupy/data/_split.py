"""In-memory data sets of the paper's tasks: labelled images for training, testing and, optionally, validation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Split(Dataset[tuple[Tensor, Tensor]]):
    """Labelled images in memory, a map-style data set that is read a whole batch at a time.

    Indexing takes a list or tensor of indices, so that a loader gathers a batch in one operation::

        DataLoader(split, sampler=BatchSampler(RandomSampler(split), 256, drop_last=False), batch_size=None)

    Args:
        images: float32, shape (N, C, Y, X).
        labels: int64, shape (N,).

    Raises:
        ArgumentError: a tensor has another type or shape, or they differ in N.

    >>> split = Split(torch.zeros(3, 1, 28, 28), torch.tensor([7, 2, 1]))
    >>> images, labels = split[[2, 0]]
    >>> images.shape, labels
    (torch.Size([2, 1, 28, 28]), tensor([1, 7]))
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.float32:
            raise ArgumentError(f"images must be float32 of shape (N, C, Y, X), not {_describe(self.images)}")
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            wanted = f"int64 of shape ({len(self.images)},), one for each image"
            raise ArgumentError(f"labels must be {wanted}, not {_describe(self.labels)}")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices)
        return self.images[chosen], self.labels[chosen]

    def hold_out(self, indices: Tensor) -> tuple[Split, Split]:
        """Return the images without those at the indices, in their order, and those at the indices."""
        stays = torch.ones(len(self), dtype=torch.bool)
        stays[indices] = False
        return Split(self.images[stays], self.labels[stays]), Split(*self[indices])

    def first(self, count: int) -> Split:
        """Return the first ``count`` images, as a view.

        Raises:
            ArgumentError: ``count`` is not in 1..N.
        """
        if not 1 <= count <= len(self):
            raise ArgumentError(f"count (={count}) must be between 1 and the {len(self)} images that there are")
        return Split(self.images[:count], self.labels[:count])


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set for classification: what it is called, its two splits and its number of classes.

    Args:
        name: what reports call it.
        train: the images to learn from.
        test: the images to be judged on.
        classes: the number of classes; labels are 0..classes-1.
        validation: training images that are held out, to choose by; None for none.

    Raises:
        ArgumentError: a label is not in that range, or the splits differ in the shape of their images.
    """

    name: str
    train: Split
    test: Split
    classes: int
    validation: Split | None = None

    def __post_init__(self) -> None:
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            shapes = f"{tuple(self.train.images.shape[1:])} and {tuple(self.test.images.shape[1:])}"
            raise ArgumentError(f"train and test images must have one shape, not {shapes}")
        for name, split in (("train", self.train), ("test", self.test)):
            wrong = split.labels[(split.labels < 0) | (split.labels >= self.classes)]
            if len(wrong):
                raise ArgumentError(f"a {name} label is {int(wrong[0])}: it must be in 0..{self.classes - 1}")

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of a SHA-256 over all images and labels: equal data, equal digits."""
        digest = hashlib.sha256()
        for split in filter(None, (self.train, self.test, self.validation)):
            for tensor in (split.images, split.labels):
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
