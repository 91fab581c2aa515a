"""Statistics of folded maps (N, C, Y, X), and batch norm, ReLU and max-pooling in one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ArgumentError
from .._affine import Affine
from ._library import SUFFIXES, check_readable, empty, invoke


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    return x.shape[0], x.shape[1], x.shape[2] * x.shape[3], torch.get_num_threads()


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel of maps (N, C, Y, X)."""
    if not (x.dtype in SUFFIXES and x.device.type == "cpu" and x.is_contiguous() and x.ndim == 4 and x.numel()):
        raise ArgumentError(f"x is {x.dtype} of shape {tuple(x.shape)} on {x.device}: no maps that the kernels read")
    if (known := _recall(x)) is not None:
        return known
    mean, var = x.new_empty(x.shape[1]), x.new_empty(x.shape[1])
    invoke("statistics", _sizes(x), (x, mean, var))
    return mean, var


def remember(y: Tensor, mean: Tensor, var: Tensor) -> None:
    """Note a map's statistics with it, (B, |H|, C, Y, X), as long as it lives and nobody writes to it."""
    y._moments = (y._version, mean, var)  # type: ignore[attr-defined]


def _recall(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return what was noted with maps, or with that whose folded axes they are."""
    noted = x if x._base is None else x._base
    version, mean, var = getattr(noted, "_moments", (-1, x, x))
    same = version == noted._version and x.shape[1:] == noted.shape[-3:] and x.numel() == noted.numel()
    return (mean, var) if same and noted.is_contiguous() and x.data_ptr() == noted.data_ptr() else None


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
            y = F.max_pool2d(affine.relu(x, derive=True), 2)
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
