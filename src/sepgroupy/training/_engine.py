"""Train the network of a configuration in a folder, evaluate it, and load it from the folder."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..fusion import fuse
from . import _run_directory
from ._config import TrainingConfig
from ._distributed import device_of, launch, name_lost_process, on_rank_zero, share_batch_norm
from ._loop import Loop, require_full_shards
from ._metrics import Score
from ._outcome import result_of
from ._parameters import initial_state, matching_state, restore, state_to_test
from ._run_data import RunData
from ._run_directory import CHECKPOINT, CONFIG, RESULT, Result
from ._signals import Interruption
from ._validate_checkpoint import checked_record

if TYPE_CHECKING:
    from ._fabric import Fabric

_log = logging.getLogger(__name__)


def train(
    config: TrainingConfig, progress: bool = False, *, workers: int | None = None, time_limit: float | None = None
) -> Result:
    """Train the network of a configuration and return its result.

    Files in the folder of the run: ``config.json``; ``last.ckpt``, written after each epoch and every five minutes;
    ``metrics.csv`` and the events of TensorBoard, written after each epoch; ``result.json``, written at the end. If the
    folder already has a run of this configuration, the result of a finished run is returned, and an unfinished run
    resumes from its checkpoint. On a CPU with the same number of threads and processes, the resumed run ends with
    bitwise the parameters of a run that was never interrupted.

    With several processes (``devices``, ``nodes``) only rank 0 uses the folder and raises errors; the others end by
    ``SystemExit(0)``.

    Args:
        config: the run.
        progress: draw a progress bar.
        workers: processes that read images; None for one less than the processors, at most 8. The result does not
            depend on their number.
        time_limit: seconds after which the run is stopped as by a signal, and saved.

    Raises:
        ArgumentError: the folder has other contents or is in use, or the machine has no such device.
        DataError: the data or the files of the run cannot be read, or do not belong together.
        RunError: the loss is NaN or infinite, or another process of the run has ended.
        OSError: the folder cannot be written to, or has no room for a checkpoint.
        KeyboardInterrupt: the run was asked to stop (SIGINT, SIGTERM or SIGUSR1); its state is saved.
    """
    with _quiet(), _deterministic_cudnn():
        fabric = launch(config)
        with name_lost_process(fabric):
            return _train(fabric, config, progress, workers, time_limit)


def evaluate(
    folder: str | PathLike[str], device: str = "auto", rotations: int = 1, workers: int | None = None
) -> Score:
    """Compute loss and error of a trained run on its test set.

    Args:
        folder: the folder of the run.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        rotations: average the class probabilities over this many rotations, see :func:`predict`.
        workers: processes that read images, if they are not in memory.

    Raises:
        ArgumentError: the machine has no such device, or ``rotations`` is not a positive integer.
        DataError: the folder has no run, or its files or data cannot be read or do not belong together.
    """
    folder = Path(folder)
    config, _, model, checkpoint = restore(folder)
    data = config.load_data(workers, folder)
    checked_record(checkpoint, data, folder)
    return data.score(model.to(device_of(device)), config.test_batch_size, rotations)


def load_model(folder: str | PathLike[str]) -> nn.Module:
    """Return the network of a run from its checkpoint, in inference mode on the CPU.

    Args:
        folder: the folder of the run.

    Raises:
        DataError: the folder has no run or no checkpoint, or they are broken.
    """
    return restore(Path(folder)).model


def initial_model(config: TrainingConfig) -> nn.Module:
    """Return the network with which a run of this configuration starts, on the CPU.

    The state of torch's random numbers does not change.

    Raises:
        DataError: the file or folder that ``weights`` names cannot be read, or does not fit the network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = config.build_model()
    if (start := initial_state(config)) is not None:
        model.load_state_dict(start)
    return model


def _train(
    fabric: Fabric, config: TrainingConfig, progress: bool, workers: int | None, time_limit: float | None
) -> Result:
    stop = Interruption(time_limit)
    folder = config.run_folder
    if (finished := on_rank_zero(fabric, lambda: _find_finished(folder, config))) is not None:
        return finished
    here: list[RunData] = []
    # Rank 0 alone, since loading may download files or write a cache.
    on_rank_zero(fabric, lambda: here.append(config.load_data(workers, progress=progress)))
    data = here[0] if here else config.load_data(workers)
    on_rank_zero(fabric, lambda: require_full_shards(config, data, fabric.world_size))
    torch.manual_seed(config.seed)
    model = fuse(config.build_model(data.facts))
    with ExitStack() as stack:
        on_rank_zero(fabric, lambda: stack.enter_context(_run_directory.lock_run_directory(folder)))
        checkpoint, start = on_rank_zero(fabric, lambda: _load_or_initialize(folder, config, data))
        if start is not None:
            model.load_state_dict(start)
        if config.sync_batchnorm and fabric.world_size > 1:
            share_batch_norm(model)
        loop = Loop(fabric, model, config, data, folder)
        if checkpoint is not None:
            loop.resume(checkpoint)
        with stop:
            loop.run(stop, progress)
        result = result_of(loop)
        on_rank_zero(fabric, lambda: _run_directory.write_result(folder, result))
    return result


def _find_finished(folder: Path, config: TrainingConfig) -> Result | None:
    """Return the result of a finished run of this configuration; refuse a folder of anything else."""
    _require_own(folder, config)
    if not (folder / RESULT).exists():
        return None
    _log.info("%s has a finished run of this configuration: its result is returned", folder)
    return _run_directory.read_result(folder)


def _load_or_initialize(
    folder: Path, config: TrainingConfig, data: RunData
) -> tuple[dict[str, Any] | None, dict[str, Tensor] | None]:
    """Return the checkpoint in the folder, if there is one, and the parameters to resume with or to start with."""
    _require_own(folder, config)  # again: now the folder is locked
    checkpoint = None
    if (folder / CHECKPOINT).exists():
        checkpoint = _run_directory.read_checkpoint(folder / CHECKPOINT)
        state_to_test(checkpoint, folder / CHECKPOINT, config, data.facts)
        start: dict[str, Tensor] | None = matching_state(checkpoint, folder / CHECKPOINT, config, data.facts)
    else:
        start = initial_state(config, data.facts)
    if not (folder / CONFIG).exists():  # after the weights: if these are refused, the folder stays free
        _run_directory.write_config(folder, config)
        data.save(folder)
    return checkpoint, start


def _require_own(folder: Path, config: TrainingConfig) -> None:
    """Raise ArgumentError unless the folder is new or has a run of this configuration."""
    if (folder / CONFIG).exists():
        wanted, there = asdict(config), asdict(_run_directory.read_config(folder))
        differences = [
            f"{name} {there.get(name)!r} there, {value!r} here"
            for name, value in wanted.items()
            if name not in there or there[name] != value
        ]
        if differences:
            raise ArgumentError(
                f"folder (={str(folder)!r}) holds a run of another configuration ({'; '.join(differences)}): "
                "choose another folder, or delete this one"
            )
    elif folder.exists() and (not folder.is_dir() or any(not p.name.startswith(".") for p in folder.iterdir())):
        raise ArgumentError(f"folder (={str(folder)!r}) is in use, and not by a run: choose another folder")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's information; warnings pass."""
    from ._fabric import LOGGER

    level = LOGGER.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "GPU available but not used")  # the user's choice
        LOGGER.setLevel(logging.WARNING)
        try:
            yield
        finally:
            LOGGER.setLevel(level)


@contextmanager
def _deterministic_cudnn() -> Iterator[None]:
    """Use deterministic algorithms of cuDNN, without a search for the fastest."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
