"""How good a classifier is: one loop over the pictures, for every place that asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, nll_loss

from ..data import Split


class Score(NamedTuple):
    """The mean cross-entropy in nats, the share of wrong answers in percent, and the number of right ones among all."""

    loss: float
    error: float
    correct: int
    images: int


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Return the logarithms of the class probabilities, shape (N, classes), on the CPU.

    The model is used in evaluation mode, on the device and in the precision of its parameters, and left in
    the mode that it was in.

    Args:
        model: from images to logits or log-probabilities, which ``log_softmax`` leaves as they are.
        images: shape (N, C, Y, X).
        batch_size: images that are computed at a time.
    """
    training, like = model.training, next(model.parameters())
    model.eval()
    try:
        outputs = [model(batch.to(like)) for batch in images.split(batch_size)]
    finally:
        model.train(training)
    return log_softmax(torch.cat(outputs), dim=1).cpu()


def score(model: nn.Module, split: Split, batch_size: int = 256) -> Score:
    """Return the loss and the error of a model on labelled pictures; arguments as for :func:`predict`."""
    return mean(tally(model, split, batch_size))


def tally(model: nn.Module, split: Split, batch_size: int, between: Callable[[], object] = lambda: None) -> Tensor:
    """Return the sum of the cross-entropies, the number of wrong answers and that of the pictures, in float64.

    Tallies of parts of a data set can be added up. ``between`` is called before each batch.
    """
    total = torch.zeros(3, dtype=torch.float64)
    for images, labels in zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True):
        between()
        predictions = predict(model, images, batch_size)
        wrong = (predictions.argmax(1) != labels).sum()
        total += torch.stack([nll_loss(predictions, labels, reduction="sum"), wrong, torch.tensor(len(labels))])
    return total


def mean(tally: Tensor) -> Score:
    """Return the score of a tally."""
    loss, wrong, count = tally.tolist()
    return Score(loss / count, 100 * wrong / count, int(count - wrong), int(count))
