"""The files of a run: written atomically, and validated when they are read, since they may come from anyone."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import torch

from .._files import atomic, load_tensors, remove_leftovers
from ..errors import ArgumentError, DataError
from ._config import TrainingConfig
from ._tasks import parse_config

CONFIG, RESULT, CHECKPOINT, METRICS = "config.json", "result.json", "last.ckpt", "metrics.csv"
COLUMNS = (
    *("epoch", "lr", "train_loss", "train_error", "validation_loss", "validation_error"),
    *("test_loss", "test_error", "seconds"),
)

_LOCKS: set[int] = set()  # open files by which this process locks folders
_LARGEST_TEXT = 2**20  # bytes; the files written here have about a thousand


@dataclass(frozen=True)
class Result:
    """The result of a run, saved as ``result.json`` in its folder.

    Args:
        test_error: on the test set, with the parameters that ``select`` names, percent; of a regression the mean
            absolute error.
        test_loss: mean loss there, of a classification in nats.
        train_error: mean over the steps of the last epoch, percent.
        train_loss: mean over the steps of the last epoch, nats.
        seconds: time of all epochs, including evaluations.
        parameters: the number of free parameters.
        data: name of the data set.
        fingerprint: digest of its images and labels.
        versions: of sepgroupy, torch, Lightning Fabric (as "lightning") and python.
        command: the command line that finished the run.
        revision: the git commit of the package that finished it, with ``-dirty`` if files differed from it; empty
            without git.
        test_correct: right answers on the test set; 0 if an image has not one answer.
        test_images: images of the test set; 0 in a file of an older version, which has neither.
        validation_error: on the validation images after the last epoch, or the best if that was selected; or None.
        validation_loss: mean cross-entropy there, nats.
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
    revision: str = ""
    test_correct: int = 0
    test_images: int = 0
    validation_error: float | None = None
    validation_loss: float | None = None


def write_config(folder: Path, config: TrainingConfig) -> None:
    """Write the configuration of a run into its folder, which is created if it is missing."""
    _write_text(folder / CONFIG, config.to_json())


def read_config(folder: Path) -> TrainingConfig:
    """Read the configuration of the run in a folder.

    Raises:
        DataError: there is none, or it is broken.
    """
    if not (folder / CONFIG).exists():
        raise DataError(f"{folder} is not the directory of a run: it has no {CONFIG}")
    try:
        return parse_config(_read_text(folder / CONFIG))
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
    types = {name: dict if get_origin(hint) is dict else hint for name, hint in get_type_hints(Result).items()}
    try:
        values = json.loads(_read_text(folder / RESULT))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{folder / RESULT} is not JSON: {error}") from None
    due = {field.name for field in fields(Result) if field.default is MISSING}
    fits = isinstance(values, dict) and due <= values.keys() <= types.keys()
    if not fits or not all(isinstance(value, types[name]) for name, value in values.items()):
        raise DataError(f"{folder / RESULT} is broken: it must hold {', '.join(types)}, each of its type")
    return Result(**values)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; no code in it is executed, and tensors are placed on the CPU.

    Raises:
        DataError: it is missing, broken, or holds more than tensors and plain values.
    """
    checkpoint = load_tensors(path)
    if not isinstance(checkpoint, dict):
        raise DataError(f"{path} is not a checkpoint: it holds a {type(checkpoint).__name__}")
    return checkpoint


def write_checkpoint(folder: Path, checkpoint: dict[str, Any]) -> None:
    """Write the checkpoint of a run; an earlier one is replaced atomically."""
    buffer = io.BytesIO()  # torch would end the process if the disk is full
    torch.save(checkpoint, buffer)
    with atomic(folder / CHECKPOINT) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def write_metrics(folder: Path, history: Sequence[dict[str, float]]) -> None:
    """Write the table of a run, a row an epoch, with the columns that have values."""
    columns = [name for name in COLUMNS if any(name in row for row in history)]
    with atomic(folder / METRICS) as path, path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(history)


@contextmanager
def lock_run_directory(folder: Path) -> Iterator[None]:
    """Lock the folder of a run, which is created if it is missing, so that no other process trains in it.

    The lock ends with the process, even if that is killed. Files that a killed process has left half written are
    deleted.

    Raises:
        ArgumentError: another process has locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = _lock(folder)
    try:
        for name in (CONFIG, RESULT, CHECKPOINT, METRICS):
            remove_leftovers(folder / name)
        yield
    finally:
        if handle is not None:
            _unlock(handle)


def _lock(folder: Path) -> int | None:
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows has no such lock
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise ArgumentError(
                f"folder (={str(folder)!r}) is being trained in by another process: wait for it, or choose another"
            ) from None
        return None  # some network file systems have no locks
    _LOCKS.add(handle)
    return handle


def _unlock(handle: int) -> None:
    import fcntl

    _LOCKS.discard(handle)
    fcntl.flock(handle, fcntl.LOCK_UN)  # closing is not enough while another process has it open
    os.close(handle)


def _close_locks() -> None:
    """Close the locks in a forked process, such as one that reads images: it may outlive the run."""
    while _LOCKS:
        os.close(_LOCKS.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locks)


def require_room(folder: Path, size: int) -> None:
    """Raise OSError unless ``size`` bytes can be written into the folder, before the first epoch."""
    temporary = folder / f".{Path(CHECKPOINT).stem}.{0:08x}{Path(CHECKPOINT).suffix}"  # a leftover if we are killed
    try:
        with temporary.open("wb") as file:
            for start in range(0, size, 2**20):
                file.write(bytes(min(2**20, size - start)))
            file.flush()
            os.fsync(file.fileno())
    finally:
        temporary.unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _read_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LARGEST_TEXT)
            if file.read(1):
                raise DataError(f"{path} is larger than any file of this name should be")
            return text
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
