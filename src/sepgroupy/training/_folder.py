"""What the folder of a run holds, written whole and read with suspicion: it may come from a stranger."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from .._files import atomic, load_tensors
from ..errors import ArgumentError, DataError
from ._config import RunConfig

CONFIG, RESULT, CHECKPOINT, METRICS = "config.json", "result.json", "last.ckpt", "metrics.csv"


@dataclass(frozen=True)
class Result:
    """What came out of a run; kept as ``result.json`` in its folder.

    Args:
        test_error: on the test set after the last epoch, percent.
        test_loss: mean cross-entropy there, nats.
        train_error: mean over the steps of the last epoch, percent.
        train_loss: mean over the steps of the last epoch, nats.
        seconds: of all epochs, evaluations among them.
        parameters: the number of free parameters.
        data: name of the data set.
        fingerprint: digest of its pictures and labels.
        versions: of sepgroupy, torch, lightning and python.
        command: the command line that finished the run.
    """

    test_error: float
    test_loss: float
    train_error: float
    train_loss: float
    seconds: float
    parameters: int
    data: str
    fingerprint: str
    versions: dict[str, str]
    command: str


def write_config(folder: Path, config: RunConfig) -> None:
    """Write the configuration of a run into its folder, which is made if it is missing."""
    _write_text(folder / CONFIG, config.to_json())


def read_config(folder: Path) -> RunConfig:
    """Read the configuration of the run in a folder.

    Raises:
        DataError: there is none, or it is broken.
    """
    try:
        return RunConfig.from_json(_read_text(folder / CONFIG))
    except ArgumentError as error:
        raise DataError(f"{folder / CONFIG} is broken: {error}") from None


def write_result(folder: Path, result: Result) -> None:
    """Write the result of a run into its folder."""
    _write_text(folder / RESULT, json.dumps(asdict(result), indent=2))


def read_result(folder: Path) -> Result:
    """Read the result of the run in a folder.

    Raises:
        DataError: there is none, or it is broken.
    """
    types = {name: get_origin(hint) or hint for name, hint in get_type_hints(Result).items()}
    try:
        values = json.loads(_read_text(folder / RESULT))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{folder / RESULT} is no JSON: {error}") from None
    fits = isinstance(values, dict) and values.keys() == types.keys()
    if not fits or not all(isinstance(values[name], kind) for name, kind in types.items()):
        raise DataError(f"{folder / RESULT} is broken: it must hold {', '.join(types)}, each of its type")
    return Result(**values)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without ever running code that it may hold; tensors come to the CPU.

    Raises:
        DataError: it is missing, broken, or holds more than tensors and plain values.
    """
    checkpoint = load_tensors(path)
    if not isinstance(checkpoint, dict):
        raise DataError(f"{path} is no checkpoint: it holds a {type(checkpoint).__name__}")
    return checkpoint


class Checkpoints(CheckpointIO):
    """How Lightning writes and reads checkpoints: atomically, and as :func:`read_checkpoint` does."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; one that is already there is replaced in one instant."""
        with atomic(Path(path)) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
