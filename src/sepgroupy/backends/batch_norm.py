"""The parameters of a batch norm with ReLU that a fused kernel reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class BatchNormReLU:
    """``relu((x - mean)/√(var + eps)·gamma + beta)`` by channel.

    Args:
        mean: of each channel.
        var: biased variance of each channel.
        gamma: or None, where it is 1.
        beta: or None, where it is 0.
        eps: added to the variance.
        batch_stats: whether mean and var are statistics of x, so that gradients pass through them.
    """

    mean: Tensor
    var: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    eps: float
    batch_stats: bool

    def to(self, dtype: torch.dtype) -> BatchNormReLU:
        """Return the same with tensors of a dtype."""
        gamma, beta = (None if t is None else t.to(dtype) for t in (self.gamma, self.beta))
        return replace(self, mean=self.mean.to(dtype), var=self.var.to(dtype), gamma=gamma, beta=beta)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply both to (N, C, Y, X) by PyTorch's operations; differentiable, also through the statistics of x."""
        return F.relu(self.without_relu(x))

    def without_relu(self, x: Tensor) -> Tensor:
        """Apply the batch norm alone."""
        mean, var = (None, None) if self.batch_stats else (self.mean, self.var)
        return F.batch_norm(x, mean, var, self.gamma, self.beta, self.batch_stats, 0.0, self.eps)
