"""The demonstration: a plain and a group-equivariant network, trained and compared on real digits in minutes."""

from __future__ import annotations

import csv
import logging
import math
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from .._files import atomic
from ..analysis import plot_error_against_angle
from ..data import Split, rotate
from ..training import load_model, predict, score, train
from ._config import RunConfig
from ._digits import load_digits

__all__ = ["ANGLES", "FIGURE", "DemoRow", "demo"]

_log = logging.getLogger(__name__)

NETWORKS = {"z2cnn": "Z2CNN", "gc-p4cnn": "gc-P4CNN"}
# Much shorter than the paper's: the demo takes a minute or two on two cores.
SCHEDULE: dict[str, Any] = {"epochs": 6, "batch_size": 128, "milestones": (4,), "log_every": 6}
ANGLES = tuple(range(0, 361, 15))
FIGURE = "error-against-angle.png"


@dataclass(frozen=True)
class DemoRow:
    """The results of one network.

    Args:
        model: its name in the paper.
        parameters: the number of free parameters.
        test_error: on rotated test digits, percent.
        change: largest change of a class probability when a rotated test digit is rotated by another 90°.
        errors: for upright test digits, rotated by each of ``ANGLES`` degrees, percent.
    """

    model: str
    parameters: int
    test_error: float
    change: float
    errors: tuple[float, ...]


def demo(
    folder: str | PathLike[str] = "runs/demo", figure: str | PathLike[str] | None = None, progress: bool = False
) -> tuple[list[DemoRow], Path]:
    """Train Z2CNN and gc-P4CNN on the bundled digits and compare their predictions for rotated digits.

    Args:
        folder: for the two runs, the errors as ``error-against-angle.csv`` and the plot.
        figure: where to save the plot instead.
        progress: draw progress bars.

    Returns:
        a row for each network, and the path of the plot.

    Raises:
        DataError: the folder of a run has broken files.
        RunError: a run cannot be trained, for example because another process trains it.
    """
    folder = Path(folder)
    rows = [_row(name, title, folder / name, progress) for name, title in NETWORKS.items()]
    plot = Path(figure) if figure is not None else folder / FIGURE
    with atomic((folder / FIGURE).with_suffix(".csv")) as path, path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["angle_degrees", *(f"{row.model} error_percent" for row in rows)])
        table.writerows(zip(ANGLES, *(row.errors for row in rows), strict=True))
    plot_error_against_angle(plot, ANGLES, {row.model: row.errors for row in rows})
    return rows, plot


def _row(name: str, title: str, folder: Path, progress: bool) -> DemoRow:
    _log.info("%s: %s", name, folder)
    result = train(RunConfig.for_task("rotmnist", model=name, folder=str(folder), **SCHEDULE), progress)
    model = load_model(folder)
    rotated, upright = load_digits().test, load_digits(rotated=False).test
    again = torch.rot90(rotated.images, 1, (-2, -1))
    change = (predict(model, again).exp() - predict(model, rotated.images).exp()).abs().max()
    errors = (
        score(model, Split(rotate(upright.images, math.radians(angle)), upright.labels)).error for angle in ANGLES
    )
    return DemoRow(title, result.parameters, result.test_error, float(change), tuple(errors))
