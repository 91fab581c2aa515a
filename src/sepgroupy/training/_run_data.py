"""The images of a run: batches for training, totals of a split for evaluation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from .._devices import send
from ..data import ImageData, RandomAffine, RandomCropFlip, Split
from ._config import TrainingConfig
from ._distributed import local_shard
from ._metrics import Score, accumulate_metrics, score
from ._objective import Classification, Objective
from ._random import AFFINE, CROP_FLIP, epoch_order, generator

if TYPE_CHECKING:
    from ._fabric import Fabric


class Batch(NamedTuple):
    """One rank's shard of the images and targets of a step, and the number of images of all shards."""

    images: Tensor
    targets: Tensor
    total: int


class RunData(ABC):
    """The images of a run.

    Attributes:
        name: of the data set.
        fingerprint: a digest that changes with the images, labels or splits.
        facts: properties of the data that the network depends on, such as the classes; or None.
        objective: loss and error.
        train_images: the number of images for training.
        test_images: the number of images for testing.
        has_validation: whether there are validation images.
        steps: training steps of an epoch.
    """

    name: str
    fingerprint: str
    facts: Any = None
    objective: Objective
    train_images: int
    test_images: int
    has_validation: bool
    steps: int

    @property
    @abstractmethod
    def smallest_batch(self) -> int:
        """The fewest images of a step."""

    @property
    def counts_right_answers(self) -> bool:
        """Whether each image has one right answer, so that right answers can be counted."""
        return isinstance(self.objective, Classification)

    @abstractmethod
    def batches(self, epoch: int, first: int, fabric: Fabric) -> Iterator[Batch]:
        """Yield the batches of an epoch, starting at a step of it. They depend on the seed and the step only."""

    @abstractmethod
    def accumulate_metrics(self, model: nn.Module, split: str, fabric: Fabric, between: Callable[[], object]) -> Tensor:
        """Return the sums of losses and errors over this rank's shard of a split, and its number of images.

        Args:
            model: the network; its mode does not change.
            split: "validation" or "test".
            fabric: the processes.
            between: called before each batch.

        Returns:
            float64, shape (3,).
        """

    @abstractmethod
    def score(self, model: nn.Module, batch_size: int, rotations: int) -> Score:
        """Return the score of a network on the test images, see :func:`sepgroupy.training.score`."""

    def save(self, folder: Path) -> None:  # noqa: B027  # data in memory need nothing
        """Write into the folder of a run what a later evaluation needs to read the same data."""


class MemoryData(RunData):
    """Classification of images in memory; augmentation is drawn for a whole batch, on its device.

    Args:
        data: the images.
        config: batch sizes, seed and augmentation.
    """

    def __init__(self, data: ImageData, config: TrainingConfig) -> None:
        self.images, self.config = data, config
        self.name, self.fingerprint = data.name, data.fingerprint
        self.objective = Classification(config.label_smoothing)
        self.train_images, self.test_images = len(data.train), len(data.test)
        self.has_validation = data.validation is not None
        self.steps = math.ceil(len(data.train) / config.batch_size)

    @property
    def smallest_batch(self) -> int:
        """The images of the last step."""
        return (self.train_images - 1) % self.config.batch_size + 1

    def batches(self, epoch: int, first: int, fabric: Fabric) -> Iterator[Batch]:
        """Yield batches of ``batch_size`` images, the last one smaller if they do not divide."""
        c = self.config
        crop_flip = RandomCropFlip(c.crop, c.hflip) if c.crop or c.hflip else None
        amounts = c.rotation, c.shift, c.scale, c.elastic
        affine = RandomAffine(*amounts) if any(amounts) else None
        order = epoch_order(self.train_images, c.seed, epoch).split(c.batch_size)
        for position, indices in enumerate(order[first:], start=first):
            step = epoch * self.steps + position
            images, labels = (send(values, fabric.device) for values in self.images.train[indices])
            if crop_flip is not None:  # of the whole batch, so that it does not depend on the number of ranks
                images = crop_flip(images, generator(c.seed, CROP_FLIP, step))
            if affine is not None:
                images = affine(images, generator(c.seed, AFFINE, step))
            yield Batch(local_shard(fabric, images), local_shard(fabric, labels), len(indices))

    def accumulate_metrics(self, model: nn.Module, split: str, fabric: Fabric, between: Callable[[], object]) -> Tensor:
        """Add up the images of this rank's shard."""
        images = self.images.validation if split == "validation" else self.images.test
        assert images is not None
        mine = slice(fabric.global_rank, None, fabric.world_size)
        shard = Split(images.images[mine], images.labels[mine])
        return accumulate_metrics(model, shard, self.config.test_batch_size, between=between)

    def score(self, model: nn.Module, batch_size: int, rotations: int) -> Score:
        """Score the network on the test images."""
        return score(model, self.images.test, batch_size, rotations)
