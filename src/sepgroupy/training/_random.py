"""The random numbers of a run: each place has its own, drawn from the seed, whatever happened before."""

from __future__ import annotations

import numpy as np
import torch

ORDER, CROP_FLIP, AFFINE, HELD_OUT = range(4)
"""What the random numbers are for: the first of the counters."""


def generator(seed: int, *counters: int) -> torch.Generator:
    """Return the random numbers of a place in a run: the same whether it was interrupted before or not."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, *counters)).generate_state(1)[0]))
