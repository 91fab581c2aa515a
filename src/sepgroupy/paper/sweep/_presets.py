"""The published grids of runs, by name."""

from __future__ import annotations

from typing import Any

from ...errors import ArgumentError
from .._config import RunConfig
from ._sweep import grid

_WIDTHS = {
    "z2cnn": (10, 20, 40, 60, 80, 100),
    "c-z2cnn": (25, 57, 120, 184, 247, 311),
    "p4cnn": (5, 10, 20, 30, 40, 50),
    "g-p4cnn": (8, 10, 17, 34, 51, 68, 85),
    "gc-p4cnn": (10, 30, 62, 94, 126, 158),
}
_RESNETS = ("resnet44", "p4m-resnet44", "g-p4m-resnet44", "gc-p4m-resnet44")
_SEEDS = (1, 2, 3, 4, 5)
_PRESETS = {"rotmnist": ("paper", "data-efficiency"), "cifar10": ("paper",)}


def preset(task: str, name: str, **settings: Any) -> list[RunConfig]:
    """Return the configurations of a published grid.

    * rotmnist, ``"paper"``: five networks, each at six or seven widths, with seeds 1 to 5.
    * rotmnist, ``"data-efficiency"``: five networks at their published widths, trained on the first 2,000, 4,000, …,
      10,000 images, with seeds 1 to 5. The data need as many training images.
    * cifar10, ``"paper"``: four networks without and with augmentation, seed 1.

    Seeds are outermost, as in :func:`grid`.

    Args:
        task: ``"rotmnist"`` or ``"cifar10"``.
        name: of the grid.
        **settings: fields of :class:`sepgroupy.paper.RunConfig` that all runs share, such as ``data``.

    Raises:
        ArgumentError: the task has no such grid, or a setting is out of range.

    >>> len(preset("rotmnist", "paper")), len(preset("rotmnist", "data-efficiency")), len(preset("cifar10", "paper"))
    (155, 125, 8)
    """
    if name not in _PRESETS.get(task, ()):
        known = "; ".join(f"{names} for {task}" for task, names in ((t, ", ".join(n)) for t, n in _PRESETS.items()))
        raise ArgumentError(f"preset (={name!r}) is unknown for task {task!r}: use {known}")
    if task == "cifar10":
        plain, augmented = ({"crop": 0, "hflip": False}, {"crop": 4, "hflip": True})
        return [c for extra in (plain, augmented) for c in grid(task, _RESNETS, seeds=[1], **extra | settings)]
    if name == "data-efficiency":
        return grid(task, _WIDTHS, samples=range(2000, 10001, 2000), seeds=_SEEDS, **settings)
    return [
        config.canonical
        for seed in _SEEDS
        for model, widths in _WIDTHS.items()
        for config in grid(task, [model], widths, seeds=[seed], **settings)
    ]
