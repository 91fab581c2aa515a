"""Random numbers of a run: a generator for each purpose and step, seeded by the run's seed alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ORDER, CROP_FLIP, AFFINE, HELD_OUT, AUGMENTATION, LAYERS = range(6)
"""The purpose of random numbers: the first counter."""


def seed_of(seed: int, *counters: int) -> int:
    """Return a seed for a purpose and step of a run."""
    return int(np.random.SeedSequence((seed, *counters)).generate_state(1)[0])


def generator(seed: int, *counters: int) -> torch.Generator:
    """Return a generator for a purpose and step of a run, the same whether the run was interrupted before or not."""
    return torch.Generator().manual_seed(seed_of(seed, *counters))


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Return 0..count-1 in an order that depends on the seed and the epoch only."""
    return torch.randperm(count, generator=generator(seed, ORDER, epoch))
