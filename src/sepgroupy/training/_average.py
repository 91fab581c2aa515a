"""The exponential moving average of a network's parameters."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Average(AveragedModel):
    """The average ``a ← d·a + (1 - d)·p`` of the parameters p, in each step n with ``d = min(decay, (1+n)/(10+n))``.

    With a fixed d the average of a short run would be that of its first steps. Batch statistics are those of the last
    step: averages of these, which are averages already, would be stale.

    Its state dict is that of :class:`torch.optim.swa_utils.AveragedModel`, whose own update reads a counter in every
    step and so waits for a GPU.

    Args:
        model: the network.
        device: of the average.
        decay: the largest d.
    """

    def __init__(self, model: nn.Module, device: torch.device, decay: float) -> None:
        super().__init__(model, device)
        self.decay = decay

    @torch.no_grad()
    def follow(self, model: nn.Module, step: int) -> None:
        """Update the average with the parameters after a step. Steps are counted from 0; step 0 is copied."""
        averages, values = list(self.module.parameters()), list(model.parameters())
        if step:
            get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))(averages, values, self.n_averaged)
        copied = list(zip(self.module.buffers(), model.buffers(), strict=True))
        copied += [] if step else zip(averages, values, strict=True)
        for mine, other in copied:
            mine.copy_(other)
        self.n_averaged.add_(1)
