"""Loss and error of a network on a set of images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, nll_loss

from ..data import Split, rotate
from ..errors import ArgumentError
from ..nn import cached_filters


class Score(NamedTuple):
    """Loss and error of a network on a set of images.

    Args:
        loss: mean loss.
        error: percent of wrong answers or pixels; of a regression the mean absolute error.
        correct: number of right answers, 0 unless a classification.
        images: number of images.
    """

    loss: float
    error: float
    correct: int
    images: int


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, batch_size: int = 256, rotations: int = 1) -> Tensor:
    """Return the logarithms of the class probabilities, shape (N, classes), on the CPU.

    With ``rotations`` they are those of the mean probability ``1/n · Σ_k p(R_k x)`` over rotations of the image by
    k·90°/n, k = 0..n-1. A network that is invariant under rotations by 90° then averages over 4n orientations.

    The model is called in inference mode, on the device and in the precision of its parameters. Its mode is restored.

    Args:
        model: from images to logits or log-probabilities (``log_softmax`` does not change these).
        images: shape (N, C, Y, X).
        batch_size: images in one forward pass.
        rotations: the number n of rotations, by :func:`sepgroupy.data.rotate`.

    Raises:
        ArgumentError: ``rotations`` is not a positive integer.
    """
    if not isinstance(rotations, int) or rotations < 1:
        raise ArgumentError(f"rotations (={rotations!r}) must be an integer from 1")
    training, like = model.training, next(model.parameters())
    model.eval()
    try:
        every = []
        for k in range(rotations):
            parts = (rotate(part, k * math.pi / 2 / rotations) if k else part for part in images.split(batch_size))
            with cached_filters(model):
                every.append(log_softmax(torch.cat([model(part.to(like)) for part in parts]), dim=1).cpu())
    finally:
        model.train(training)
    return every[0] if rotations == 1 else torch.stack(every).logsumexp(0) - math.log(rotations)


def score(model: nn.Module, split: Split, batch_size: int = 256, rotations: int = 1) -> Score:
    """Return the loss and the error of a model on labelled images; arguments as for :func:`predict`."""
    return score_from_sums(accumulate_metrics(model, split, batch_size, rotations))


def accumulate_metrics(
    model: nn.Module, split: Split, batch_size: int, rotations: int = 1, between: Callable[[], object] = lambda: None
) -> Tensor:
    """Return the sum of the cross-entropies, the number of wrong answers and that of the images, in float64.

    Results for parts of a data set can be added. ``between`` is called before each batch.
    """
    total = torch.zeros(3, dtype=torch.float64)
    with cached_filters(model):
        for images, labels in zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True):
            between()
            predictions = predict(model, images, batch_size, rotations)
            wrong = (predictions.argmax(1) != labels).sum()
            total += torch.stack([nll_loss(predictions, labels, reduction="sum"), wrong, torch.tensor(len(labels))])
    return total


def score_from_sums(sums: Tensor) -> Score:
    """Return the score for sums of :func:`accumulate_metrics`."""
    loss, wrong, count = sums.tolist()
    return Score(loss / count, 100 * wrong / count, int(count - wrong), int(count))
