"""The parts of a run that Lightning calls: training steps in a fixed order, and what is kept after each epoch."""

from __future__ import annotations

import csv
import logging
import math
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Sampler

from .._files import atomic
from ..data import ImageData, RandomCropFlip
from ..errors import DataError
from ._config import RunConfig
from ._folder import CHECKPOINT, METRICS
from ._score import score

_log = logging.getLogger(__name__)

COLUMNS = ("epoch", "lr", "train_loss", "train_error", "test_loss", "test_error", "seconds")


def _generator(seed: int, *counters: int) -> torch.Generator:
    """Return the random numbers of a place in a run: the same whether it was interrupted before or not."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, *counters)).generate_state(1)[0]))


def _decay(config: RunConfig, done: int) -> float:
    """Return the factor of the learning rate when so many epochs are done."""
    return float(0.1 ** bisect_right(config.milestones, done))


class EpochBatches(Sampler[Tensor]):
    """Indices of 0..count-1 in batches, in an order that depends on the seed and the epoch alone.

    Lightning tells the epoch through ``set_epoch``, as for torch's ``DistributedSampler``.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed, self.epoch = count, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.count / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(self.count, generator=_generator(self.seed, 0, self.epoch))
        yield from order.split(self.batch_size)


class Learner(pl.LightningModule):
    """A classifier that learns by cross-entropy, with the optimizer and augmentation of a configuration."""

    def __init__(self, model: nn.Module, config: RunConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        augmented = config.crop or config.hflip
        self.augment = RandomCropFlip(4 if config.crop else 0, config.hflip) if augmented else None

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        images, labels = batch
        if self.augment is not None:
            images = self.augment(images, _generator(self.config.seed, 1, self.global_step))
        outputs = self.model(images)
        loss = cross_entropy(outputs, labels)  # of log-probabilities too: log_softmax leaves them as they are
        wrong = (outputs.argmax(1) != labels).float().mean()
        values = {"train_loss": loss, "train_error": 100 * wrong}
        self.log_dict(values, on_step=False, on_epoch=True, prog_bar=True, logger=False, batch_size=len(labels))
        return loss

    def configure_optimizers(self) -> Any:
        """Return the optimizer and the rule that drops its learning rate."""
        c = self.config
        if c.optimizer == "adam":
            optimizer: torch.optim.Optimizer = torch.optim.Adam(self.parameters(), lr=c.lr, weight_decay=c.weight_decay)
        else:
            optimizer = torch.optim.SGD(self.parameters(), lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay)
        drops = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: _decay(c, done))
        return [optimizer], [drops]


class Recorder(Checkpoint):
    """After each epoch: evaluate if it is due, write ``metrics.csv`` and ``last.ckpt``, tell the loggers.

    The history is kept in the checkpoint, so that the table of a resumed run is whole.
    """

    def __init__(self, folder: Path, config: RunConfig, data: ImageData) -> None:
        self.folder, self.config, self.data = folder, config, data
        self.history: list[dict[str, float]] = []
        self._clock = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock where the history ends."""
        self._clock = time.monotonic() - (self.history[-1]["seconds"] if self.history else 0.0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the epoch that has just ended."""
        epoch = trainer.current_epoch + 1
        row: dict[str, float] = {"epoch": epoch, "lr": self.config.lr * _decay(self.config, epoch - 1)}
        row |= {name: float(trainer.callback_metrics[name]) for name in ("train_loss", "train_error")}
        if epoch % self.config.log_every == 0 or epoch == self.config.epochs:
            assert isinstance(pl_module, Learner)
            tested = score(pl_module.model, self.data.test, self.config.test_batch_size)
            row |= {"test_loss": tested.loss, "test_error": tested.error}
        row["seconds"] = round(time.monotonic() - self._clock, 3)
        self.history.append(row)
        with atomic(self.folder / METRICS) as path, path.open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            table.writerows(self.history)
        for logger in trainer.loggers:
            logger.log_metrics(row, step=epoch)
        trainer.save_checkpoint(self.folder / CHECKPOINT)
        if trainer.progress_bar_callback is None:
            values = ", ".join(f"{name} {row[name]:.4g}" for name in COLUMNS[1:] if name in row)
            _log.info("epoch %d of %d: %s", epoch, self.config.epochs, values)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the history, and what it was measured on, to a checkpoint."""
        checkpoint["run"] = {"history": self.history, "fingerprint": self.data.fingerprint}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on where a checkpoint ends."""
        self.take_up(checkpoint)

    def take_up(self, checkpoint: Mapping[str, Any]) -> None:
        """Continue the history of a checkpoint.

        Raises:
            DataError: it is not a checkpoint of a run, or one on other data.
        """
        kept = checkpoint.get("run")
        if not isinstance(kept, dict) or not isinstance(kept.get("history"), list):
            raise DataError(f"{self.folder / CHECKPOINT} was not written by a run of sepgroupy")
        if kept.get("fingerprint") != self.data.fingerprint:
            raise DataError(
                f"the data ({self.data.name}) are no longer those that {self.folder} was trained on: "
                "restore them, or start anew in another folder"
            )
        self.history = kept["history"]
