"""From a configuration to a trained network in a folder, and back from the folder."""

from __future__ import annotations

import logging
import platform
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from .. import __version__
from .._files import load_tensors
from ..errors import ArgumentError, DataError
from ..fusion import fuse
from ..models import find_state, misfit
from . import _folder
from ._config import TrainingConfig
from ._folder import CHECKPOINT, CONFIG, RESULT, Result
from ._interrupt import Interruption
from ._loop import Loop, best_epoch, require_full_parts
from ._parallel import device_of, first_does, launch, loss_named, share_batch_norm
from ._run_data import RunData
from ._score import Score
from ._trust import checked_average, checked_record

if TYPE_CHECKING:
    from ._fabric import Fabric

_log = logging.getLogger(__name__)


class Restored(NamedTuple):
    """What a run has left: its configuration, facts of its data, the network in inference mode, and its checkpoint."""

    config: TrainingConfig
    facts: Any
    model: nn.Module
    checkpoint: dict[str, Any]


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


def evaluate(
    folder: str | PathLike[str], device: str = "auto", rotations: int = 1, workers: int | None = None
) -> Score:
    """Compute the loss and the error on the test set of the network that a run has left.

    Args:
        folder: the folder of the run.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        rotations: average the class probabilities over this many rotations, see :func:`predict`.
        workers: processes that read images, if they are not in memory.

    Raises:
        ArgumentError: the machine has no such device, or ``rotations`` is not a positive integer.
        DataError: the folder holds no run, or its files or data cannot be read or do not belong together.
    """
    folder = Path(folder)
    config, _, model, checkpoint = restore(folder)
    data = config.load_data(workers, folder)
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
    if (start := _start(config)) is not None:
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
        result = _result(loop)
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
        _trained(checkpoint, folder / CHECKPOINT, config, data.facts)
        start: dict[str, Tensor] | None = _fitting(checkpoint, folder / CHECKPOINT, config, data.facts)
    else:
        start = _start(config, data.facts)
    if not (folder / CONFIG).exists():  # weights that are refused leave the folder free for the next attempt
        _folder.write_config(folder, config)
        data.save(folder)
    return checkpoint, start


def _start(config: TrainingConfig, facts: Any = None) -> dict[str, Tensor] | None:
    """Return the parameters that a configuration names to start from."""
    if config.weights is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if (pretrained := config.pretrained_model(facts)) is not None:
            return pretrained.state_dict()
    path = Path(config.weights)
    if path.is_dir():
        checkpoint = _folder.read_checkpoint(path / CHECKPOINT)
        there = _folder.read_config(path)
        return _trained(checkpoint, path / CHECKPOINT, replace(config, ema=there.ema, select=there.select), facts)
    return _fitting(load_tensors(path), path, config, facts)


def _trained(checkpoint: dict[str, Any], path: Path, config: TrainingConfig, facts: Any = None) -> dict[str, Tensor]:
    """Return the parameters with which a run is tested: those of its best epoch, their average, or the last ones.

    Raises:
        DataError: they are missing or do not fit the network.
    """
    best = checkpoint.get("best") if config.select == "best" else None
    if isinstance(best, dict):
        checkpoint = {"state_dict": best.get("state_dict")}
    elif config.ema is not None:
        checkpoint = {"state_dict": checked_average(checkpoint, path)}
    return _fitting(checkpoint, path, config, facts)


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


def _fitting(found: Any, path: Path, config: TrainingConfig, facts: Any = None) -> dict[str, Tensor]:
    """Return the parameters of the network of a configuration out of what a file holds.

    Raises:
        DataError: they do not fit the network.
    """
    state = find_state(str(path), found)
    consume_prefix_in_state_dict_if_present(state, "model.")
    try:
        wanted = config.expected_state(facts)  # nothing is allocated for a width that nothing fits
    except (ArgumentError, RuntimeError) as error:
        raise DataError(f"{path} cannot fit this run: {error!s:.200}") from None
    if text := misfit(state, wanted):
        raise DataError(f"{path} does not fit the network of this run, {config.model}: {text}")
    return state


def restore(folder: Path) -> Restored:
    """Return what a run has left.

    Raises:
        DataError: the folder holds no run or no checkpoint, or they are broken.
    """
    config = _folder.read_config(folder)
    facts = config.read_facts(folder)
    checkpoint = _folder.read_checkpoint(folder / CHECKPOINT)
    state = _trained(checkpoint, folder / CHECKPOINT, config, facts)
    model = fuse(config.build_model(facts))
    model.load_state_dict(state)
    return Restored(config, facts, model.eval(), checkpoint)


def _result(loop: Loop) -> Result:
    from ._fabric import VERSION

    last, images = loop.history[-1], loop.data.test_images
    chosen = loop.history[best_epoch(loop.history) - 1] if loop.best is not None else last
    return Result(
        test_error=last["test_error"],
        test_loss=last["test_loss"],
        train_error=last["train_error"],
        train_loss=last["train_loss"],
        seconds=last["seconds"],
        parameters=sum(parameter.numel() for parameter in loop.model.parameters()),
        data=loop.data.name,
        fingerprint=loop.data.fingerprint,
        versions={
            "sepgroupy": __version__,
            "torch": torch.__version__,
            "lightning": VERSION,
            "python": platform.python_version(),
        },
        command=shlex.join(sys.argv),
        revision=_revision(Path(__file__).parent),
        test_correct=images - round(last["test_error"] * images / 100) if loop.data.counts_right_answers else 0,
        test_images=images,
        validation_error=chosen.get("validation_error"),
        validation_loss=chosen.get("validation_loss"),
    )


def _revision(folder: Path) -> str:
    """Return the git commit that a folder of source files is of; empty if git does not know these files."""
    try:
        git = ["git", "-C", str(folder)]
        subprocess.run([*git, "ls-files", "--error-unmatch", "."], check=True, capture_output=True)
        described = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(described, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


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
