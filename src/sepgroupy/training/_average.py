"""The exponential moving average of a network's parameters."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Average(AveragedModel):
    """The average ``a ← d·a + (1 - d)·p`` of the parameters p, in each step.

    Its state dict is that of :class:`torch.optim.swa_utils.AveragedModel`, which reads its counter in every step and so
    waits for a GPU.

    Args:
        model: the network.
        device: of the average.
        decay: d.
        warmup: whether d is ``min(decay, (1+n)/(10+n))`` in step n, since the average of a short run would otherwise
            be that of its first steps. Buffers are then copied; else they are averaged too.
    """

    def __init__(self, model: nn.Module, device: torch.device, decay: float, warmup: bool) -> None:
        super().__init__(model, device, use_buffers=not warmup)
        self.decay, self.warmup = decay, warmup

    @torch.no_grad()
    def follow(self, model: nn.Module, step: int) -> None:
        """Take the parameters after a step into account; steps are counted from 0, and step 0 is copied."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        parameters = zip(self.module.parameters(), model.parameters(), strict=True)
        buffers = zip(self.module.buffers(), model.buffers(), strict=True)
        averaged = list(parameters if self.warmup else chain(parameters, buffers))
        copied = [*(buffers if self.warmup else ()), *(averaged if step == 0 else ())]
        for mine, other in copied:
            mine.copy_(other)
        for floating in (True, False) if step else ():
            pairs = [pair for pair in averaged if pair[0].is_floating_point() is floating]
            if pairs:
                get_ema_multi_avg_fn(decay)(*map(list, zip(*pairs, strict=True)), self.n_averaged)
        self.n_averaged.add_(1)
