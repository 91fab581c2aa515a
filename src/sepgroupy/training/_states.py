"""State dicts before and after a training in files of their own, as the published code's experiments leave them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from .._files import atomic, load_tensors
from ..errors import ArgumentError, DataError
from ._config import RunConfig
from ._engine import initial_model, load_model
from ._folder import RESULT


def save_initial_state(config: RunConfig, path: Path) -> None:
    """Write the state dict with which a run starts; a file that holds it already is left as it is.

    Raises:
        ArgumentError: the file is there and holds something else.
    """
    _save(initial_model(config), path)


def save_trained_state(config: RunConfig, path: Path) -> None:
    """Write the state dict that a finished run has left; a file that holds it already is left as it is.

    Raises:
        ArgumentError: the file is there and holds something else.
    """
    _save(load_model(config.run_folder), path)


def require_free(config: RunConfig, path: Path) -> None:
    """Refuse to train if the state dict that comes out could then not be written.

    Raises:
        ArgumentError: the file is there, and the run is not finished or has left something else.
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
    """Whether a file holds exactly the state dict of a network."""
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
