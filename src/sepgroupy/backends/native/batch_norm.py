"""Kernels around a batch norm of feature maps (N, C, Y, X): its statistics, and the norm with the steps after it."""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ArgumentError
from ..batch_norm import BatchNormReLU
from .launch import check_readable, launch, parameter_dtype
from .library import DTYPES, Problem
from .memory import empty

Tensors = dict[str, "Tensor | None"]


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel of feature maps (N, C, Y, X)."""
    if not (x.dtype in DTYPES and x.device.type == "cpu" and x.is_contiguous() and x.ndim == 4 and x.numel()):
        raise ArgumentError(
            f"x is {x.dtype} of shape {tuple(x.shape)} on {x.device}: the kernels read contiguous (N, C, Y, X) on a CPU"
        )
    mean, var = (x.new_empty(x.shape[1], dtype=parameter_dtype(x.dtype)) for _ in range(2))
    problem = _problem_of(x.dtype, tuple(x.shape), torch.get_num_threads())
    launch("batch_statistics", problem, {"x": x, "y_mean": mean, "y_var": var})
    return mean, var


def needs_definition(grad: Tensor) -> bool:
    """Whether a backward pass is to be differentiated in turn, or has gradients without memory, a batch of them."""
    functorch: Any = torch._C._functorch
    is_batch = functorch.is_functorch_wrapped_tensor(grad) or functorch.is_legacy_batchedtensor(grad)
    return torch.is_grad_enabled() or is_batch


def norm_clamp(
    x: Tensor, norm: BatchNormReLU, residual: Tensor | None = None, low: float = -math.inf, high: float = math.inf
) -> Tensor:
    """Return ``(norm(x) + residual).clamp(low, high)``, norm without its ReLU, of plain eager maps (N, C, Y, X).

    The gradient is 0 where the sum is at a bound or beyond it, as that of ReLU and ReLU6.
    """
    tensors = (x, norm.gamma, norm.beta, norm.mean, norm.var, residual)
    y: Tensor = _NormClamp.apply(*tensors, norm.eps, norm.batch_stats, low, high)
    return y


class _NormClamp(torch.autograd.Function):
    """Batch norm, sum with a residual and clamping. Differentiable twice."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        """Clamp; the arguments are x, gamma, beta, mean, var, residual, eps, batch_stats, low and high."""
        *tensors, ctx.eps, ctx.batch_stats, ctx.low, ctx.high = args
        x, *norm, residual = (None if t is None else t.contiguous() for t in tensors)
        assert x is not None
        y = empty(x.shape, x)
        ctx.clamps = not (math.isinf(ctx.low) and math.isinf(ctx.high))
        saves_y = ctx.clamps and residual is not None  # without residual norm(x) is clamped again
        ctx.save_for_backward(x, *norm, y if saves_y else None)
        given: Tensors = {"x": x, **dict(zip(("gamma", "beta", "mean", "var"), norm, strict=True)), "y": y}
        _launch("norm_clamp", {**given, "residual": residual}, x.shape, ctx.eps, ctx.batch_stats, ctx.low, ctx.high)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Return the gradients, through the definition if they are to be differentiated in turn."""
        x, gamma, beta, mean, var, y = ctx.saved_tensors
        needs_x, needs_gamma, needs_beta, _, _, needs_residual, *_ = ctx.needs_input_grad
        if needs_definition(grad):
            wanted = [t for t, need in zip((x, gamma, beta), ctx.needs_input_grad, strict=False) if need]
            with torch.enable_grad():
                normed = BatchNormReLU(mean, var, gamma, beta, ctx.eps, ctx.batch_stats).without_relu(x.to(mean.dtype))
                y = normed.detach() if y is None else y
                passed = torch.where((y <= ctx.low) | (y >= ctx.high), 0.0, grad) if ctx.clamps else grad
                of_sum = passed.to(mean.dtype)
                found = iter(torch.autograd.grad(normed, wanted, of_sum, create_graph=True) if wanted else ())
            gradients = [next(found) if need else None for need in ctx.needs_input_grad[:3]]
            return (*gradients, None, None, passed if needs_residual else None, None, None, None, None)
        grad = grad.contiguous()
        dx = empty(x.shape, x) if needs_x else None
        dresidual = empty(x.shape, x) if needs_residual and y is not None else None
        dgamma, dbeta = (torch.empty_like(mean) if needs_gamma or needs_beta else None for _ in range(2))
        given: Tensors = {"x": x, "gamma": gamma, "beta": beta, "mean": mean, "var": var, "y": y, "grad": grad}
        results: Tensors = {"dx": dx, "dresidual": dresidual, "dgamma": dgamma, "dbeta": dbeta}
        bounds = (ctx.low, ctx.high)
        _launch("norm_clamp_backward", {**given, **results}, x.shape, ctx.eps, ctx.batch_stats, *bounds)
        if needs_residual and y is None:
            dresidual = grad
        of_gamma, of_beta = dgamma if needs_gamma else None, dbeta if needs_beta else None
        return dx, of_gamma, of_beta, None, None, dresidual, None, None, None, None


def norm_relu_max_pool(x: Tensor, norm: BatchNormReLU) -> Tensor:
    """Return ``max_pool2d(relu(norm(x)), 2)`` of plain eager feature maps (N, C, Y, X) on the CPU."""
    tensors = (x, norm.gamma, norm.beta, norm.mean, norm.var)
    y: Tensor = _NormReluPool.apply(*tensors, norm.eps, norm.batch_stats)
    return y


class _NormReluPool(torch.autograd.Function):
    """Batch norm, ReLU and 2×2 max-pooling. Differentiable twice."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        """Pool; the arguments are x, gamma, beta, mean, var, eps and batch_stats."""
        *tensors, ctx.eps, ctx.batch_stats = args
        ctx.save_for_backward(*tensors)
        x, gamma, beta, mean, var = tensors
        x = x.contiguous()
        y = empty(_pooled(x), x)
        given: Tensors = {"x": x, "gamma": gamma, "beta": beta, "mean": mean, "var": var, "y": y}
        _launch("pool", given, _pooled(x), ctx.eps, ctx.batch_stats)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Return the gradients, through the definition if they are to be differentiated in turn."""
        x, gamma, beta, mean, var = ctx.saved_tensors
        if needs_definition(grad):
            wanted = [t for t, need in zip((x, gamma, beta), ctx.needs_input_grad, strict=False) if need]
            with torch.enable_grad():
                y = F.max_pool2d(BatchNormReLU(mean, var, gamma, beta, ctx.eps, ctx.batch_stats)(x.to(mean.dtype)), 2)
                found = iter(torch.autograd.grad(y, wanted, grad.to(mean.dtype), create_graph=True))
            return tuple(next(found) if need else None for need in ctx.needs_input_grad)
        x, grad = x.contiguous(), grad.contiguous()
        needs_x, needs_gamma, needs_beta, *_ = ctx.needs_input_grad
        dx = empty(x.shape, x) if needs_x else None
        dgamma, dbeta = (torch.empty_like(mean) if needs_gamma or needs_beta else None for _ in range(2))
        given: Tensors = {"x": x, "gamma": gamma, "beta": beta, "mean": mean, "var": var, "grad": grad}
        results: Tensors = {"dx": dx, "dgamma": dgamma, "dbeta": dbeta}
        _launch("pool_backward", {**given, **results}, _pooled(x), ctx.eps, ctx.batch_stats)
        return dx, dgamma if needs_gamma else None, dbeta if needs_beta else None, None, None, None, None


def _pooled(x: Tensor) -> tuple[int, ...]:
    return (*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)


@lru_cache(maxsize=256)
def _problem_of(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    threads: int,
    eps: float = 0.0,
    batch_stats: bool = False,
    low: float = 0.0,
    high: float = 0.0,
) -> Any:
    """Return, by reference, the problem of a kernel that reads feature maps of this shape."""
    batch, channels, height, width = shape
    sizes = {"batch": batch, "order": 1, "in_channels": channels, "in_size": (1, height, width)}
    norm = {"eps": eps, "batch_stats": batch_stats, "low": low, "high": high}
    return ctypes.byref(Problem(dtype=DTYPES[dtype], threads=threads, **norm, **sizes))


def _launch(name: str, tensors: Tensors, result: tuple[int, ...], *norm: Any) -> None:
    """Launch a kernel whose y has the shape ``result``; norm are eps, batch_stats and the bounds, if there are any.

    ``batch_stats`` says whether the norm's statistics are those of x.
    """
    check_readable(tensors)
    x = tensors["x"]
    assert x is not None
    shapes = {"x": x.shape, "dx": x.shape, "y": result, "grad": result, "residual": result, "dresidual": result}
    for what, t in tensors.items():
        expected = shapes.get(what, x.shape[1:2])
        if t is not None and (t.shape != expected or not x.numel()):
            raise ArgumentError(f"{what} has shape {tuple(t.shape)}, not {tuple(expected)} with values, for {name}")
    launch(name, _problem_of(x.dtype, tuple(x.shape), torch.get_num_threads(), *norm), tensors)
