"""Properties of the images that the network depends on: classes, channels, sizes, mean and standard deviation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._files import atomic
from ..errors import DataError

FACTS, SPLIT = "data.json", "split.csv"
MAX_BYTES = 2**24  # bytes of the file


@dataclass(frozen=True)
class ImageFacts:
    """Facts of a data set of images that its network depends on; saved as ``data.json`` in the folder of the run.

    Args:
        classes: names in the order of their numbers; of masks, their values; none for a regression.
        target_names: names of the numbers of a regression; none for other tasks.
        channels: of the images.
        size: rows and columns that were asked for.
        input_size: rows and columns that the network reads.
        mean: of each channel over the training images.
        std: of each channel over the training images.
        target_mean: of each number of a regression over the training images.
        target_std: of each number of a regression over the training images.
    """

    classes: tuple[str, ...]
    target_names: tuple[str, ...]
    channels: int
    size: int
    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()

    @property
    def outputs(self) -> int:
        """How many values the network computes for an image or a pixel."""
        return len(self.classes) or len(self.target_names)

    def write(self, folder: Path) -> None:
        """Write the file."""
        with atomic(folder / FACTS) as path:
            path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> ImageFacts:
        """Read the file.

        Raises:
            DataError: it is missing or broken, or was written by another version.
        """
        path = folder / FACTS
        try:
            if path.stat().st_size > MAX_BYTES:
                raise DataError(f"{path} is too large for what it should hold")
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict) or values.keys() != {field.name for field in fields(cls)}:
                raise ValueError("other fields")
            given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            facts = cls(**given)
            facts._check()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
        except (ValueError, TypeError, RecursionError):
            names = ", ".join(field.name for field in fields(cls))
            raise DataError(
                f"{path} is broken or of another version of sepgroupy: it must hold {names}, each of its type"
            ) from None
        return facts

    def _check(self) -> None:
        """Raise ValueError unless every field has a value that it can have."""
        names = (*self.classes, *self.target_names)
        counts = (self.channels, self.size, self.input_size)
        numbers = (*self.mean, *self.std, *self.target_mean, *self.target_std)
        lengths = {len(self.mean), len(self.std), self.channels}
        targets = {len(self.target_mean), len(self.target_std), len(self.target_names)}
        if (
            not all(type(name) is str for name in names)
            or not all(type(count) is int and 0 < count < 2**16 for count in counts)
            or not all(type(number) is float for number in numbers)
            or len(lengths) != 1
            or len(targets) != 1
            or not 0 < self.outputs < 2**16
        ):
            raise ValueError("a value of another type")


class Normalize(nn.Module):
    """``(x − mean) / std`` of each channel of images (B, C, Y, X), or of volumes (B, C, Z, Y, X)."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], dimension: int = 2) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, *(1,) * dimension))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, *(1,) * dimension))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize."""
        return (x - self.mean) / self.std


class Rescale(nn.Module):
    """``y · std + mean`` of the outputs (B, T) of a regression."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, y: Tensor) -> Tensor:
        """Return the numbers in the units of the targets."""
        return y * self.std + self.mean
