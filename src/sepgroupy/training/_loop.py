"""Training, step by step: what a run is between two steps is all in one checkpoint, whichever steps these are."""

from __future__ import annotations

import logging
import math
import time
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..data import ImageData, RandomAffine, RandomCropFlip, Split
from ..errors import ArgumentError, DataError, RunError
from ._config import TrainingConfig
from ._folder import CHECKPOINT, COLUMNS, require_room, write_checkpoint, write_metrics
from ._interrupt import Interruption
from ._parallel import end_together, first_does, part, summed
from ._random import AFFINE, CROP_FLIP, ORDER, generator
from ._score import mean, tally
from ._trust import checked_moments, checked_record

if TYPE_CHECKING:
    from ._fabric import Fabric

_log = logging.getLogger(__name__)

SAVE_SECONDS = 300.0
"""A checkpoint is written after each epoch, and this long after the last one: no more work than that is ever lost."""


def order_of(count: int, seed: int, epoch: int) -> Tensor:
    """Return 0..count-1 in an order that depends on the seed and the epoch alone."""
    return torch.randperm(count, generator=generator(seed, ORDER, epoch))


def rate(config: TrainingConfig, step: int, steps: int) -> float:
    """Return the learning rate of a step, there being so many an epoch."""
    if config.schedule == "cosine":
        factor = (1 + math.cos(math.pi * step / (config.epochs * steps))) / 2
    else:
        factor = float(0.1 ** bisect_right(config.milestones, step // steps))
    decayed = config.lr * factor
    return decayed * min(1.0, (step + 1) / (config.warmup * steps)) if config.warmup else decayed


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return the optimizer of a configuration."""
    c = config
    if c.optimizer != "sgd":
        adaptive = torch.optim.Adam if c.optimizer == "adam" else torch.optim.AdamW
        return adaptive(model.parameters(), lr=c.lr, weight_decay=c.weight_decay)
    return torch.optim.SGD(model.parameters(), lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay)


def require_full_parts(config: TrainingConfig, count: int, processes: int) -> None:
    """Raise ArgumentError unless each process has a part in every batch that its network can learn from."""
    least = processes * config.least_batch
    last = (count - 1) % config.batch_size + 1
    if last < least:
        raise ArgumentError(
            f"batch_size (={config.batch_size}) leaves {last} of {count} images for the last step of an epoch, where "
            f"{processes} process{'es' * (processes > 1)} with batch norm need {least}: choose another"
        )


class Loop:
    """A run between two steps.

    Everything random is drawn from the seed and the number of the step or epoch, so that the parameters, the
    optimizer's state, the number of steps done and what was recorded of them are all that there is to keep.
    """

    def __init__(self, fabric: Fabric, model: nn.Module, config: TrainingConfig, data: ImageData, folder: Path) -> None:
        self.fabric, self.model, self.config, self.data, self.folder = fabric, model, config, data, folder
        self.step = 0
        self.history: list[dict[str, float]] = []  # a row for each epoch that is done
        self.totals = [0.0, 0.0, 0.0]  # of the epoch under way: cross-entropies, wrong answers, images
        self.steps = math.ceil(len(data.train) / config.batch_size)  # an epoch
        self.crop_flip = RandomCropFlip(config.crop, config.hflip) if config.crop or config.hflip else None
        moves = config.rotation or config.shift or config.scale
        self.affine = RandomAffine(config.rotation, config.shift, config.scale) if moves else None
        self.average: AveragedModel | None = None  # of the parameters and batch statistics
        if config.ema is not None:
            mean_of = get_ema_multi_avg_fn(config.ema)
            self.average = AveragedModel(model, fabric.device, multi_avg_fn=mean_of, use_buffers=True)
        self.optimizer = make_optimizer(model, config)
        self.wrapped, self.stepper = fabric.setup(model, self.optimizer)
        self._clock = self._saved = time.monotonic()
        self._order = -1, torch.empty(0)  # of an epoch

    def checkpoint(self) -> dict[str, Any]:
        """Return all that the run is."""
        return {
            "state_dict": {f"model.{name}": value for name, value in self.model.state_dict().items()},
            **({} if self.average is None else {"average": dict(self.average.state_dict())}),
            "optimizer_states": [self.optimizer.state_dict()],
            "precision": self.fabric.strategy.precision.state_dict(),
            "global_step": self.step,
            "run": {
                "history": self.history,
                "totals": self.totals,
                "seconds": time.monotonic() - self._clock,
                "fingerprint": self.data.fingerprint,
            },
        }

    def resume(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on where a checkpoint ends, of which the parameters have been loaded and their average checked.

        Raises:
            DataError: it is not a checkpoint of this run, or one on other data.
        """
        run = checked_record(checkpoint, self.data, self.folder)
        try:
            self.step, self.history, self.totals = checkpoint["global_step"], run["history"], run["totals"]
            if type(self.step) is not int or not 0 <= self.step - len(self.history) * self.steps <= self.steps:
                raise ValueError("its steps and its history do not agree")
            if len(self.history) == self.config.epochs and "test_error" not in self.history[-1]:
                raise ValueError("its last epoch was not evaluated")
            moments = checked_moments(checkpoint, self.optimizer)
            self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
            self.fabric.strategy.precision.load_state_dict(checkpoint.get("precision", {}))
            if self.average is not None:
                self.average.load_state_dict(checkpoint["average"])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise DataError(f"{self.folder / CHECKPOINT} does not fit this run: {error!s:.200}") from None
        self._clock = time.monotonic() - run["seconds"]

    def run(self, stop: Interruption, shown: bool) -> None:
        """Do the steps that are missing.

        Raises:
            RunError: the loss is no longer a number.
            KeyboardInterrupt: the run was asked to stop; it is saved up to here.
            OSError: the folder cannot be written to.
        """
        from ._fabric import TensorBoardLogger

        first_does(self.fabric, self._require_room)
        first, config = self.fabric.is_global_zero, self.config
        logger = TensorBoardLogger(self.folder, name="tensorboard", version="", purge_step=len(self.history) + 1)
        with Progress(disable=not (shown and first)) as bar:
            task = bar.add_task("", total=config.epochs * self.steps)
            while len(self.history) < config.epochs:
                if self.step == (len(self.history) + 1) * self.steps:
                    row = self._close_epoch(stop)
                    if first:
                        logger.log_metrics(row, step=len(self.history))
                    if first and not shown:
                        values = ", ".join(f"{name} {row[name]:.4g}" for name in COLUMNS[1:] if name in row)
                        _log.info("epoch %d of %d: %s", len(self.history), config.epochs, values)
                else:
                    self._do_step(stop)
                    if time.monotonic() - self._saved > SAVE_SECONDS:
                        self.save()
                done = f"epoch {len(self.history)} of {config.epochs}"
                bar.update(task, completed=self.step, description=done)
        logger.finalize("success")

    def save(self) -> None:
        """Write the checkpoint."""
        if self.fabric.is_global_zero:
            write_checkpoint(self.folder, self.checkpoint())
        self._saved = time.monotonic()

    def _require_room(self) -> None:
        # A checkpoint has the parameters, up to two moments of each, and their average; the old one is there while the
        # new one is written.
        floats = 4 * sum(value.numel() for value in self.model.state_dict().values())
        require_room(self.folder, (3 if self.average is None else 4) * floats + 2**16)

    def _do_step(self, stop: Interruption) -> None:
        config, device = self.config, self.fabric.device
        epoch, position = divmod(self.step, self.steps)
        if self._order[0] != epoch:
            self._order = epoch, order_of(len(self.data.train), config.seed, epoch)
        indices = self._order[1][position * config.batch_size : (position + 1) * config.batch_size]
        images, labels = (values.to(device) for values in self.data.train[indices])
        if self.crop_flip is not None:  # the whole batch, so that it is the same for any number of processes
            images = self.crop_flip(images, generator(config.seed, CROP_FLIP, self.step))
        if self.affine is not None:
            images = self.affine(images, generator(config.seed, AFFINE, self.step))
        images, labels = part(self.fabric, images), part(self.fabric, labels)
        outputs = self.wrapped(images)
        loss = cross_entropy(
            outputs, labels, label_smoothing=config.label_smoothing
        )  # of log-probabilities too: log_softmax leaves them as they are
        share = len(labels) / len(indices)
        self.stepper.zero_grad()
        self.fabric.backward(loss * (share * self.fabric.world_size))  # of which the processes' mean is taken
        wrong = (outputs.argmax(1) != labels).sum()
        asked = torch.tensor(float(bool(stop.signal)), device=device)
        report = torch.stack([loss.detach() * len(labels), wrong, asked])
        total, wrongs, stops = summed(self.fabric, report).tolist()
        if not math.isfinite(total):
            end_together(self.fabric, RunError(self._bad_number(total / len(indices))))
        if config.clip is not None:
            self.fabric.clip_gradients(self.wrapped, self.stepper, max_norm=config.clip, error_if_nonfinite=False)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(config, self.step, self.steps)
        self.stepper.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        self.totals = [a + b for a, b in zip(self.totals, (total, wrongs, len(indices)), strict=True)]
        if stops:
            self.save()
            self._stop(stop)

    def _close_epoch(self, stop: Interruption) -> dict[str, float]:
        """Record the epoch that has just ended, and evaluate if it is due."""
        config, epoch = self.config, len(self.history) + 1
        loss, wrong, count = self.totals
        row: dict[str, float] = {"epoch": epoch, "lr": rate(config, self.step - 1, self.steps)}
        row |= {"train_loss": loss / count, "train_error": 100 * wrong / count}
        if epoch % config.log_every == 0 or epoch == config.epochs:
            self.save()  # an evaluation may be long, and is given up when the run is asked to stop
            if self.data.validation is not None:
                row |= self._evaluate("validation", self.data.validation, stop)
            if self.data.validation is None or epoch == config.epochs:
                row |= self._evaluate("test", self.data.test, stop)
        row["seconds"] = round(time.monotonic() - self._clock, 3)
        self.history.append(row)
        self.totals = [0.0, 0.0, 0.0]
        if self.fabric.is_global_zero:
            write_metrics(self.folder, self.history)
        self.save()
        return row

    def _evaluate(self, name: str, split: Split, stop: Interruption) -> dict[str, float]:
        def between() -> None:
            if stop.signal:
                self._stop(stop)

        fabric, model = self.fabric, self.model if self.average is None else self.average.module
        mine = slice(fabric.global_rank, None, fabric.world_size)
        shard = Split(split.images[mine], split.labels[mine])
        score = mean(summed(fabric, tally(model, shard, self.config.test_batch_size, between=between)))
        return {f"{name}_loss": score.loss, f"{name}_error": score.error}

    def _stop(self, stop: Interruption) -> None:
        if self.fabric.is_global_zero:
            asked = stop.signal or "a signal to another process"
            end = self.config.epochs * self.steps
            _log.warning("%s: stopped after step %d of %d and saved in %s", asked, self.step, end, self.folder)
        end_together(self.fabric, KeyboardInterrupt())

    def _bad_number(self, loss: float) -> str:
        kept = self.folder / CHECKPOINT
        return (
            f"the loss is {loss} in step {self.step + 1} (epoch {len(self.history) + 1} of {self.config.epochs}): "
            f"{kept} holds the last state before it that was saved. Try a lower lr, clip or warmup, in another folder"
        )
