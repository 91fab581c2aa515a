"""Compress the network of a run, so that the ordinary training command can continue from it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from .._files import atomic, refuse_existing
from ..compression import CompressedLayer, compress
from ..errors import ArgumentError
from ..models import published_model_names
from ..training import Score, evaluate, load_model, score
from ._config import RunConfig, read_run_config
from ._data import load_data


@dataclass(frozen=True)
class CompressedRun:
    """The result of :func:`compress_run`.

    Args:
        layers: a row for each layer that was replaced.
        parameters: free parameters of the network, before and after.
        scores: loss and error on the test set, before and after.
        path: the file with the state dict of the separable network.
        command: the command that trains it further.
    """

    layers: list[CompressedLayer]
    parameters: tuple[int, int]
    scores: tuple[Score, Score]
    path: Path
    command: str


def compress_run(folder: Path, kind: str, path: Path | None) -> CompressedRun:
    """Compress the network of a run, test both, and write the parameters of the new one.

    Args:
        folder: the folder of the run.
        kind: "g" or "gc".
        path: the file to write, None for ``<kind>.pt`` in the folder.

    Raises:
        ArgumentError: the kind is unknown, there is nothing to compress, the file exists already, or no model of
            this kind has the network's widths.
        DataError: the folder has no run, or its files or data cannot be read.
    """
    path = folder / f"{kind}.pt" if path is None else path
    refuse_existing("path", path)
    config, model = read_run_config(folder), load_model(folder)
    net, layers = compress(model, kind)
    goal = _matching(config, net)
    scores = evaluate(folder), score(net, load_data(config).test, config.test_batch_size)
    with atomic(path) as temporary:
        torch.save(net.state_dict(), temporary)
    return CompressedRun(layers, (_count(model), _count(net)), scores, path, _command(goal, path))


def _matching(config: RunConfig, net: nn.Module) -> RunConfig:
    """Return the configuration of the model that a compressed network fits."""
    shapes = _shapes(net)
    for width in (config.width, next(iter(net.state_dict().values())).shape[0]):
        for name in published_model_names():
            try:
                candidate = replace(config, model=name, width=width)
            except ArgumentError:  # of another task
                continue
            with torch.device("meta"):
                if _shapes(candidate.build_model()) == shapes:
                    return candidate
    raise ArgumentError(
        f"model (={config.model!r}) has widths that no separable model accepts: train it with another width, "
        "such as --width 11 for p4m-resnet44"
    )


def _command(config: RunConfig, path: Path) -> str:
    """Return the command of a training with a fifth of the run's epochs."""
    words = ["sepgroupy", "train", config.task, "--model", config.model, "--weights", str(path)]
    usual = RunConfig.for_task(config.task)
    for name in ("width", "data", "data_path", "samples"):
        if (value := getattr(config, name)) != getattr(usual, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--epochs", str(max(1, config.epochs // 5))]
    for milestone in dict.fromkeys(max(1, epoch // 5) for epoch in config.milestones):
        words += ["--milestone", str(milestone)]
    return shlex.join(words)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
