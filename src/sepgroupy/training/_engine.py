"""From a configuration to a trained network in a folder, and back from the folder."""

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
from . import _folder
from ._config import TrainingConfig
from ._folder import CHECKPOINT, CONFIG, RESULT, Result
from ._interrupt import Interruption
from ._loop import Loop, require_full_parts
from ._outcome import result_of
from ._parallel import device_of, first_does, launch, loss_named, share_batch_norm
from ._parameters import fitting_state, initial_state, restore, state_to_test
from ._run_data import RunData
from ._score import Score
from ._trust import checked_record

if TYPE_CHECKING:
    from ._fabric import Fabric

_log = logging.getLogger(__name__)


def train(
    config: TrainingConfig, progress: bool = False, *, workers: int | None = None, time_limit: float | None = None
) -> Result:
    """Train a network as the configuration says and return how good it is.

    The folder of the run receives ``config.json``, after each epoch and every five minutes ``last.ckpt``, after each
    epoch ``metrics.csv`` and the events of TensorBoard, and ``result.json`` at the end. If it already holds this very
    run, a finished one is returned as it is and an unfinished one goes on from its checkpoint: on a CPU with the same
    number of threads and processes it ends with bitwise the parameters of a run that was never interrupted.

    With several processes (``devices``, ``nodes``) the first one alone touches the folder, and it alone raises what
    they agree upon; the others leave by ``SystemExit(0)``.

    Args:
        config: the run.
        progress: draw a progress bar.
        workers: processes that read images; None for one less than the processors, at most 8. The result does not
            depend on them.
        time_limit: seconds after which the run is stopped as by a signal, and saved.

    Raises:
        ArgumentError: the folder holds something else or is in use, or the machine has no such device.
        DataError: the data, or what the folder holds of the run, cannot be read or do not belong together.
        RunError: the loss is no longer a number, or another process of the run is gone.
        OSError: the folder cannot be written to, or has no room for a checkpoint.
        KeyboardInterrupt: the run was asked to stop (SIGINT, SIGTERM or SIGUSR1); it is saved up to that step.
    """
    with _quiet(), _deterministic_cudnn():
        fabric = launch(config)
        with loss_named(fabric):
            return _train(fabric, config, progress, workers, time_limit)


def evaluate(folder: str | PathLike[str], device: str = "auto", rotations: int = 1) -> Score:
    """Compute the loss and the error on the test set of the network that a run has left.

    Args:
        folder: the folder of the run.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        rotations: average the class probabilities over this many rotations, see :func:`predict`.

    Raises:
        ArgumentError: the machine has no such device, or ``rotations`` is not a positive integer.
        DataError: the folder holds no run, or its files or data cannot be read or do not belong together.
    """
    folder = Path(folder)
    config, _, model, checkpoint = restore(folder)
    data = config.load_data(folder=folder)
    checked_record(checkpoint, data, folder)
    return data.score(model.to(device_of(device)), config.test_batch_size, rotations)


def load_model(folder: str | PathLike[str]) -> nn.Module:
    """Return the network that a run has left in its checkpoint, in evaluation mode on the CPU.

    Args:
        folder: the folder of the run.

    Raises:
        DataError: the folder holds no run or no checkpoint, or they are broken.
    """
    return restore(Path(folder)).model


def initial_model(config: TrainingConfig) -> nn.Module:
    """Return the network with which a run of this configuration starts, on the CPU.

    The state of torch's random numbers stays as it is.

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
    if (finished := first_does(fabric, lambda: _find_finished(folder, config))) is not None:
        return finished
    here: list[RunData] = []
    # Alone, since it may fetch them or keep a cache.
    first_does(fabric, lambda: here.append(config.load_data(workers, progress=progress)))
    data = here[0] if here else config.load_data(workers)
    first_does(fabric, lambda: require_full_parts(config, data, fabric.world_size))
    torch.manual_seed(config.seed)
    model = fuse(config.build_model(data.facts))
    with ExitStack() as stack:
        first_does(fabric, lambda: stack.enter_context(_folder.held(folder)))
        checkpoint, start = first_does(fabric, lambda: _take_up(folder, config, data))
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
        first_does(fabric, lambda: _folder.write_result(folder, result))
    return result


def _find_finished(folder: Path, config: TrainingConfig) -> Result | None:
    """Return the result that the folder holds of this very run; the folder is new, or the run's own."""
    _require_own(folder, config)
    if not (folder / RESULT).exists():
        return None
    _log.info("%s holds this very run, finished: its result is returned", folder)
    return _folder.read_result(folder)


def _take_up(
    folder: Path, config: TrainingConfig, data: RunData
) -> tuple[dict[str, Any] | None, dict[str, Tensor] | None]:
    """Return the checkpoint that the folder holds of a run, and the parameters to go on from or to start from."""
    _require_own(folder, config)  # once more: now nobody else can change it
    checkpoint = None
    if (folder / CHECKPOINT).exists():
        checkpoint = _folder.read_checkpoint(folder / CHECKPOINT)
        state_to_test(checkpoint, folder / CHECKPOINT, config, data.facts)
        start: dict[str, Tensor] | None = fitting_state(checkpoint, folder / CHECKPOINT, config, data.facts)
    else:
        start = initial_state(config, data.facts)
    if not (folder / CONFIG).exists():  # weights that are refused leave the folder free for the next attempt
        _folder.write_config(folder, config)
        data.save(folder)
    return checkpoint, start


def _require_own(folder: Path, config: TrainingConfig) -> None:
    """Raise ArgumentError unless the folder is new or holds this very run."""
    if (folder / CONFIG).exists():
        wanted, there = asdict(config), asdict(_folder.read_config(folder))
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
    """Keep Lightning from telling what the user did not ask for; real warnings pass."""
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
    """Let cuDNN use deterministic algorithms, without a search for the fastest."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
