"""Loss and error of each image, by task."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from .._devices import send

IGNORE = 255
"""Value of a mask's pixel without a class, such as one that an augmentation moved in from outside the image."""


class Objective:
    """The loss that training minimizes, and the loss and error of each image that are reported.

    Attributes:
        scale: factor of the mean error: 100 where the error is a fraction, to report percent.
        unit: unit of the reported error, with the space before it.
    """

    scale, unit = 100.0, " %"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch that a training step minimizes."""
        return self.losses(outputs, targets).mean()

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each image without smoothing or weights, float32 (N,)."""
        raise NotImplementedError

    def errors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the error of each image, float32 (N,)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Classification(Objective):
    """Cross-entropy in nats of logits or log-probabilities (N, K); an error is a wrong class.

    Args:
        smoothing: part of the target probability that is spread over all classes, in training only.
        weights: of the classes in training, (K,); None for equal ones.
    """

    smoothing: float = 0.0
    weights: Tensor | None = None

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return ``mean(w[t] · l)``, l the smoothed cross-entropy; torch would divide by Σw[t]."""
        if self.weights is None:
            return cross_entropy(outputs, targets, label_smoothing=self.smoothing)
        weights = send(self.weights, outputs.device)
        return cross_entropy(outputs, targets, weights, label_smoothing=self.smoothing, reduction="none").mean()

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each image."""
        return cross_entropy(outputs.float(), targets, reduction="none")

    def errors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return 1 for each wrong class."""
        return (outputs.argmax(1) != targets).float()


@dataclass(frozen=True, eq=False)
class Regression(Objective):
    """Squared error of targets scaled to mean 0 and variance 1; the reported error is the absolute error, unscaled.

    Args:
        mean: of the training targets, (T,).
        std: of the training targets, (T,).
    """

    mean: Tensor
    std: Tensor
    scale, unit = 1.0, ""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the targets of ``((y − t) / std)²``."""
        std = send(self.std, outputs.device)
        return mse_loss(outputs.float() / std, targets / std, reduction="none").mean(1)

    def errors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the targets of ``|y − t|``."""
        return (outputs.float() - targets).abs().mean(1)


@dataclass(frozen=True, eq=False)
class Segmentation(Objective):
    """Cross-entropy of the pixels of logits (N, K, Y, X), averaged over each image.

    The error is the fraction of wrong pixels. Pixels with the value :data:`IGNORE` do not count.

    Args:
        smoothing: part of the target probability that is spread over all classes, in training only.
        weights: of the classes in training, (K,); None for equal ones.
    """

    smoothing: float = 0.0
    weights: Tensor | None = None

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the images of the smoothed and weighted loss."""
        weights = None if self.weights is None else send(self.weights, outputs.device)
        return self._per_image(
            cross_entropy(
                outputs, targets, weights, ignore_index=IGNORE, label_smoothing=self.smoothing, reduction="none"
            ),
            targets,
        ).mean()

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy over the pixels of each image."""
        pixels = cross_entropy(outputs.float(), targets, ignore_index=IGNORE, reduction="none")
        return self._per_image(pixels, targets)

    def errors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the fraction of pixels with a wrong class."""
        wrong = (outputs.argmax(1) != targets) & (targets != IGNORE)
        return self._per_image(wrong.float(), targets)

    @staticmethod
    def _per_image(values: Tensor, targets: Tensor) -> Tensor:
        return values.flatten(1).sum(1) / (targets != IGNORE).flatten(1).sum(1).clamp(min=1)


def balanced_weights(counts: Tensor) -> Tensor:
    """Return weights of classes, inverse to their numbers of images. Their mean over the images is 1.

    >>> import torch
    >>> balanced_weights(torch.tensor([30, 10]))
    tensor([0.6667, 2.0000])
    """
    return counts.sum() / (len(counts) * counts.clamp(min=1).float())
