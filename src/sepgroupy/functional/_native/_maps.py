"""Passes of batch norm over folded maps (N, C, Y, X), and batch norm, ReLU and max-pooling in one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ArgumentError
from ._library import SUFFIXES, check_readable, empty, invoke


@dataclass(frozen=True, eq=False)
class Affine:
    """A batch norm as the map scale·x + shift of each channel, and what its gradients need beside.

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

    def relu(self, x: Tensor) -> Tensor:
        """Apply norm and ReLU to maps (N, C, Y, X) by PyTorch's own operations."""
        mean, var = (None, None) if self.batch else (self.mean, self.var)
        return F.batch_norm(x, mean, var, self.gamma, self.beta, self.batch, 0.0, self.eps).relu()

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return scale = γ/σ and shift = β - μ·scale."""
        scale = (self.var + self.eps).rsqrt()
        scale = scale if self.gamma is None else scale * self.gamma
        if self.beta is None:
            return scale, -self.mean * scale
        return scale, torch.addcmul(self.beta, self.mean, scale, value=-1)

    def gradients(self, norm_grad: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Return dγ and dβ from the gradients of (scale, shift), and slope and offset of what x has to be given more.

        x̂ = (x - μ)/σ, z = γ·x̂ + β: dβ = Σ dz, dγ = Σ dz·x̂, and through the statistics, over ``count`` values,
        dx -= γ/σ·(dβ + x̂·dγ)/count = -(slope·x + offset).
        """
        inverse = (self.var + self.eps).rsqrt()
        dbeta, dgamma = norm_grad[1].clone(), torch.addcmul(norm_grad[0], self.mean, norm_grad[1], value=-1) * inverse
        if not self.batch:
            return dgamma, dbeta, None, None
        factor = inverse / -count
        factor = factor if self.gamma is None else factor * self.gamma
        slope = factor * dgamma * inverse
        return dgamma, dbeta, slope, torch.addcmul(factor * dbeta, slope, self.mean, value=-1)


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    return x.shape[0], x.shape[1], x.shape[2] * x.shape[3], torch.get_num_threads()


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel of maps (N, C, Y, X)."""
    if not (x.dtype in SUFFIXES and x.device.type == "cpu" and x.is_contiguous() and x.ndim == 4 and x.numel()):
        raise ArgumentError(f"x is {x.dtype} of shape {tuple(x.shape)} on {x.device}: no maps that the kernels read")
    mean, var = x.new_empty(x.shape[1]), x.new_empty(x.shape[1])
    invoke("statistics", _sizes(x), (x, mean, var))
    return mean, var


def add_affine(dx: Tensor, x: Tensor, slope: Tensor, offset: Tensor) -> None:
    """Add slope·x + offset, (C,), to dx in place; all maps (N, C, Y, X)."""
    tensors = (x, slope.contiguous(), offset.contiguous(), dx)
    check_readable(tensors)
    if not (x.ndim == 4 and dx.shape == x.shape and slope.shape == offset.shape == x.shape[1:2]):
        raise ArgumentError(f"dx, slope and offset have shapes {[tuple(t.shape) for t in (dx, slope, offset)]}")
    invoke("add_affine", _sizes(x), tensors)


class NormReluPool(torch.autograd.Function):
    """``max_pool2d(relu(norm(x)), 2)`` of ordinary maps (N, C, Y, X) on the CPU. Differentiable twice."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        """Pool; the arguments are x, gamma, beta, mean, var, eps and batch."""
        *tensors, ctx.eps, ctx.batch = args
        ctx.save_for_backward(*tensors)
        x, gamma, beta, mean, var = tensors
        x = x.contiguous()
        scale, shift = Affine(mean, var, gamma, beta, ctx.eps, ctx.batch).scale_and_shift()
        y = empty(x, (*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2))
        _pool("pool", x, scale, shift, y, ())
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Return the gradients, through the definition if they are to be differentiated in turn."""
        x, gamma, beta, mean, var = ctx.saved_tensors
        affine = Affine(mean, var, gamma, beta, ctx.eps, ctx.batch)
        if torch.is_grad_enabled():
            y = F.max_pool2d(affine.relu(x), 2)
            wanted = [t for t, need in zip((x, gamma, beta), ctx.needs_input_grad, strict=False) if need]
            found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
            return tuple(next(found) if need else None for need in ctx.needs_input_grad)
        x, grad = x.contiguous(), grad.contiguous()
        scale, shift = affine.scale_and_shift()
        norm_grad = x.new_empty(2, x.shape[1])
        _pool("pool_back", x, scale, shift, grad, (None, None, norm_grad, None))
        dgamma, dbeta, slope, offset = affine.gradients(norm_grad, x.numel() // x.shape[1])
        dx = empty(x, x.shape)
        more = (torch.zeros_like(scale) if t is None else t for t in (slope, offset))
        _pool("pool_back", x, scale, shift, grad, (*more, None, dx))
        affine_gradients = (None if gamma is None else dgamma, None if beta is None else dbeta)
        return (dx, *affine_gradients, None, None, None, None)


def _pool(name: str, x: Tensor, scale: Tensor, shift: Tensor, y: Tensor, rest: tuple[Tensor | None, ...]) -> None:
    """Call a pooling kernel; backward, the rest are slope, offset, gradients of (scale, shift) and of x."""
    check_readable(tensors := (x, scale, shift, y, *rest))
    channels = x.shape[1:2]
    pooled = (*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)
    expected = (x.shape, channels, channels, pooled, channels, channels, (2, *channels), x.shape)
    if not x.numel() or any(t is not None and t.shape != shape for t, shape in zip(tensors, expected, strict=False)):
        raise ArgumentError(f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}: no maps and pooled maps")
    invoke(name, (*x.shape, torch.get_num_threads()), tensors)
