"""The test error of a run with class probabilities averaged over rotations, measured once and cached in its folder."""

from __future__ import annotations

import json
import logging

from ..._files import atomic
from ...training import evaluate
from ..sweep import Run

_log = logging.getLogger(__name__)


def error_averaged(run: Run, rotations: int) -> float:
    """Return the test error, percent, see :func:`sepgroupy.training.predict`.

    Raises:
        DataError: the checkpoint or the data of the run cannot be read.
    """
    path = run.folder / f"rotations-{rotations}.json"
    try:
        (error,) = json.loads(path.read_text(encoding="utf-8")).values()
        if isinstance(error, float):
            return error
    except (OSError, ValueError, AttributeError, RecursionError):
        pass  # not there, or broken: measured again
    _log.info("%s: testing with %d rotations", run.folder, rotations)
    error = evaluate(run.folder, rotations=rotations).error
    try:
        with atomic(path) as temporary:
            temporary.write_text(json.dumps({"test_error": error}) + "\n", encoding="utf-8")
    except OSError as failure:
        _log.warning("%s cannot be written: %s", path, failure)
    return error
