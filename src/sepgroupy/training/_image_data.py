"""Anyone's images as the data of a run: opened in the run's splits, read by worker processes, augmented one by one."""

from __future__ import annotations

import csv
import logging
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from .._files import atomic
from ..data import Images, ImageSplits, open_images
from ..errors import ArgumentError
from ..nn import cached_filters
from ._augmentation import Augmentation
from ._image_facts import SPLIT, ImageFacts
from ._metrics import Score, predict, score_from_sums
from ._objective import Classification, Objective, Regression, Segmentation, balanced_weights
from ._random import AUGMENTATION, ORDER, epoch_order, generator, seed_of
from ._run_data import Batch, RunData

if TYPE_CHECKING:
    from ._fabric import Fabric
    from ._image_config import ImageConfig

_log = logging.getLogger(__name__)


def open_run_images(config: ImageConfig, workers: int | None, folder: Path, progress: bool = False) -> StreamedData:
    """Open the images of a run.

    The splits are those of ``split.csv`` in the folder of the run, if it is there; else those of the data, or drawn.

    Raises:
        ArgumentError: an argument of :func:`sepgroupy.data.open_images` or of the network cannot be right.
        DataError: the data cannot be read.
    """
    assert config.data_path is not None
    stored = folder / SPLIT
    labels = stored if stored.exists() else config.labels
    path = Path(config.data_path)
    if stored.exists() and path.suffix.lower() == ".csv" and path.is_file():
        path = path.parent
    splits = open_images(
        path,
        task=config.task,
        labels=labels,
        size=config.size,
        seed=config.seed,
        skip_broken=config.skip_broken,
        progress=progress,
    )
    for name, reason in splits.skipped:
        _log.warning("skipped: %s: %s", name, reason)
    if splits.dimension != config.dimension:
        what, remedy = (
            ("images, not volumes", "p4m-resnet") if config.dimension == 3 else ("volumes, not images", "o-resnet")
        )
        raise ArgumentError(f"model (={config.model!r}) does not fit {path}, which has {what}: use {remedy}")
    with torch.random.fork_rng(devices=[]):
        found = config.image_model(splits.channels, splits.outputs, splits.size)
    if found.reason:
        size = "×".join([str(found.input_size)] * splits.dimension)
        _log.info("images are resized to %s: %s", size, found.reason)
    target_mean, target_std = _spread(splits.train.targets) if config.task == "regression" else ((), ())
    facts = ImageFacts(
        splits.classes, splits.target_names, splits.channels, splits.size, found.input_size, splits.mean, splits.std,
        target_mean, target_std,
    )  # fmt: skip
    return StreamedData(splits.resize(found.input_size), facts, config, workers)


def usual_workers() -> int:
    """Return the number of processes that read images if nothing else is said."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(8, processors - 1))


class StreamedData(RunData):
    """Images that are read from their files by worker processes, batch after batch.

    The batches do not depend on the number of workers: each image is augmented by random numbers of its own, drawn from
    the seed, the epoch and its index.

    Args:
        splits: the images, of the size that the network reads.
        facts: what the network depends on.
        config: batch sizes, seed and augmentation.
        workers: processes that read images; None for :func:`usual_workers`, 0 to read in this process.

    Raises:
        ArgumentError: workers is negative.
    """

    def __init__(self, splits: ImageSplits, facts: ImageFacts, config: ImageConfig, workers: int | None = None) -> None:
        if workers is not None and (not isinstance(workers, int) or workers < 0):
            raise ArgumentError(f"workers (={workers!r}) must be a whole number from 0")
        self.splits, self.facts, self.config = splits, facts, config
        self.workers = usual_workers() if workers is None else workers
        self.name, self.fingerprint = splits.name, splits.fingerprint
        self.objective = _objective(splits, facts, config)
        self.train_images, self.test_images = len(splits.train), len(splits.test)
        self.has_validation = True
        self.steps = math.ceil(self.train_images / config.batch_size)
        self._batches = _Batches()
        self._loader: DataLoader[Any] | None = None

    @property
    def smallest_batch(self) -> int:
        """The images of the smaller steps: the batches of an epoch differ by one image at most."""
        return self.train_images // self.steps

    def save(self, folder: Path) -> None:
        """Write the splits and the facts."""
        with atomic(folder / SPLIT) as path, path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(self.splits.split_table())
        self.facts.write(folder)

    def order(self, epoch: int) -> Tensor:
        """Return the indices of the training images of an epoch in their order."""
        c = self.config
        if not c.balanced_sampling:
            return epoch_order(self.train_images, c.seed, epoch)
        targets = self.splits.train.targets
        chances = targets.bincount().float().reciprocal()[targets]
        return torch.multinomial(chances, self.train_images, True, generator=generator(c.seed, ORDER, epoch))

    def batches(self, epoch: int, first: int, fabric: Fabric) -> Iterator[Batch]:
        """Yield batches of nearly equal numbers of images; each process reads its own part of them."""
        steps = self.order(epoch).tensor_split(self.steps)[first:]
        parts = [step.tensor_split(fabric.world_size)[fabric.global_rank] for step in steps]
        if self._loader is None:
            augmentation = Augmentation.of(self.config, self.facts.mean)
            images = _Augmented(self.splits.train, augmentation, self.config.seed)
            self._loader = self._load(images, fabric.device.type == "cuda", batch_sampler=self._batches)
        self._batches.places = [[(epoch, index) for index in part.tolist()] for part in parts]
        for step, (images, targets) in zip(steps, self._loader, strict=True):
            images, targets = (x.to(fabric.device, non_blocking=True) for x in (images, targets))
            yield Batch(images, targets, len(step))

    def read(self, images: Images, indices: slice = slice(None)) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images of a split and their targets in batches, in their order, without augmentation."""
        chosen = range(len(images))[indices]
        loader = self._load(Subset(images, chosen), False, batch_size=self.config.test_batch_size)
        yield from loader

    def accumulate_metrics(self, model: nn.Module, split: str, fabric: Fabric, between: Callable[[], object]) -> Tensor:
        """Add up every image of this process's part."""
        images = self.splits.val if split == "validation" else self.splits.test
        return self._accumulate(model, images, slice(fabric.global_rank, None, fabric.world_size), between)

    def score(self, model: nn.Module, batch_size: int, rotations: int) -> Score:
        """Score the network on the test images."""
        if rotations != 1 and not isinstance(self.objective, Classification):
            raise ArgumentError(f"rotations (={rotations!r}) needs a classification")
        loss, errors, count = self._accumulate(model, self.splits.test, slice(None), lambda: None, rotations).tolist()
        if isinstance(self.objective, Classification):
            return score_from_sums(torch.tensor([loss, errors, count], dtype=torch.float64))
        return Score(loss / count, self.objective.scale * errors / count, 0, int(count))

    def _accumulate(
        self, model: nn.Module, images: Images, mine: slice, between: Callable[[], object], rotations: int = 1
    ) -> Tensor:
        total = torch.zeros(3, dtype=torch.float64)
        for x, targets in self.read(images, mine):
            between()
            outputs = outputs_of(model, x) if rotations == 1 else predict(model, x, len(x), rotations)
            losses, errors = self.objective.losses(outputs, targets), self.objective.errors(outputs, targets)
            total += torch.stack([losses.double().sum(), errors.double().sum(), torch.tensor(float(len(x)))])
        return total

    def _load(self, images: Dataset[Any], pin: bool, **options: Any) -> DataLoader[Any]:
        context: dict[str, Any] = {"persistent_workers": "batch_sampler" in options} if self.workers else {}
        return DataLoader(
            images, num_workers=self.workers, worker_init_fn=_ignore_signals, pin_memory=pin,
            generator=torch.Generator().manual_seed(0), **context, **options,
        )  # fmt: skip


@torch.no_grad()
def outputs_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return the outputs of a network in inference mode, on the CPU; it is left in the mode that it was in."""
    training, like = model.training, next(model.parameters())
    model.eval()
    try:
        with cached_filters(model):
            return model(images.to(like)).float().cpu()  # type: ignore[no-any-return]
    finally:
        model.train(training)


class _Batches(Sampler[list[tuple[int, int]]]):
    """The batches of the epoch under way, each a list of epoch and index."""

    def __init__(self) -> None:
        self.places: list[list[tuple[int, int]]] = []

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class _Augmented(Dataset[Any]):
    """Training images, each augmented by the random numbers of its place in the run."""

    def __init__(self, images: Images, augmentation: Augmentation | None, seed: int) -> None:
        self.images, self.augmentation, self.seed = images, augmentation, seed

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int | Tensor]:
        image, target = self.images[place[1]]
        if self.augmentation is None:
            return image, target
        return self.augmentation(image, target, seed_of(self.seed, AUGMENTATION, *place))


def _objective(splits: ImageSplits, facts: ImageFacts, config: ImageConfig) -> Objective:
    if config.task == "regression":
        return Regression(torch.tensor(facts.target_mean), torch.tensor(facts.target_std))
    if config.task == "segmentation":
        return Segmentation(config.label_smoothing)
    counts = splits.train.targets.bincount(minlength=len(facts.classes))
    return Classification(config.label_smoothing, balanced_weights(counts) if config.class_weights else None)


def _spread(targets: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each target; a constant one counts as of 1."""
    values = targets.double()
    std = values.std(0, correction=0)
    return tuple(values.mean(0).tolist()), tuple(torch.where(std > 0, std, 1.0).tolist())


def _ignore_signals(worker: int) -> None:
    """Leave it to the run's process to stop: it finishes its step, for which it needs the images."""
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
