"""Batch norm and ReLU before a convolution or a pooling that takes them along."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return scale = γ/σ and shift = β - μ·scale."""
        scale = (self.var + self.eps).rsqrt()
        scale = scale if self.gamma is None else scale * self.gamma
        if self.beta is None:
            return scale, -self.mean * scale
        return scale, torch.addcmul(self.beta, self.mean, scale, value=-1)

    def gradients(self, norm_grad: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Return dγ and dβ from the gradients of (scale, shift), and slope and offset of what x has to be given more.

        x̂ = (x - μ)/σ, z = γ·x̂ + β: dβ = Σ dz, dγ = Σ dz·x̂, and through the statistics of ``count`` values dx gains
        slope·x + offset = -γ/σ·(dβ + x̂·dγ)/count; None if they are not those of x.
        """
        inverse = (self.var + self.eps).rsqrt()
        dbeta, dgamma = norm_grad[1].clone(), torch.addcmul(norm_grad[0], self.mean, norm_grad[1], value=-1) * inverse
        if not self.batch:
            return dgamma, dbeta, None, None
        factor = inverse / -count
        factor = factor if self.gamma is None else factor * self.gamma
        slope = factor * dgamma * inverse
        return dgamma, dbeta, slope, torch.addcmul(factor * dbeta, slope, self.mean, value=-1)
