"""The history of a run, a row of numbers for each epoch: the best epoch and the last one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ._config import TrainingConfig


def best_epoch(history: Sequence[Mapping[str, float]]) -> int:
    """Return the epoch with the lowest validation error, and of several that with the lowest loss; 0 if there is none.

    >>> rows = [(3.0, 0.9), (2.0, 0.5), (2.0, 0.4), (2.5, 0.1)]
    >>> best_epoch([{"epoch": n, "validation_error": e, "validation_loss": l} for n, (e, l) in enumerate(rows, 1)])
    3
    """
    rows = [row for row in history if "validation_error" in row]
    best = min(rows, key=lambda row: (row["validation_error"], row["validation_loss"]), default={"epoch": 0})
    return int(best["epoch"])


def is_last_epoch(config: TrainingConfig, history: Sequence[Mapping[str, float]]) -> bool:
    """Whether the run ends with the last of these epochs: it has done all, or patience is exhausted."""
    epoch = len(history)
    if epoch == config.epochs:
        return True
    evaluated = "validation_error" in history[-1]
    return config.patience is not None and evaluated and epoch - best_epoch(history) >= config.patience
