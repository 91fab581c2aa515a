"""Scores of a network on images by torchmetrics, task by task, from its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Row = Sequence[str | float]

METRIC_NAMES = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_auroc": "macro AUROC",
    "macro_f1": "macro F1", "ece": "expected calibration error", "mae": "mean absolute error",
    "rmse": "root mean squared error", "r2": "R²", "pixel_accuracy": "pixel accuracy", "dice": "mean Dice",
    "iou": "mean IoU",
}  # fmt: skip
"""What reports call the metrics of :class:`Scores`."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Metrics of predictions.

    Args:
        metrics: numbers by name; shares are in 0..1, not in percent.
        head: columns of the table.
        rows: a row for each class, or for each number of a regression.
        confusion: int64 (K, K), images (or pixels) of class i that were taken for class j; None for a regression.
    """

    metrics: dict[str, float]
    head: Sequence[str]
    rows: Sequence[Row]
    confusion: Tensor | None = None


def classification_scores(probabilities: Tensor, targets: Tensor, classes: Sequence[str]) -> Scores:
    """Score class probabilities (N, K) of images of the classes ``targets`` (N,).

    * accuracy: share of right answers; balanced_accuracy: its mean over the classes (macro recall).
    * macro_auroc: mean over the classes of the area under the ROC curve of a class against all others.
    * macro_f1: mean over the classes of 2·precision·recall/(precision + recall).
    * ece: expected calibration error, ``Σ_b n_b/N · |accuracy_b − confidence_b|`` over 15 bins of the confidence.
    """
    from torchmetrics.functional import classification as m

    n = len(classes)
    per_class = {
        "precision": m.multiclass_precision(probabilities, targets, n, average=None),
        "recall": m.multiclass_recall(probabilities, targets, n, average=None),
        "F1": m.multiclass_f1_score(probabilities, targets, n, average=None),
        "AUROC": m.multiclass_auroc(probabilities, targets, n, average=None),
    }
    metrics = {
        "accuracy": m.multiclass_accuracy(probabilities, targets, n, average="micro"),
        "balanced_accuracy": m.multiclass_accuracy(probabilities, targets, n, average="macro"),
        "macro_auroc": m.multiclass_auroc(probabilities, targets, n, average="macro"),
        "macro_f1": m.multiclass_f1_score(probabilities, targets, n, average="macro"),
        "ece": m.multiclass_calibration_error(probabilities, targets, n, n_bins=15),
    }
    confusion = m.multiclass_confusion_matrix(probabilities, targets, n)
    counts = targets.bincount(minlength=n).tolist()
    columns = [values.tolist() for values in per_class.values()]
    rows = [(name, count, *values) for name, count, *values in zip(classes, counts, *columns, strict=True)]
    return Scores(_plain(metrics), ("class", "images", *per_class), rows, confusion)


def regression_scores(predictions: Tensor, targets: Tensor, names: Sequence[str]) -> Scores:
    """Score numbers (N, T): mean absolute error, root of the mean squared error, and R², each a mean over the T.

    R² is ``1 − Σ(y − t)²/Σ(t − mean t)²``; it is NaN where all targets are one number.
    """
    errors = (predictions - targets).double()
    mae, rmse = errors.abs().mean(0), errors.square().mean(0).sqrt()
    from torchmetrics.functional.regression import r2_score

    if len(targets) > 1:
        r2 = r2_score(predictions.double(), targets.double(), multioutput="raw_values").view(-1)
        constant = targets.std(0, correction=0) == 0
        r2 = torch.where(constant, torch.nan, r2)
    else:
        r2 = torch.full((len(names),), torch.nan)
    columns = [values.tolist() for values in (mae, rmse, r2)]
    metrics = {"mae": mae.mean(), "rmse": rmse.mean(), "r2": r2.mean()}
    return Scores(_plain(metrics), ("number", "MAE", "RMSE", "R²"), list(zip(names, *columns, strict=True)))


def segmentation_scores(confusion: Tensor, classes: Sequence[str]) -> Scores:
    """Score masks by the pixels of class i that were taken for class j (K, K), over all images together.

    With T right pixels of a class, F wrongly taken for it and M that were missed: ``dice = 2T/(2T + F + M)``,
    ``iou = T/(T + F + M)``; the metrics are means over the classes.
    """
    counts = confusion.double()
    right, taken, there = counts.diagonal(), counts.sum(0), counts.sum(1)
    dice, iou = 2 * right / (taken + there), right / (taken + there - right)
    metrics = {"pixel_accuracy": right.sum() / counts.sum(), "dice": dice.nanmean(), "iou": iou.nanmean()}
    rows = list(zip(classes, there.long().tolist(), dice.tolist(), iou.tolist(), strict=True))
    return Scores(_plain(metrics), ("class", "pixels", "Dice", "IoU"), rows, confusion)


def _plain(metrics: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
