"""From a configuration to a trained network in a folder, and back from the folder."""

from __future__ import annotations

import logging
import platform
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torch.utils.data import DataLoader

from .. import __version__
from ..errors import ArgumentError, DataError
from ..models import build_model
from . import _folder
from ._config import RunConfig
from ._data import load_data
from ._folder import CHECKPOINT, CONFIG, RESULT, Result
from ._learner import EpochBatches, Learner, Recorder
from ._score import Score, score

_log = logging.getLogger(__name__)


def train(config: RunConfig, progress: bool = False) -> Result:
    """Train a network as the configuration says and return how good it is.

    The folder of the run receives ``config.json``, after each epoch ``last.ckpt``, ``metrics.csv`` and the events
    of TensorBoard, and ``result.json`` at the end. If it already holds this very run, a finished one is
    returned as it is and an unfinished one goes on after its last whole epoch: on a CPU with the same number of
    threads it ends with bitwise the parameters of a run that was never interrupted.

    Args:
        config: the run.
        progress: draw a progress bar.

    Raises:
        ArgumentError: the folder holds something else, or the machine has no such device.
        DataError: the data, or what the folder holds of the run, cannot be read or do not belong together.
        OSError: the folder cannot be written to.
        KeyboardInterrupt: the run was interrupted; all whole epochs are saved.
    """
    folder = config.run_folder
    _require_own(folder, config)
    if (folder / RESULT).exists():
        _log.info("%s holds this very run, finished: its result is returned", folder)
        return _folder.read_result(folder)
    device, data = _device(config.device), load_data(config)
    pl.seed_everything(config.seed, verbose=False)
    learner = Learner(_build(config), config)
    recorder = Recorder(folder, config, data)
    _folder.write_config(folder, config)
    _fit(learner, recorder, device, progress)
    last = recorder.history[-1]
    result = Result(
        test_error=last["test_error"],
        test_loss=last["test_loss"],
        train_error=last["train_error"],
        train_loss=last["train_loss"],
        seconds=last["seconds"],
        parameters=sum(parameter.numel() for parameter in learner.model.parameters()),
        data=data.name,
        fingerprint=data.fingerprint,
        versions={
            "sepgroupy": __version__,
            "torch": torch.__version__,
            "lightning": pl.__version__,
            "python": platform.python_version(),
        },
        command=shlex.join(sys.argv),
    )
    _folder.write_result(folder, result)
    return result


def evaluate(folder: str | PathLike[str], device: str = "auto") -> Score:
    """Compute the loss and the error on the test set of the network that a run has left.

    Args:
        folder: the folder of the run.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.

    Raises:
        ArgumentError: the machine has no such device.
        DataError: the folder holds no run, or its files or data cannot be read or do not belong together.
    """
    config, model, checkpoint = _restore(Path(folder))
    data = load_data(config)
    Recorder(Path(folder), config, data).take_up(checkpoint)
    return score(model.to(_device(device)), data.test, config.test_batch_size)


def load_model(folder: str | PathLike[str]) -> nn.Module:
    """Return the network that a run has left after its last whole epoch, in evaluation mode on the CPU.

    Args:
        folder: the folder of the run.

    Raises:
        DataError: the folder holds no run or no checkpoint, or they are broken.
    """
    return _restore(Path(folder))[1]


def _require_own(folder: Path, config: RunConfig) -> None:
    """Raise ArgumentError unless the folder is new or holds this very run."""
    if (folder / CONFIG).exists():
        wanted, there = asdict(config), asdict(_folder.read_config(folder))
        differences = [f"{name} {there[name]!r} there, {wanted[name]!r} here" for name in wanted]
        differences = [text for text, name in zip(differences, wanted, strict=True) if there[name] != wanted[name]]
        if differences:
            raise ArgumentError(
                f"folder (={str(folder)!r}) holds a run of another configuration ({'; '.join(differences)}): "
                "choose another folder, or delete this one"
            )
    elif folder.exists() and (not folder.is_dir() or any(not p.name.startswith(".") for p in folder.iterdir())):
        raise ArgumentError(f"folder (={str(folder)!r}) is in use, and not by a run: choose another folder")


def _build(config: RunConfig) -> nn.Module:
    width = config.width
    if width is None:
        return build_model(config.model)
    if config.task == "cifar10":
        return build_model(config.model, widths=(width, 2 * width, 4 * width))
    return build_model(config.model, width=width)


def _device(name: str) -> torch.device:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind in there if there[kind]))
    if not there.get(name, False):
        raise ArgumentError(f"device (={name!r}) is not on this machine: use auto or cpu")
    return torch.device(name)


def _fit(learner: Learner, recorder: Recorder, device: torch.device, progress: bool) -> None:
    """Run the epochs that are missing."""
    config, folder, data = recorder.config, recorder.folder, recorder.data
    checkpoint = folder / CHECKPOINT
    callbacks: list[Callback] = [recorder]
    if progress:
        callbacks.append(RichProgressBar(leave=True))
    with _quiet():
        trainer = pl.Trainer(
            accelerator=device.type,
            devices=1,
            precision=config.precision,  # type: ignore[arg-type]
            max_epochs=config.epochs,
            callbacks=callbacks,
            logger=TensorBoardLogger(folder, name="tensorboard", version=""),
            plugins=[_folder.Checkpoints()],
            enable_progress_bar=progress,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        batches = EpochBatches(len(data.train), config.batch_size, config.seed)
        loader = DataLoader(data.train, sampler=batches, batch_size=None)
        try:
            trainer.fit(learner, loader, ckpt_path=str(checkpoint) if checkpoint.exists() else None)
        except SystemExit as stop:
            if not isinstance(stop.__context__, KeyboardInterrupt):
                raise
            _log.warning("interrupted: the same run goes on after epoch %d of %d", len(recorder.history), config.epochs)
            raise KeyboardInterrupt from None  # what Lightning made a SystemExit of


def _restore(folder: Path) -> tuple[RunConfig, nn.Module, dict[str, Any]]:
    config = _folder.read_config(folder)
    checkpoint = _folder.read_checkpoint(folder / CHECKPOINT)
    model = _build(config)
    try:
        state = checkpoint["state_dict"]
        consume_prefix_in_state_dict_if_present(state, "model.")
        model.load_state_dict(state)
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise DataError(f"{folder / CHECKPOINT} does not fit {folder / CONFIG}: {error!s:.200}") from None
    return config, model.eval(), checkpoint


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning from telling what the user did not ask for; real warnings pass."""
    chatter = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in chatter]
    with warnings.catch_warnings():
        # The pictures are in memory, whole batches at a time: worker processes would only cost.
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", "GPU available but not used")  # the user's choice
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # between torch 2.9 and Lightning 2.6
        for logger in chatter:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(chatter, levels, strict=True):
                logger.setLevel(level)
