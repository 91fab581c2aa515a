"""One training step: its optimizer, the gradients of a batch, and the report of losses and errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ._config import TrainingConfig
from ._objective import Objective
from ._run_data import Batch

if TYPE_CHECKING:
    from ._fabric import Fabric


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return the optimizer of a configuration."""
    c = config
    if c.optimizer != "sgd":
        adaptive = torch.optim.Adam if c.optimizer == "adam" else torch.optim.AdamW
        return adaptive(model.parameters(), lr=c.lr, weight_decay=c.weight_decay)
    return torch.optim.SGD(model.parameters(), lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay)


def compute_gradients(fabric: Fabric, network: Any, batch: Batch, objective: Objective, accumulate: int) -> Tensor:
    """Add the gradients of a batch, computed in up to ``accumulate`` parts, to those of the parameters.

    Returns:
        Sums of the losses and of the errors of this rank's images, and room for a third number; (3,).
    """
    report = torch.zeros(3, device=fabric.device)
    halves = (values.tensor_split(accumulate) for values in (batch.images, batch.targets))
    parts = [(x, y) for x, y in zip(*halves, strict=True) if len(y)]
    for index, (x, y) in enumerate(parts, start=1):
        with fabric.no_backward_sync(network, enabled=index < len(parts)):
            outputs = network(x)
            loss = objective.loss(outputs, y)
            fabric.backward(
                loss * (len(y) / batch.total * fabric.world_size)
            )  # of which Fabric takes the mean over ranks
        with torch.no_grad():
            report[0] += loss.detach() * len(y)
            report[1] += objective.errors(outputs, y).sum()
    return report


class Report(NamedTuple):
    """The result of a step. The device may still compute it: read a step later, so that the device never idles.

    Args:
        step: counted from 1.
        images: number of images of all ranks.
        read: return the sums over all ranks of losses and errors, and how many ranks were asked to stop.
    """

    step: int
    images: int
    read: Callable[[], list[float]]

    @property
    def totals(self) -> tuple[float, float, float]:
        """Losses, errors and images."""
        losses, errors, _ = self.read()
        return losses, errors, self.images


def add(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Add totals."""
    return [a + b for a, b in zip(first, second, strict=True)]
