"""The test error of a run by the angle of the images, measured once and cached in its folder."""

from __future__ import annotations

import csv
import logging
import math
from pathlib import Path

from ..._files import atomic
from ...data import Split, rotate
from ...training import score
from .._digits import load_digits
from ..sweep import Run
from ._run_groups import load

ANGLES = tuple(22.5 * step for step in range(16))
ANGLES_FILE = "angles.csv"
MAX_IMAGES = 1000  # of the test set, at each angle

_HEAD = ["angle_degrees", "test_error_percent"]
_log = logging.getLogger(__name__)


def errors_by_angle(run: Run) -> list[float] | None:
    """Return the test error at each of ``ANGLES``, percent; None without the run's parameters.

    The bundled digits stand upright before they are rotated; other test images are used as they are.

    Args:
        run: a finished run on rotated MNIST.

    Raises:
        DataError: its parameters or data cannot be read.
    """
    path = run.folder / ANGLES_FILE
    if (cached := _read(path)) is not None:
        return cached
    if not run.has_parameters:
        return None
    config = run.config
    _log.info("%s: testing at %d angles", run.folder, len(ANGLES))
    test = load_digits(rotated=False).test if config.data == "digits" else _test(run)
    test, model = test.first(min(MAX_IMAGES, len(test))), run.load_model()
    errors = [
        score(model, Split(rotate(test.images, math.radians(angle)), test.labels), config.test_batch_size).error
        for angle in ANGLES
    ]
    try:
        with atomic(path) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file).writerows([_HEAD, *zip(ANGLES, errors, strict=True)])
    except OSError as error:
        _log.warning("%s cannot be written: %s", path, error)
    return errors


def _test(run: Run) -> Split:
    return load(run.config.task, run.config.data, run.config.data_path).test


def _read(path: Path) -> list[float] | None:
    """Return the cached errors, unless they are of other angles or broken."""
    try:
        with path.open(newline="") as file:
            head, *rows = csv.reader(file)
        angles, errors = zip(*[map(float, row) for row in rows], strict=True)
    except (OSError, ValueError):
        return None
    return list(errors) if head == _HEAD and angles == ANGLES else None
