"""The history of a run, a row of numbers for each epoch: the best epoch and the last one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ._config import TrainingConfig
from ._run_directory import COLUMNS


def best_epoch(history: Sequence[Mapping[str, float]]) -> int:
    """Return the epoch with the lowest validation error, and of several that with the lowest loss; 0 if there is none.

    >>> rows = [(3.0, 0.9), (2.0, 0.5), (2.0, 0.4), (2.5, 0.1)]
    >>> best_epoch([{"epoch": n, "validation_error": e, "validation_loss": l} for n, (e, l) in enumerate(rows, 1)])
    3
    """
    rows = [row for row in history if "validation_error" in row]
    best = min(rows, key=lambda row: (row["validation_error"], row["validation_loss"]), default={"epoch": 0})
    return int(best["epoch"])


def epoch_text(row: Mapping[str, float], unit: str) -> str:
    """Write the values of an epoch; ``unit`` follows errors.

    >>> epoch_text({"epoch": 3, "lr": 0.002, "train_loss": 1.61, "train_error": 25.0, "seconds": 4.2}, " %")
    'lr 0.002, train loss 1.61, train error 25 %, 4.2 s'
    """
    values = []
    for name in (name for name in COLUMNS[1:] if name in row):
        value = f"{row[name]:.4g}"
        text = f"{name.replace('_', ' ')} {value}{unit if name.endswith('_error') else ''}"
        values.append(f"{value} s" if name == "seconds" else text)
    return ", ".join(values)


def is_last_epoch(config: TrainingConfig, history: Sequence[Mapping[str, float]]) -> bool:
    """Whether the run ends with the last of these epochs: it has done all, or patience is exhausted."""
    epoch = len(history)
    if epoch == config.epochs:
        return True
    evaluated = "validation_error" in history[-1]
    return config.patience is not None and evaluated and epoch - best_epoch(history) >= config.patience
