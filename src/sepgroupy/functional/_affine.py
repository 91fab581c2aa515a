"""Batch norm and ReLU before a convolution or a pooling that takes them along."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Affine:
    """A batch norm before a ReLU, as the affine map of each channel that it makes of x.

    Args:
        mean: of each channel.
        var: biased, of each channel.
        gamma: or None, where it is 1.
        beta: or None, where it is 0.
        eps: added to the variance.
        batch: whether mean and var are those of x itself, so that gradients pass through them.
    """

    mean: Tensor
    var: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    eps: float
    batch: bool

    def relu(self, x: Tensor, derive: bool = False) -> Tensor:
        """Apply norm and ReLU to maps (N, C, Y, X) by PyTorch's own operations.

        Args:
            x: all of the maps, or some of them.
            derive: whether the result is to be derived through statistics of x itself, which then are all of them.
        """
        anew = derive and self.batch
        mean, var = (None, None) if anew else (self.mean, self.var)
        return F.batch_norm(x, mean, var, self.gamma, self.beta, anew, 0.0, self.eps).relu_()
