"""Batch statistics of feature maps (N, C, Y, X), and batch norm, ReLU and max-pooling in one kernel."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ArgumentError
from ..batch_norm import BatchNormReLU
from .launch import check_readable, launch
from .library import DTYPES, Problem
from .memory import empty

Tensors = dict[str, "Tensor | None"]


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel of feature maps (N, C, Y, X)."""
    if not (x.dtype in DTYPES and x.device.type == "cpu" and x.is_contiguous() and x.ndim == 4 and x.numel()):
        raise ArgumentError(
            f"x is {x.dtype} of shape {tuple(x.shape)} on {x.device}: the kernels read contiguous (N, C, Y, X) on a CPU"
        )
    mean, var = x.new_empty(x.shape[1]), x.new_empty(x.shape[1])
    problem = _problem_of(x.dtype, tuple(x.shape), torch.get_num_threads())
    launch("batch_statistics", problem, {"x": x, "y_mean": mean, "y_var": var})
    return mean, var


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
        _launch(
            "pool", ctx.eps, ctx.batch_stats, {"x": x, "gamma": gamma, "beta": beta, "mean": mean, "var": var, "y": y}
        )
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Return the gradients, through the definition if they are to be differentiated in turn."""
        x, gamma, beta, mean, var = ctx.saved_tensors
        if torch.is_grad_enabled():
            y = F.max_pool2d(BatchNormReLU(mean, var, gamma, beta, ctx.eps, ctx.batch_stats)(x), 2)
            wanted = [t for t, need in zip((x, gamma, beta), ctx.needs_input_grad, strict=False) if need]
            found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
            return tuple(next(found) if need else None for need in ctx.needs_input_grad)
        x, grad = x.contiguous(), grad.contiguous()
        needs_x, needs_gamma, needs_beta, *_ = ctx.needs_input_grad
        dx = empty(x.shape, x) if needs_x else None
        dgamma, dbeta = (torch.empty_like(mean) if needs_gamma or needs_beta else None for _ in range(2))
        given: Tensors = {"x": x, "gamma": gamma, "beta": beta, "mean": mean, "var": var, "grad": grad}
        results: Tensors = {"dx": dx, "dgamma": dgamma, "dbeta": dbeta}
        _launch("pool_backward", ctx.eps, ctx.batch_stats, {**given, **results})
        return dx, dgamma if needs_gamma else None, dbeta if needs_beta else None, None, None, None, None


def _pooled(x: Tensor) -> tuple[int, ...]:
    return (*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)


@lru_cache(maxsize=256)
def _problem_of(
    dtype: torch.dtype, shape: tuple[int, ...], threads: int, eps: float = 0.0, batch_stats: bool = False
) -> Any:
    """Return, by reference, the problem of a kernel that reads feature maps of this shape."""
    batch, channels, height, width = shape
    sizes = {"batch": batch, "order": 1, "in_channels": channels, "in_size": (1, height, width)}
    return ctypes.byref(Problem(dtype=DTYPES[dtype], threads=threads, eps=eps, batch_stats=batch_stats, **sizes))


def _launch(name: str, eps: float, batch_stats: bool, tensors: Tensors) -> None:
    """Launch a pooling kernel; ``batch_stats`` says whether the norm's statistics are those of x."""
    check_readable(tensors.values())
    x = tensors["x"]
    assert x is not None
    shapes = {"x": x.shape, "dx": x.shape, "y": _pooled(x), "grad": _pooled(x)}
    for what, t in tensors.items():
        expected = shapes.get(what, x.shape[1:2])
        if t is not None and (t.shape != expected or not x.numel()):
            raise ArgumentError(f"{what} has shape {tuple(t.shape)}, not {tuple(expected)} with values, for pooling")
    launch(name, _problem_of(x.dtype, tuple(x.shape), torch.get_num_threads(), eps, batch_stats), tensors)
