"""Groups of runs that differ in their seed only, and protocols of groups that were trained in the same way."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from statistics import mean, stdev

from ...data import ImageData
from ...errors import SepgroupyError
from .._config import RunConfig
from .._data import load_data
from .._published import PAPER_RESULTS
from ..sweep import Run

_log = logging.getLogger(__name__)

_AXES = ("model", "width", "samples", "seed")  # what a sweep varies
_MACHINE = ("device", "devices", "nodes", "strategy", "folder")  # where a run is computed


@dataclass(frozen=True)
class RunGroup:
    """Finished runs that differ in their seed only.

    Args:
        config: their common settings; ``samples`` is the number of training images, None if it is unknown.
        runs: all of them.
    """

    config: RunConfig
    runs: tuple[Run, ...]

    @property
    def train_images(self) -> float:
        """Number of training images; infinite if that is all of an unknown number."""
        return self.config.samples or math.inf

    @property
    def label(self) -> str:
        """The name of the model, with its width unless that is the published one."""
        return self.config.model if self.config.width is None else f"{self.config.model}, w={self.config.width}"

    @property
    def errors(self) -> list[float]:
        """Test errors in percent, one for each seed."""
        return [run.result.test_error for run in self.runs if run.result is not None]

    @property
    def error_of_seed(self) -> dict[int, float]:
        """Test error in percent of each seed."""
        return {run.config.seed: run.result.test_error for run in self.runs if run.result is not None}

    @property
    def mean(self) -> float:
        """Mean test error, percent."""
        return mean(self.errors)

    @property
    def sd(self) -> float | None:
        """Standard deviation of the test error over the seeds (n - 1), percent; None for one seed."""
        return stdev(self.errors) if len(self.runs) > 1 else None

    @property
    def seconds(self) -> float:
        """Mean time of a run."""
        return mean(run.result.seconds for run in self.runs if run.result is not None)

    @property
    def parameters(self) -> int:
        """The number of free parameters."""
        return next(run.result.parameters for run in self.runs if run.result is not None)

    @property
    def paper_error(self) -> str | None:
        """The paper's test error of this model, with the same augmentation; None if there is none."""
        augmentation = (self.config.crop, self.config.hflip)
        plain, augmented = (0, False), (4, True)
        if self.config.width is not None or augmentation not in (plain, augmented):
            return None
        printed = PAPER_RESULTS[self.config.model].test_error.split(" / ")
        return printed[0] if augmentation == plain else printed[1] if len(printed) > 1 else None


@dataclass(frozen=True)
class Protocol:
    """All groups that were trained in the same way.

    Args:
        config: their common settings.
        groups: in the paper's order of models, then by width and number of training images.
    """

    config: RunConfig
    groups: tuple[RunGroup, ...]

    @property
    def main(self) -> list[RunGroup]:
        """The groups with the most training images."""
        most = max(group.train_images for group in self.groups)
        return [group for group in self.groups if group.train_images == most]

    @property
    def changes(self) -> dict[str, object]:
        """Settings that differ from the paper's."""
        usual = asdict(RunConfig.for_task(self.config.task))
        skipped = {"task", "data", *_AXES, *_MACHINE}
        here = asdict(self.config)
        return {name: here[name] for name in here if name not in skipped and here[name] != usual[name]}


def group_runs(runs: Iterable[Run]) -> list[Protocol]:
    """Return finished runs by protocol, the paper's first, and group; unfinished ones are left out."""
    protocols: dict[RunConfig, dict[RunConfig, list[Run]]] = {}
    for run in runs:
        if run.result is not None:
            usual = RunConfig.for_task(run.config.task)
            shared = {name: getattr(usual, name) for name in _MACHINE}
            group = replace(run.config.canonical, seed=usual.seed, samples=train_image_count(run.config), **shared)
            protocol = replace(group, **{name: getattr(usual, name) for name in _AXES})
            protocols.setdefault(protocol, {}).setdefault(group, []).append(run)
    found = [
        Protocol(config, tuple(sorted((RunGroup(key, tuple(some)) for key, some in groups.items()), key=_order)))
        for config, groups in protocols.items()
    ]
    return sorted(found, key=lambda protocol: (protocol.config.task, len(protocol.changes)))


def train_image_count(config: RunConfig) -> int | None:
    """Return the number of training images of a run; None if that is all of a data set that is not here."""
    if config.samples is not None:
        return config.samples - config.validation
    try:
        return len(load(config.task, config.data, config.data_path).train) - config.validation
    except (SepgroupyError, OSError) as error:
        _log.warning("the training images of %s cannot be counted: %s", config.data, error)
        return None


@lru_cache
def load(task: str, data: str, data_path: str | None) -> ImageData:
    """Read the data of runs; all runs share them."""
    return load_data(RunConfig.for_task(task, data=data, data_path=data_path))


def _order(group: RunGroup) -> tuple[float, ...]:
    return list(PAPER_RESULTS).index(group.config.model), group.config.width or 0, group.train_images
