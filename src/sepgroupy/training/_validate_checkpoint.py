"""Validate a checkpoint before a run resumes from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ._config import TrainingConfig
from ._run_data import RunData
from ._run_directory import CHECKPOINT, COLUMNS

_ALWAYS = {"epoch", "lr", "train_loss", "train_error", "seconds"}  # of the columns
_ADAM = {"step", "exp_avg", "exp_avg_sq"}
_MOMENTS = {torch.optim.Adam: _ADAM, torch.optim.AdamW: _ADAM, torch.optim.SGD: {"momentum_buffer"}}


def checked_record(checkpoint: Mapping[str, Any], data: RunData, folder: Path) -> dict[str, Any]:
    """Return the record of a run: its history, and the totals and seconds of the current epoch.

    Raises:
        DataError: it is not a checkpoint of a run, or it is of a run on other data.
    """
    found = checkpoint.get("run")
    if not isinstance(found, dict) or not _is_history(found.get("history")):
        raise DataError(f"{folder / CHECKPOINT} was not written by a run of sepgroupy")
    if found.get("fingerprint") != data.fingerprint:
        raise DataError(
            f"the data ({data.name}) are no longer those that {folder} was trained on: "
            "restore them, or start again in another folder"
        )
    # A checkpoint of an older version was written after whole epochs only, and has neither.
    seconds = found["history"][-1]["seconds"] if found["history"] else 0.0
    run: dict[str, Any] = {"totals": [0.0, 0.0, 0.0], "seconds": seconds} | found
    if not _are_numbers([run["seconds"]]) or not _are_numbers(run["totals"]) or len(run["totals"]) != 3:
        raise DataError(f"{folder / CHECKPOINT} has totals or seconds that are not numbers")
    return run


def checked_optimizer_states(
    checkpoint: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, Tensor]]:
    """Return the state of each parameter in an optimizer; torch does not validate it.

    Raises:
        ValueError: it is not the state of such an optimizer of such parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = _MOMENTS[type(optimizer)]
    if isinstance(optimizer, torch.optim.SGD) and not optimizer.defaults["momentum"]:
        names = set()
    states = checkpoint.get("optimizer_states")
    state = states[0].get("state") if isinstance(states, list) and states and isinstance(states[0], dict) else None
    due = range(len(parameters) if checkpoint["global_step"] else 0)
    if not isinstance(state, dict) or not all(isinstance(state.get(index), dict) for index in due if names):
        raise ValueError("it lacks the state of the optimizer")
    found = {index: {k: v for k, v in state.get(index, {}).items() if v is not None} for index in due}
    for index, values in found.items():
        for name in names | values.keys():
            shape = () if name == "step" else parameters[index].shape
            if name not in names or not _is_plain(values.get(name)) or values[name].shape != shape:
                raise ValueError(f"{name} of parameter {index} is not a state of the optimizer")
    return found


def checked_average(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the averaged parameters of a network, and its buffers, by name.

    Raises:
        DataError: there is no average, or it is of another number of steps.
    """
    found, steps = checkpoint.get("average"), checkpoint.get("global_step")
    count = found.get("n_averaged") if isinstance(found, dict) else None
    if not isinstance(count, Tensor) or (count.dtype, count.shape) != (torch.int64, ()) or count.is_sparse:
        raise DataError(f"{path} holds no average of the parameters, which ema asks for")
    if type(steps) is not int or int(count) != steps:
        raise DataError(f"{path} holds the average of {int(count)} steps, not of its {steps!r}")
    return {name: value for name, value in found.items() if name != "n_averaged"}  # type: ignore[union-attr]


def checked_best(
    checkpoint: Mapping[str, Any], history: list[dict[str, Any]], config: TrainingConfig
) -> dict[str, Any] | None:
    """Return number and parameters of the best epoch on the validation images; None before the first evaluation.

    Raises:
        ValueError: an epoch was evaluated, and the best one is missing or broken.
    """
    evaluated = [row["epoch"] for row in history if "validation_error" in row]
    if config.select != "best" or not evaluated:
        return None
    found = checkpoint.get("best")
    state = found.get("state_dict") if isinstance(found, dict) else None
    if not isinstance(found, dict) or found.get("epoch") not in evaluated or not isinstance(state, dict):
        raise ValueError("it lacks the parameters of the best epoch")
    return {"epoch": found["epoch"], "state_dict": state}


def _is_history(rows: object) -> bool:
    return isinstance(rows, list) and all(
        isinstance(row, dict)
        and _ALWAYS <= row.keys() <= set(COLUMNS)
        and (type(row["epoch"]), row["epoch"]) == (int, epoch)
        and _are_numbers([value for name, value in row.items() if name != "epoch"])
        for epoch, row in enumerate(rows, start=1)
    )


def _are_numbers(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is float for value in values)  # which nan is too


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and value.dtype == torch.float32
