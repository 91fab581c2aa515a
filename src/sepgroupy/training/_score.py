"""How good a classifier is: one loop over the pictures, for every place that asks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, nll_loss

from ..data import Split


class Score(NamedTuple):
    """The mean cross-entropy in nats, and the share of wrong answers in percent."""

    loss: float
    error: float


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
    predictions = predict(model, split.images, batch_size)
    wrong = int((predictions.argmax(1) != split.labels).sum())
    return Score(float(nll_loss(predictions, split.labels)), 100 * wrong / len(split))
