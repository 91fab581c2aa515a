"""A run on images, evaluated on its test images: scores, tables, figures, one page."""

from __future__ import annotations

import csv
import heapq
import json
import math
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from .._files import atomic
from ..data import Images
from ..errors import ArgumentError
from ..functional import transform
from ._distributed import device_of
from ._image_config import ImageConfig
from ._image_data import StreamedData, open_run_images, outputs_of
from ._image_facts import ImageFacts
from ._image_scores import Scores, classification_scores, regression_scores, segmentation_scores
from ._objective import IGNORE
from ._parameters import restore
from ._validate_checkpoint import checked_record

METRICS_FILE, PREDICTIONS, PAGE = "evaluation.json", "test-predictions.csv", "report.html"
WORST = 12
"""Images of the largest loss that the page shows."""
MOST_TRANSFORMED = 256
"""Test images that are rotated and reflected."""


@dataclass(frozen=True, eq=False)
class WorstImage:
    """A test image of a large loss: its pixels (C, Y, X), its target and its output."""

    path: str
    loss: float
    image: Tensor
    target: Tensor
    output: Tensor


@dataclass(frozen=True, eq=False)
class ImageEvaluation:
    """Evaluation of a run on its test images, from :func:`evaluate_images`.

    Args:
        config: of the run.
        facts: of its data.
        history: a row for each epoch.
        scores: metrics, and a table of the classes.
        loss: mean over the test images.
        images: the number of test images.
        largest_change: of a probability, or of a number in standard deviations of the training targets, when an image
            is transformed by an element of the group (of a mask, after the output is transformed back).
        transformed: the number of images of which that is.
        rows: a header and a row for each test image.
        worst: those of the largest loss, the largest first.
        outputs: of a classification probabilities, of a regression numbers, (N, K); of masks none.
        targets: (N,) or (N, T); of masks none.
        skipped: files that could not be used, each with the reason.
        page: the HTML file.
    """

    config: ImageConfig
    facts: ImageFacts
    history: list[dict[str, float]]
    scores: Scores
    loss: float
    images: int
    largest_change: float
    transformed: int
    rows: list[list[str]]
    worst: list[WorstImage]
    outputs: Tensor
    targets: Tensor
    skipped: tuple[tuple[str, str], ...]
    page: Path


def evaluate_images(
    folder: str | PathLike[str],
    device: str = "auto",
    workers: int | None = None,
    progress: bool = False,
) -> ImageEvaluation:
    """Evaluate the trained network of a run on its test images, and write the results.

    The folder of the run receives ``evaluation.json``, ``test-predictions.csv`` with a row for each image, and
    ``report.html``, which holds learning curves, scores, and the images of the largest loss.

    Args:
        folder: of the run.
        device: "auto", "cpu", "cuda" or "mps".
        workers: processes that read images.
        progress: draw progress bars.

    Raises:
        ArgumentError: the machine has no such device, or the run is not on images.
        DataError: the folder holds no run, or its files or data cannot be read or do not belong together.
    """
    folder = Path(folder)
    config, facts, model, checkpoint = restore(folder)
    if not isinstance(config, ImageConfig):
        raise ArgumentError(f"folder (={str(folder)!r}) holds a run of task {config.task}, not on images")
    data = open_run_images(config, workers, folder, progress)
    history = checked_record(checkpoint, data, folder)["history"]
    model = model.to(device_of(device))
    pass_ = _Pass(data, facts)
    with Progress(disable=not progress) as bar:
        task = bar.add_task("test images", total=data.test_images)
        for images, targets in data.read(data.splits.test):
            pass_.add(images, targets, outputs_of(model, images))
            bar.update(task, completed=pass_.count)
    change, transformed = largest_change(model, data, data.splits.test)
    evaluation = ImageEvaluation(
        config, facts, history, pass_.scores(), pass_.loss / pass_.count, pass_.count, change, transformed,
        pass_.rows(), pass_.worst(), pass_.outputs(), pass_.targets(), data.splits.skipped, folder / PAGE,
    )  # fmt: skip
    _write(folder, evaluation)
    return evaluation


@torch.no_grad()
def largest_change(model: nn.Module, data: StreamedData, images: Images) -> tuple[float, int]:
    """Return the largest change of a prediction under the group, and the number of images that were transformed."""
    group, masks = data.config.point_group, data.config.task == "segmentation"
    largest, count = 0.0, min(len(images), MOST_TRANSFORMED)
    for x, _ in data.read(images, slice(count)):
        before = _comparable(outputs_of(model, x), data.facts)
        for element in range(1, group.order):
            after = outputs_of(model, transform(x, group, element, group_axis=False))
            after = _comparable(after, data.facts)
            wanted = transform(before, group, element, group_axis=False) if masks else before
            largest = max(largest, float((after - wanted).abs().max()))
    return largest, count


def _comparable(outputs: Tensor, facts: ImageFacts) -> Tensor:
    return outputs.softmax(1) if facts.classes else outputs / torch.tensor(facts.target_std)


class _Pass:
    """Accumulates outputs, losses and errors over the test images."""

    def __init__(self, data: StreamedData, facts: ImageFacts) -> None:
        self.data, self.facts, self.task = data, facts, data.config.task
        self.count, self.loss = 0, 0.0
        self._paths = data.splits.test.paths
        self._outputs, self._targets, self._losses, self._errors = [], [], [], []  # type: ignore[var-annotated]
        self._confusion = torch.zeros(facts.outputs, facts.outputs, dtype=torch.int64)
        self._worst: list[tuple[float, int, WorstImage]] = []  # a heap

    def add(self, images: Tensor, targets: Tensor, outputs: Tensor) -> None:
        """Add a batch."""
        losses, errors = (f(outputs, targets) for f in (self.data.objective.losses, self.data.objective.errors))
        if self.facts.classes:
            outputs = outputs.softmax(1)
        if self.task == "segmentation":
            seen = targets != IGNORE
            pairs = targets[seen] * self.facts.outputs + outputs.argmax(1)[seen]
            self._confusion += pairs.bincount(minlength=self.facts.outputs**2).view_as(self._confusion)
        else:
            self._outputs.append(outputs)
            self._targets.append(targets)
        self._losses.append(losses)
        self._errors.append(errors)
        self.loss += float(losses.double().sum())
        for index, loss in enumerate(losses.tolist()):
            place = self.count + index
            worst = WorstImage(self._paths[place], loss, images[index], targets[index], outputs[index])
            heapq.heappush(self._worst, (loss, -place, worst))
            if len(self._worst) > WORST:
                heapq.heappop(self._worst)
        self.count += len(images)

    def outputs(self) -> Tensor:
        """Return the outputs of all images; of masks none."""
        return torch.cat(self._outputs) if self._outputs else torch.empty(0)

    def targets(self) -> Tensor:
        """Return the targets of all images; of masks none."""
        return torch.cat(self._targets) if self._targets else torch.empty(0)

    def scores(self) -> Scores:
        """Score all images."""
        if self.task == "segmentation":
            return segmentation_scores(self._confusion, self.facts.classes)
        if self.task == "regression":
            return regression_scores(self.outputs(), self.targets(), self.facts.target_names)
        return classification_scores(self.outputs(), self.targets(), self.facts.classes)

    def worst(self) -> list[WorstImage]:
        """Return the images of the largest loss."""
        return [worst for _, _, worst in sorted(self._worst, key=lambda entry: entry[:2], reverse=True)]

    def rows(self) -> list[list[str]]:
        """Return a header and a row for each image."""
        classes, names = self.facts.classes, self.facts.target_names
        losses, errors = (torch.cat(values).tolist() for values in (self._losses, self._errors))
        if self.task == "segmentation":
            rows = zip(self._paths, losses, errors, strict=True)
            return [["path", "loss", "pixel_error"], *([p, f"{loss:.6g}", f"{error:.6g}"] for p, loss, error in rows)]
        head = ["path", "loss"]
        outputs, targets = self.outputs().tolist(), self.targets().tolist()
        if self.task == "regression":
            head += [f"{name} {what}" for name in names for what in ("target", "prediction")]
            cells = [
                [f"{n:.7g}" for pair in zip(t, y, strict=True) for n in pair]
                for t, y in zip(targets, outputs, strict=True)
            ]
        else:
            head += ["target", "prediction", *(f"p({name})" for name in classes)]
            cells = [
                [classes[t], classes[max(range(len(y)), key=y.__getitem__)], *(f"{p:.6f}" for p in y)]
                for t, y in zip(targets, outputs, strict=True)
            ]
        return [head, *([p, f"{loss:.6g}", *more] for p, loss, more in zip(self._paths, losses, cells, strict=True))]


def _write(folder: Path, evaluation: ImageEvaluation) -> None:
    from ._image_page import page_of

    values: dict[str, Any] = {
        "task": evaluation.config.task,
        "images": evaluation.images,
        "loss": evaluation.loss,
        **evaluation.scores.metrics,
        "largest_change_under_the_group": evaluation.largest_change,
        "group": evaluation.config.point_group.name,
        "transformed_images": evaluation.transformed,
        "table": [dict(zip(evaluation.scores.head, row, strict=True)) for row in evaluation.scores.rows],
    }
    with atomic(folder / METRICS_FILE) as path:
        path.write_text(json.dumps(_without_nan(values), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with atomic(folder / PREDICTIONS) as path, path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(evaluation.rows)
    with atomic(folder / PAGE) as path:
        path.write_text(page_of(evaluation), encoding="utf-8")


def _without_nan(value: Any) -> Any:
    """Return a value with None in place of NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
