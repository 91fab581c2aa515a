"""The grid of a convolution or pooling: where its windows lie, and whether a group preserves their positions."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..backends import ConvSpec
from ..groups import PointGroup, as_group
from ..nn import GroupConvolution

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS: dict[int, Any] = {
    1: (nn.MaxPool1d, nn.AvgPool1d, nn.LPPool1d),
    2: (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d),
    3: (nn.MaxPool3d, nn.AvgPool3d, nn.LPPool3d),
}


def geometry_of(module: nn.Module) -> ConvSpec | None:
    """Return kernel, stride, padding and dilation of a convolution or pooling; None for other modules."""
    if isinstance(module, GroupConvolution):
        return None if module.spec.transposed else module.spec
    dimension = next((d for d, pools in _POOLS.items() if isinstance(module, pools)), 0)
    if isinstance(module, CONVS):
        dimension = len(module.kernel_size)
    if not dimension:
        return None
    made: Any = module
    kernel = _by_axis(made.kernel_size, dimension)
    stride = _by_axis(made.stride, dimension) if made.stride else kernel
    dilation, padding = _by_axis(getattr(module, "dilation", 1), dimension), getattr(module, "padding", 0)
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        sides = [(n // 2, n - n // 2) for n in total]
    else:
        sides = [(n, n) for n in _by_axis(padding, dimension)]
    return ConvSpec(as_group("C1", dimension), "dense", kernel, stride, sum(sides, ()), dilation)


def has_symmetric_grid(geometry: ConvSpec, pixels: tuple[int, ...], group: PointGroup) -> bool:
    """Whether ``(n + 2·padding - dilation·(k-1) - 1) % stride == 0`` on every axis that the group reverses."""
    return asymmetric_axis(geometry, pixels, group) is None


def asymmetric_axis(geometry: ConvSpec, pixels: tuple[int, ...], group: PointGroup) -> int | None:
    """Return the first axis that the group reverses and whose grid is not symmetric."""
    reversed_axes = [axis for axis in range(len(pixels)) if (group.arrays[:, :, axis] < 0).any()]
    return next((axis for axis in reversed_axes if span(geometry, axis, pixels[axis]) % geometry.stride[axis]), None)


def span(geometry: ConvSpec, axis: int, n: int) -> int:
    """Return ``n + 2·padding - dilation·(k-1) - 1``: the pixels from the first to the last position of the kernel."""
    before, after = geometry.padding[2 * axis : 2 * axis + 2]
    return n + before + after - geometry.dilation[axis] * (geometry.kernel_size[axis] - 1) - 1


def exact_kernel(n: int, k: int, s: int, p: int, d: int) -> dict[str, int] | None:
    """Return the nearest kernel and padding that are exact at n pixels with the same size of the output."""
    found = [
        {"kernel_size": kernel, "padding": pad}
        for kernel in range(1, k + s + 1)
        for pad in range(max(p, kernel // 2) + 1)
        if n + 2 * pad - d * (kernel - 1) - 1 == ((n + 2 * p - d * (k - 1) - 1) // s) * s
        and (pad == p or 2 * pad <= kernel)
    ]
    return min(
        found, key=lambda c: (abs(c["kernel_size"] - k) + abs(c["padding"] - p), -c["kernel_size"]), default=None
    )


def _by_axis(value: Any, dimension: int) -> tuple[int, ...]:
    return (value,) * dimension if isinstance(value, int) else tuple(value)
