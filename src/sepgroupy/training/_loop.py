"""The training loop. Its complete state can be saved and restored after any step."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from rich.progress import Progress
from torch import Tensor, nn

from .._devices import start_reading
from ..errors import ArgumentError, DataError, RunError
from ._average import Average
from ._config import TrainingConfig
from ._distributed import all_reduce_sum, end_all_ranks, on_rank_zero
from ._history import best_epoch, epoch_text, is_last_epoch
from ._random import LAYERS, seed_of
from ._run_data import Batch, RunData
from ._run_directory import CHECKPOINT, require_room, write_checkpoint, write_metrics
from ._signals import Interruption
from ._step import Report, add, compute_gradients, make_optimizer
from ._validate_checkpoint import checked_best, checked_optimizer_states, checked_record

if TYPE_CHECKING:
    from ._fabric import Fabric

_log = logging.getLogger(__name__)

SAVE_SECONDS = 300.0
"""A checkpoint is written after each epoch and this many seconds after the last one: no more work can be lost."""


def require_full_shards(config: TrainingConfig, data: RunData, processes: int) -> None:
    """Raise ArgumentError unless every rank's shard of every batch is large enough for batch norm."""
    least = processes * config.least_batch
    count, last = data.train_images, data.smallest_batch
    if last < least:
        raise ArgumentError(
            f"batch_size (={config.batch_size}) leaves {last} of {count} images for the last step of an epoch, where "
            f"{processes} process{'es' * (processes > 1)} with batch norm need {least}: choose another"
        )


class Loop:
    """A run between two steps.

    Random numbers are drawn from the seed and the number of the step or epoch. The state of a run is therefore its
    parameters, the state of the optimizer, the number of steps done and the record of their losses.
    """

    def __init__(self, fabric: Fabric, model: nn.Module, config: TrainingConfig, data: RunData, folder: Path) -> None:
        self.fabric, self.model, self.config, self.data, self.folder = fabric, model, config, data, folder
        self.step = 0
        self.history: list[dict[str, float]] = []  # a row for each finished epoch
        self.totals = [0.0, 0.0, 0.0]  # of the current epoch: losses, errors, images
        self.best: dict[str, Any] | None = None  # the epoch and the state dict of the lowest validation error
        self.steps = data.steps  # an epoch
        self.average: Average | None = None  # of the parameters
        if config.ema is not None:
            self.average = Average(model, fabric.device, config.ema)
        self.optimizer = make_optimizer(model, config)
        # An epoch has batches of two sizes. Each gets a program of its own, in place of one for all sizes.
        stepped: Any = torch.compile(model, dynamic=False) if config.compile else model
        self.wrapped, self.stepper = fabric.setup(stepped, self.optimizer)
        self._unread: Report | None = None  # of the last step
        self._clock = self._saved = time.monotonic()
        self._epoch = -1
        self._batches: Iterator[Batch] = iter(())  # the remaining ones of that epoch

    @property
    def is_finished(self) -> bool:
        """Whether the last epoch is done, or patience is exhausted."""
        return bool(self.history) and is_last_epoch(self.config, self.history)

    def checkpoint(self) -> dict[str, Any]:
        """Return the complete state of the run."""
        totals = self.totals if self._unread is None else add(self.totals, self._unread.totals)
        return {
            "state_dict": {f"model.{name}": value for name, value in self.model.state_dict().items()},
            **({} if self.average is None else {"average": dict(self.average.state_dict())}),
            **({} if self.best is None else {"best": self.best}),
            "optimizer_states": [self.optimizer.state_dict()],
            "precision": self.fabric.strategy.precision.state_dict(),
            "global_step": self.step,
            "run": {
                "history": self.history,
                "totals": totals,
                "seconds": time.monotonic() - self._clock,
                "fingerprint": self.data.fingerprint,
            },
        }

    def resume(self, checkpoint: Mapping[str, Any]) -> None:
        """Resume from a checkpoint. Its parameters have been loaded, and their average validated.

        Raises:
            DataError: it is not a checkpoint of this run, or it is of a run on other data.
        """
        run = checked_record(checkpoint, self.data, self.folder)
        try:
            self.step, self.history, self.totals = checkpoint["global_step"], run["history"], run["totals"]
            if type(self.step) is not int or not 0 <= self.step - len(self.history) * self.steps <= self.steps:
                raise ValueError("its steps and its history do not agree")
            if self.is_finished and "test_error" not in self.history[-1]:
                raise ValueError("its last epoch was not evaluated")
            self.best = checked_best(checkpoint, self.history, self.config)
            states = checked_optimizer_states(checkpoint, self.optimizer)
            self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": states})
            self.fabric.strategy.precision.load_state_dict(checkpoint.get("precision", {}))
            if self.average is not None:
                self.average.load_state_dict(checkpoint["average"])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise DataError(f"{self.folder / CHECKPOINT} does not fit this run: {error!s:.200}") from None
        self._clock = time.monotonic() - run["seconds"]

    def run(self, stop: Interruption, shown: bool) -> None:
        """Do the remaining steps.

        Raises:
            RunError: the loss is NaN or infinite.
            KeyboardInterrupt: the run was asked to stop; its state is saved.
            OSError: the folder cannot be written to.
        """
        from ._fabric import TensorBoardLogger

        on_rank_zero(self.fabric, self._require_room)
        first, config = self.fabric.is_global_zero, self.config
        logger = TensorBoardLogger(self.folder, name="tensorboard", version="", purge_step=len(self.history) + 1)
        with Progress(disable=not (shown and first)) as bar:
            task = bar.add_task("", total=config.epochs * self.steps)
            while not self.is_finished:
                if self.step == (len(self.history) + 1) * self.steps:
                    row = self._close_epoch(stop)
                    if first:
                        logger.log_metrics(row, step=len(self.history))
                    if first and not shown:
                        text = epoch_text(row, self.data.objective.unit)
                        _log.info("epoch %d of %d: %s", len(self.history), config.epochs, text)
                else:
                    self._do_step(stop)
                    if time.monotonic() - self._saved > SAVE_SECONDS:
                        self.save()
                done = f"epoch {len(self.history)} of {config.epochs}"
                bar.update(task, completed=self.step, description=done)
        logger.finalize("success")

    def save(self) -> None:
        """Write the checkpoint, unless the loss of the last step is NaN or infinite; such a loss ends the run."""
        if self.fabric.is_global_zero and (self._unread is None or math.isfinite(self._unread.read()[0])):
            write_checkpoint(self.folder, self.checkpoint())
        self._saved = time.monotonic()

    def _require_room(self) -> None:
        # A checkpoint has the parameters, up to two optimizer states for each, their average and the best ones. The old
        # checkpoint exists until the new one is complete.
        floats = 4 * sum(value.numel() for value in self.model.state_dict().values())
        copies = 3 + (self.average is not None) + (self.config.select == "best")
        require_room(self.folder, copies * floats + 2**16)

    def _next_batch(self) -> Batch:
        epoch, position = divmod(self.step, self.steps)
        if self._epoch != epoch:
            self._epoch, self._batches = epoch, self.data.batches(epoch, position, self.fabric)
        return next(self._batches)

    def _do_step(self, stop: Interruption) -> None:
        config, fabric, objective = self.config, self.fabric, self.data.objective
        batch = self._next_batch()
        torch.manual_seed(seed_of(config.seed, LAYERS, self.step, fabric.global_rank))  # for dropout and the like
        self.stepper.zero_grad()
        report = compute_gradients(fabric, self.wrapped, batch, objective, config.accumulate)
        report[2] = float(bool(stop.signal))  # asks to stop
        report = all_reduce_sum(fabric, report)
        if config.clip is not None:
            fabric.clip_gradients(self.wrapped, self.stepper, max_norm=config.clip, error_if_nonfinite=False)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate(self.step, self.steps)
        self.stepper.step()
        if self.average is not None:
            self.average.follow(self.model, self.step)
        self.step += 1
        stops = self._read_report()  # of the step before
        self._unread = Report(self.step, batch.total, start_reading(report))
        if stops or (stop.signal and fabric.world_size == 1):  # several ranks agree on it by the report
            self._save_and_stop(stop)

    def _read_report(self) -> bool:
        """Add the unread report, if there is one, to the totals; return whether it asks to stop.

        All ranks call it at the same steps, so they agree on the end of the run.
        """
        if self._unread is None:
            return False
        report, self._unread = self._unread, None
        if not math.isfinite(report.totals[0]):
            end_all_ranks(self.fabric, RunError(self._bad_number(report)))
        self.totals = add(self.totals, report.totals)
        return bool(report.read()[2])

    def _save_and_stop(self, stop: Interruption) -> NoReturn:
        self._read_report()
        self.save()
        self._stop(stop)

    def _close_epoch(self, stop: Interruption) -> dict[str, float]:
        """Record the finished epoch, and evaluate if it is due."""
        if self._read_report():
            self._save_and_stop(stop)
        config, data, epoch = self.config, self.data, len(self.history) + 1
        loss, errors, count = self.totals
        row: dict[str, float] = {"epoch": epoch, "lr": config.learning_rate(self.step - 1, self.steps)}
        row |= {"train_loss": loss / count, "train_error": data.objective.scale * errors / count}
        if epoch % config.log_every == 0 or epoch == config.epochs:
            self.save()  # an evaluation may be long, and ends when the run is asked to stop
            best = self.best
            if data.has_validation:
                row |= self._evaluate("validation", stop)
                if config.select == "best" and best_epoch([*self.history, row]) == epoch:
                    best = {"epoch": epoch, "state_dict": _copied(self._evaluated().state_dict())}
            if not data.has_validation or is_last_epoch(config, [*self.history, row]):
                row |= self._evaluate("test", stop, best)
            self.best = best
        row["seconds"] = round(time.monotonic() - self._clock, 3)
        self.history.append(row)
        self.totals = [0.0, 0.0, 0.0]
        if self.fabric.is_global_zero:
            write_metrics(self.folder, self.history)
        self.save()
        return row

    def _evaluated(self) -> nn.Module:
        return self.model if self.average is None else self.average.module

    def _evaluate(self, name: str, stop: Interruption, best: Mapping[str, Any] | None = None) -> dict[str, float]:
        def between() -> None:
            if stop.signal:
                self._stop(stop)

        model = self._evaluated()
        if best is not None and best["epoch"] != len(self.history) + 1:
            model = copy.deepcopy(model)
            model.load_state_dict(best["state_dict"])
        sums = self.data.accumulate_metrics(model, name, self.fabric, between)
        loss, errors, count = all_reduce_sum(self.fabric, sums).tolist()
        return {f"{name}_loss": loss / count, f"{name}_error": self.data.objective.scale * errors / count}

    def _stop(self, stop: Interruption) -> NoReturn:
        if self.fabric.is_global_zero:
            asked = stop.signal or "a signal to another process"
            end = self.config.epochs * self.steps
            _log.warning("%s: stopped after step %d of %d and saved in %s", asked, self.step, end, self.folder)
        end_all_ranks(self.fabric, KeyboardInterrupt())

    def _bad_number(self, report: Report) -> str:
        loss, path = report.totals[0] / report.images, self.folder / CHECKPOINT
        return (
            f"the loss is {loss} in step {report.step} (epoch {len(self.history) + 1} of {self.config.epochs}): "
            f"{path} holds the last saved state before that step. Try a lower lr, clip or warmup, in another folder"
        )


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}
