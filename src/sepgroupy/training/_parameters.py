"""Parameters from files: those that a run starts from, and those of a trained run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from .._files import load_tensors
from ..errors import ArgumentError, DataError
from ..fusion import fuse
from ..models import find_state, state_dict_differences
from ._config import TrainingConfig
from ._run_directory import CHECKPOINT, read_checkpoint, read_config
from ._validate_checkpoint import checked_average


class Restored(NamedTuple):
    """A finished or stopped run: configuration, facts of its data, network in inference mode, checkpoint."""

    config: TrainingConfig
    facts: Any
    model: nn.Module
    checkpoint: dict[str, Any]


def restore(folder: Path) -> Restored:
    """Read a run from its folder.

    Raises:
        DataError: the folder has no run or no checkpoint, or they are broken.
    """
    config = read_config(folder)
    facts = config.read_facts(folder)
    checkpoint = read_checkpoint(folder / CHECKPOINT)
    state = state_to_test(checkpoint, folder / CHECKPOINT, config, facts)
    model = fuse(config.build_model(facts))
    model.load_state_dict(state)
    return Restored(config, facts, model.eval(), checkpoint)


def initial_state(config: TrainingConfig, facts: Any = None) -> dict[str, Tensor] | None:
    """Return the parameters that the setting ``weights`` names; None if they are to be drawn."""
    if config.weights is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if (pretrained := config.pretrained_model(facts)) is not None:
            return pretrained.state_dict()
    path = Path(config.weights)
    if path.is_dir():
        checkpoint = read_checkpoint(path / CHECKPOINT)
        there = read_config(path)
        return state_to_test(checkpoint, path / CHECKPOINT, replace(config, ema=there.ema, select=there.select), facts)
    return matching_state(load_tensors(path), path, config, facts)


def state_to_test(
    checkpoint: dict[str, Any], path: Path, config: TrainingConfig, facts: Any = None
) -> dict[str, Tensor]:
    """Return the parameters that a run is tested with: those of its best epoch, their average, or the last ones.

    Raises:
        DataError: they are missing or do not fit the network.
    """
    best = checkpoint.get("best") if config.select == "best" else None
    if isinstance(best, dict):
        checkpoint = {"state_dict": best.get("state_dict")}
    elif config.ema is not None:
        checkpoint = {"state_dict": checked_average(checkpoint, path)}
    return matching_state(checkpoint, path, config, facts)


def matching_state(found: Any, path: Path, config: TrainingConfig, facts: Any = None) -> dict[str, Tensor]:
    """Return the parameters of the network of a configuration from the contents of a file.

    Raises:
        DataError: they do not fit the network.
    """
    state = find_state(str(path), found)
    consume_prefix_in_state_dict_if_present(state, "model.")
    try:
        wanted = config.expected_state(facts)  # no memory is allocated
    except (ArgumentError, RuntimeError) as error:
        raise DataError(f"{path} cannot fit this run: {error!s:.200}") from None
    if text := state_dict_differences(state, wanted):
        raise DataError(f"{path} does not fit the network of this run, {config.model}: {text}")
    return state
