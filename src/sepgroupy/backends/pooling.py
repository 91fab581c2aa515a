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
    """Pool the last two axes of x, as ``torch.nn.functional.max_pool2d`` does, for inference.

    Where gradients are needed, PyTorch's own is faster: its backward pass reads stored indices.

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
    for axis, size, step in ((-1, kernel[1], stride[1]), (-2, kernel[0], stride[0])):
        x = reduce(torch.maximum, (_slice(x, offset, axis, size, step) for offset in range(size)))
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
