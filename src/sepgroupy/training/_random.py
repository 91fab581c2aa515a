"""The random numbers of a run: each place has its own, drawn from the seed, whatever happened before."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ORDER, CROP_FLIP, AFFINE, HELD_OUT, AUGMENTATION, LAYERS = range(6)
"""What the random numbers are for: the first of the counters."""


def seed_of(seed: int, *counters: int) -> int:
    """Return the seed of a place in a run."""
    return int(np.random.SeedSequence((seed, *counters)).generate_state(1)[0])


def generator(seed: int, *counters: int) -> torch.Generator:
    """Return the random numbers of a place in a run: the same whether it was interrupted before or not."""
    return torch.Generator().manual_seed(seed_of(seed, *counters))


def order_of(count: int, seed: int, epoch: int) -> Tensor:
    """Return 0..count-1 in an order that depends on the seed and the epoch alone."""
    return torch.randperm(count, generator=generator(seed, ORDER, epoch))
