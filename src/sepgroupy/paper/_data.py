"""From a configuration to its images."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..data import ImageData, load_cifar10, load_synthetic_cifar10
from ..errors import ArgumentError
from ..training import HELD_OUT, generator
from ._config import RunConfig
from ._rotmnist import load_rotmnist

DOWNLOADS = "data"  # CIFAR-10 is looked for, and if need be fetched, here if a run names no path


def load_data(config: RunConfig) -> ImageData:
    """Read the data of a run: ``samples`` training images, of which ``validation`` are held out.

    Raises:
        ArgumentError: the task has no such source, a path is missing or not wanted, or ``samples`` or ``validation`` is
            too many.
        DataError: a file is missing or broken.
    """
    data = load_rotmnist(config.data, config.data_path) if config.task == "rotmnist" else _load_cifar(config)
    if config.samples is not None:
        if config.samples > len(data.train):
            raise ArgumentError(
                f"samples (={config.samples}) exceeds the {len(data.train)} training images of {data.name}"
            )
        data = replace(data, train=data.train.first(config.samples))
    if config.validation:
        count = len(data.train)
        if config.validation >= count:
            raise ArgumentError(f"validation (={config.validation}) must be less than the {count} training images")
        order = torch.randperm(count, generator=generator(config.seed, HELD_OUT))
        train, validation = data.train.hold_out(order[: config.validation])
        data = replace(data, train=train, validation=validation)
    return data


def _load_cifar(config: RunConfig) -> ImageData:
    if config.data == "cifar10":
        return load_cifar10(config.data_path or DOWNLOADS, download=config.data_path is None)
    if config.data != "synthetic":
        raise ArgumentError(f"data (={config.data!r}) must be cifar10 or synthetic")
    if config.data_path is not None:
        raise ArgumentError(f"data_path (={config.data_path!r}) is not wanted: synthetic data have no files")
    return load_synthetic_cifar10()
