"""The test error of a run with class probabilities averaged over rotations, measured once and cached in its folder."""

from __future__ import annotations

import json
import logging

from ..._files import atomic
from ...errors import DataError
from ...training import score
from .._data import load_data
from ..sweep import Run

_log = logging.getLogger(__name__)


def error_averaged(run: Run, rotations: int) -> float | None:
    """Return the test error, percent, see :func:`sepgroupy.training.predict`; None without the run's parameters.

    Raises:
        DataError: the parameters or the data of the run cannot be read, or the data are not the run's.
    """
    path = run.folder / f"rotations-{rotations}.json"
    try:
        (error,) = json.loads(path.read_text(encoding="utf-8")).values()
        if isinstance(error, float):
            return error
    except (OSError, ValueError, AttributeError, RecursionError):
        pass  # not there, or broken: measured again
    if not run.has_parameters:
        return None
    _log.info("%s: testing with %d rotations", run.folder, rotations)
    config = run.config
    data = load_data(config)
    if run.result is not None and data.fingerprint != run.result.fingerprint:
        raise DataError(f"data_path (={config.data_path!r}) holds other images than those of {run.folder}")
    error = score(run.load_model(), data.test, config.test_batch_size, rotations).error
    try:
        with atomic(path) as temporary:
            temporary.write_text(json.dumps({"test_error": error}) + "\n", encoding="utf-8")
    except OSError as failure:
        _log.warning("%s cannot be written: %s", path, failure)
    return error
