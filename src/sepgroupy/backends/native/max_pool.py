"""Kernels for max-pooling; where gradients may be needed, they store where the maxima are."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..pooling import Window, has_windows
from .batch_norm import needs_definition
from .launch import check_readable, launch
from .library import DTYPES, Problem
from .limits import MAX_POOL_WINDOW, MAX_STRIDE
from .memory import empty


def supports_max_pool(x: Tensor, window: Window) -> bool:
    """Whether the kernel pools x (N, C, Y, X), a plain eager tensor on the CPU, with such windows."""
    kernel, stride, _ = window
    known = max(kernel) <= MAX_POOL_WINDOW and max(stride) <= MAX_STRIDE
    return known and x.ndim == 4 and x.dtype in DTYPES and x.is_cpu and has_windows(x, window)


def max_pool(x: Tensor, window: Window) -> Tensor:
    """Return ``max_pool2d(x, *window)`` of feature maps (N, C, Y, X). Differentiable twice."""
    if torch.is_grad_enabled():
        y: Tensor = _MaxPool.apply(x, window)
        return y
    return _pool(x.contiguous(), window)


def _pool(x: Tensor, window: Window, index: Tensor | None = None) -> Tensor:
    check_readable({"x": x})
    problem, shape = _problem_of(x.dtype, tuple(x.shape), window, torch.get_num_threads())
    y = empty(shape, x)
    launch("max_pool", problem, {"x": x, "y": y, "index": index})
    return y


class _MaxPool(torch.autograd.Function):
    """Max-pooling; the gradient goes to the place of each maximum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window) -> Tensor:
        """Pool."""
        x = x.contiguous()
        _, shape = _problem_of(x.dtype, tuple(x.shape), window, torch.get_num_threads())
        index = empty(shape, x.new_empty(0, dtype=torch.int64))
        ctx.save_for_backward(x, index)
        ctx.window = window
        return _pool(x, window, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of x, by PyTorch's operation if it is to be differentiated in turn."""
        x, index = ctx.saved_tensors
        grad = grad.contiguous()
        if needs_definition(grad):
            options = (*ctx.window, (1, 1), False, index)
            return torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *options), None
        problem, _ = _problem_of(x.dtype, tuple(x.shape), ctx.window, torch.get_num_threads())
        dx = empty(x.shape, x)
        check_readable({"grad": grad, "dx": dx})
        launch("max_pool_backward", problem, {"grad": grad, "index": index, "dx": dx})
        return dx, None


@lru_cache(maxsize=256)
def _problem_of(
    dtype: torch.dtype, shape: tuple[int, ...], window: Window, threads: int
) -> tuple[Any, tuple[int, ...]]:
    """Return, by reference, the problem of pooling feature maps of this shape, and the shape of the result."""
    batch, channels, *size = shape
    kernel, stride, padding = window
    pooled = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, *window, strict=True)]
    sizes = {"in_size": (1, *size), "out_size": (1, *pooled), "window": (1, *kernel)}
    steps = {"stride": (1, *stride), "padding": (0, *padding)}
    problem = Problem(dtype=DTYPES[dtype], threads=threads, batch=batch, in_channels=channels, **sizes, **steps)
    return ctypes.byref(problem), (batch, channels, *pooled)
