"""Max-pooling as elementwise maxima of strided slices, many times as fast as PyTorch's pooling on a CPU."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[int, int]
Window = tuple[Pair, Pair, Pair]


def max_pool(x: Tensor, kernel: Pair, stride: Pair, padding: Pair = (0, 0)) -> Tensor:
    """Pool the last two axes of x, as ``torch.nn.functional.max_pool2d`` does; its gradients are the same too.

    Args:
        x: (…, Y, X), floating-point.
        kernel: rows and columns of the window.
        stride: rows and columns between windows.
        padding: rows and columns of -∞ on each side, at most half the kernel.

    Returns:
        (…, Y', X'), with ``Y' = ⌊(Y + 2·padding - kernel)/stride⌋ + 1``, which must be positive.
    """
    rows, columns = padding
    if rows or columns:
        x = F.pad(x, (columns, columns, rows, rows), value=-torch.inf)
    # Columns first: among equal values the first one in the order of rows then receives the gradient.
    for axis, size, step in ((-1, kernel[1], stride[1]), (-2, kernel[0], stride[0])):
        x = _MaxOfSlices.apply(x, axis, size, step) if torch.is_grad_enabled() else _maximum(x, axis, size, step)
    return x


def max_pool_window(module: nn.Module) -> Window | None:
    """Return kernel, stride and padding of a ``MaxPool2d``, or None if :func:`max_pool` does not compute it."""
    if not isinstance(module, nn.MaxPool2d) or module.ceil_mode or module.return_indices:
        return None
    kernel, stride, padding, dilation = map(_pair, (module.kernel_size, module.stride, module.padding, module.dilation))
    known = dilation == (1, 1) and all(2 * p <= k for p, k in zip(padding, kernel, strict=True))
    return (kernel, stride, padding) if known else None


def has_windows(x: Tensor, window: Window) -> bool:
    """Whether :func:`max_pool` supports x: its values are floating-point, and a window fits into it."""
    kernel, _, padding = window
    fits = all(n + 2 * p >= k for n, p, k in zip(x.shape[-2:], padding, kernel, strict=True))
    return fits and x.is_floating_point() and bool(x.numel())


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else tuple(value)  # type: ignore[return-value]


def _slice(x: Tensor, offset: int, axis: int, size: int, step: int) -> Tensor:
    """Return the values of x at one offset of all windows along an axis."""
    length = (x.shape[axis] - size) // step * step + 1
    part = x.narrow(axis, offset, length)
    return part[..., ::step] if axis == -1 else part[..., ::step, :]


def _maximum(x: Tensor, axis: int, size: int, step: int) -> Tensor:
    return reduce(torch.maximum, (_slice(x, offset, axis, size, step) for offset in range(size)))


class _MaxOfSlices(torch.autograd.Function):
    """The maximum over windows of one axis; the gradient goes to the first of equal values. Differentiable twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *window: int) -> Tensor:
        y = _maximum(x, *window)
        ctx.save_for_backward(x, y)
        ctx.window = window
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, y = ctx.saved_tensors
        dx, free = torch.zeros_like(x), torch.ones_like(y, dtype=torch.bool)
        for offset in range(ctx.window[1]):
            part = _slice(x, offset, *ctx.window)
            hit = ((part == y) | (part != part)) & free  # a NaN is the maximum of its window
            _slice(dx, offset, *ctx.window).add_(torch.where(hit, grad, 0))
            free = free & ~hit
        return dx, None, None, None
