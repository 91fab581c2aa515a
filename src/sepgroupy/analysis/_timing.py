"""Time of networks relative to each other, robust on a machine whose speed drifts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ._complexity import random_images
from ._memory import forward_backward


@dataclass(frozen=True)
class RelativeTime:
    """Times of a network divided by those of the reference, from :func:`relative_times`.

    Args:
        training: a training step: forward, backward and a step of SGD.
        inference: a forward pass in inference mode.
    """

    training: float
    inference: float


def relative_times(
    modules: Sequence[nn.Module], shape: Sequence[int], batch_size: int = 8, rounds: int = 5
) -> list[RelativeTime]:
    """Time networks against the first of them.

    Every round times each network once. A network's result is the median over the rounds of the ratio to the first
    network in the same round. All rounds of training come first, then those of inference; one warm-up round of each
    does not count. Copies are timed: the modules do not change.

    Args:
        modules: from images (B, \\*shape) to one tensor, all on one device.
        shape: of one image, (channels, rows, columns).
        batch_size: images in a step.
        rounds: how many rounds count.

    Raises:
        ArgumentError: batch_size or rounds is less than 1.
    """
    for name, value in (("batch_size", batch_size), ("rounds", rounds)):
        if value < 1:
            raise ArgumentError(f"{name} (={value}) must be at least 1")
    copies = [deepcopy(module).train() for module in modules]
    batches = [random_images(module, batch_size, shape) for module in copies]

    def ratios(action: Callable[[nn.Module, Tensor], None]) -> list[float]:
        seconds = [[_seconds(action, *pair) for pair in zip(copies, batches, strict=True)] for _ in range(rounds + 1)]
        return [median(row[i] / row[0] for row in seconds[1:]) for i in range(len(copies))]

    training = ratios(_step)
    for module in copies:
        module.eval()
    return [RelativeTime(*pair) for pair in zip(training, ratios(_evaluate), strict=True)]


def _step(module: nn.Module, x: Tensor) -> None:
    forward_backward(module, x)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=1e-9)
    module.zero_grad()


@torch.no_grad()
def _evaluate(module: nn.Module, x: Tensor) -> None:
    module(x)


def _seconds(action: Callable[[nn.Module, Tensor], None], module: nn.Module, x: Tensor) -> float:
    start = time.perf_counter()
    action(module, x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - start
