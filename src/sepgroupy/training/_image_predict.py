"""Predictions of a run on image files: streamed batch after batch, written as CSV, JSON lines or masks."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..data import ImageList, open_image_files
from ..errors import ArgumentError, DataError
from ._distributed import device_of
from ._image_config import ImageConfig
from ._image_data import outputs_of, usual_workers
from ._image_facts import ImageFacts
from ._parameters import restore

Paths = str | PathLike[str] | Iterable[str | PathLike[str]]


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction for one image file.

    Args:
        path: of the file.
        output: class probabilities (K,), numbers (T,), or the class number of each pixel (size, size); None if the file
            cannot be read.
        problem: why it cannot be read; empty if it can.
    """

    path: str
    output: Tensor | None
    problem: str = ""


class ImagePredictor:
    """The network of a run on images, for predictions on other files.

    Args:
        folder: of the run.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        ArgumentError: the machine has no such device, or the run is not on images.
        DataError: the folder holds no run or no checkpoint, or they are broken.
    """

    def __init__(self, folder: str | PathLike[str], device: str = "auto") -> None:
        config, facts, model, _ = restore(Path(folder))
        if not isinstance(config, ImageConfig):
            raise ArgumentError(f"folder (={str(folder)!r}) holds a run of task {config.task}, not on images")
        self.config: ImageConfig = config
        self.facts: ImageFacts = facts
        self.model = model.to(device_of(device))

    def open(self, paths: Paths) -> ImageList:
        """Open image files, folders or patterns, see :func:`sepgroupy.data.open_image_files`.

        Raises:
            ArgumentError: the network reads volumes, which no image file holds.
        """
        if self.config.dimension == 3:
            raise ArgumentError(
                f"paths (={paths!r}) are of image files, and {self.config.model} reads volumes: call the network that "
                "sepgroupy.training.load_model returns"
            )
        return open_image_files(paths, channels=self.facts.channels, size=self.facts.input_size)

    def predict(self, files: ImageList, batch_size: int = 64, workers: int | None = None) -> Iterator[list[Prediction]]:
        """Yield the predictions of each batch of files, those that cannot be read after the others.

        Args:
            files: from :meth:`open`.
            batch_size: files that are computed at a time.
            workers: processes that read files; None for one less than the processors, at most 8.

        Raises:
            ArgumentError: batch_size is not positive, or workers is negative.
        """
        workers = usual_workers() if workers is None else workers
        for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
            if value < least:
                raise ArgumentError(f"{name} (={value}) must be at least {least}")
        loader: Any = DataLoader(files, batch_size, num_workers=workers, collate_fn=files.collate)
        for images, names, unreadable in loader:
            outputs: Sequence[Tensor] = list(self._answers(outputs_of(self.model, images))) if names else []
            batch = [Prediction(name, output) for name, output in zip(names, outputs, strict=True)]
            yield batch + [Prediction(name, None, problem) for name, problem in unreadable]

    def _answers(self, outputs: Tensor) -> Tensor:
        if self.config.task == "segmentation":
            return outputs.argmax(1)
        return outputs.softmax(1) if self.facts.classes else outputs


class PredictionWriter:
    """Writes predictions as they come: CSV or JSON lines to a stream, masks as images into a folder.

    Args:
        predictor: whose predictions are written.
        files: of all predictions.
        masks: the folder for the masks of a segmentation; new or empty.

    Raises:
        ArgumentError: masks is missing in a segmentation, given for another task, or holds something.
    """

    def __init__(self, predictor: ImagePredictor, files: ImageList, masks: Path | None = None) -> None:
        self.facts, self.masks = predictor.facts, masks
        segmentation = predictor.config.task == "segmentation"
        if segmentation != (masks is not None):
            wanted = "name a folder for the masks" if segmentation else "only a segmentation has masks"
            raise ArgumentError(f"masks (={masks and str(masks)!r}): {wanted}")
        if masks is not None and masks.exists() and (not masks.is_dir() or any(masks.iterdir())):
            raise ArgumentError(f"masks (={str(masks)!r}) must be a new or an empty folder")
        self._root = os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in files.names])

    @property
    def head(self) -> list[str]:
        """The columns of a CSV file."""
        if self.masks is not None:
            return ["path", "mask"]
        if self.facts.classes:
            return ["path", "prediction", *(f"p({name})" for name in self.facts.classes)]
        return ["path", *self.facts.target_names]

    def write_csv(self, stream: TextIO, batch: Sequence[Prediction]) -> None:
        """Write a row for each file that could be read."""
        table = csv.writer(stream, lineterminator="\n")
        for one in batch:
            if one.output is not None:
                table.writerow([one.path, *self._cells(one)])
        stream.flush()

    def write_json(self, stream: TextIO, batch: Sequence[Prediction]) -> None:
        """Write an object for each file, in a line of its own; of one that cannot be read, with the error."""
        for one in batch:
            values: dict[str, Any] = {"path": one.path}
            if one.output is None:
                values["error"] = one.problem
            elif self.masks is not None:
                values["mask"] = str(self.mask_path(one.path))
            elif self.facts.classes:
                values["prediction"] = self.facts.classes[int(one.output.argmax())]
                values["probabilities"] = dict(zip(self.facts.classes, map(_short, one.output.tolist()), strict=True))
            else:
                values |= dict(zip(self.facts.target_names, one.output.tolist(), strict=True))
            stream.write(json.dumps(values, ensure_ascii=False) + "\n")
        stream.flush()

    def write_masks(self, batch: Sequence[Prediction]) -> None:
        """Write a mask for each file that could be read, with the values of the training masks.

        It has the size of the network's input, and covers the square in the middle of the image.
        """
        from PIL import Image

        values = torch.tensor([int(name) for name in self.facts.classes])
        dtype = np.uint8 if int(values.max()) < 256 else np.uint16
        for one in batch:
            if one.output is not None:
                path = self.mask_path(one.path)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values[one.output].numpy().astype(dtype)).save(path)

    def mask_path(self, path: str) -> Path:
        """Return where the mask of a file is written: below its folder as the file is below that of all files."""
        assert self.masks is not None
        relative = os.path.relpath(os.path.abspath(path), self._root)
        return self.masks / f"{relative}.png"

    def _cells(self, one: Prediction) -> list[str]:
        assert one.output is not None
        if self.masks is not None:
            return [str(self.mask_path(one.path))]
        numbers = one.output.tolist()
        if self.facts.classes:
            return [self.facts.classes[int(one.output.argmax())], *(f"{number:.6f}" for number in numbers)]
        return [f"{number:.7g}" for number in numbers]


def require_readable(problems: Sequence[tuple[str, str]], count: int) -> None:
    """Raise DataError if files could not be read.

    Raises:
        DataError: there is one.
    """
    if problems:
        shown = "; ".join(f"{name}: {problem}" for name, problem in problems[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(f"{len(problems)} of {count} files could not be read: {shown}{more}")


def _short(probability: float) -> float:
    return round(probability, 6)
