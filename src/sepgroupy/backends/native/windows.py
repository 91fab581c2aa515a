"""Windows that do not overlap, as channels: a strided convolution then is a pointwise one of each window's pixels.

With stride 2, the group moves a kernel element to pixels of several remainders. The kernels would multiply its filter
by the pixels of each: four times as many products for 2×2 as there are pairs of a pixel and a kernel element.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from torch import Tensor

from ..constants import window_index
from ..conv_spec import ConvSpec
from ..tracing import constant_to_dynamo


@constant_to_dynamo
@lru_cache(maxsize=1024)
def has_windows_as_channels(spec: ConvSpec) -> bool:
    """Whether the convolution reads each pixel once, by a filter that is not in a depthwise and a pointwise factor."""
    plain = spec.kind in ("dense", "g") and spec.groups == 1 and not any((*spec.padding, *spec.output_padding))
    return plain and spec.kernel_size == spec.stride and max(spec.stride) > 1 and max(spec.dilation) == 1


@lru_cache(maxsize=1024)
def of_windows(spec: ConvSpec) -> ConvSpec:
    """Return the pointwise convolution."""
    ones = (1,) * spec.dimension
    return replace(spec, kind="dense", kernel_size=ones, stride=ones)


def windows_to_channels(spec: ConvSpec, maps: Tensor) -> Tensor:
    """Return what each kernel element m reads, ``x[i,h](stride·q + h·m)``: (B, |H|, I, …) to (B, |H|, K·I, …)."""
    split = maps
    for axis, size in enumerate(spec.kernel_size, 3):
        split = split.narrow(axis, 0, split.shape[axis] // size * size)
    for axis, size in reversed(list(enumerate(spec.kernel_size, 3))):
        split = split.unflatten(axis, (-1, size))
    pixels = [3 + 2 * axis for axis in range(spec.dimension)]
    elements = [axis + 1 for axis in pixels]
    planes = split.permute(0, 1, *elements, 2, *pixels).flatten(1, 1 + spec.dimension)  # (B, |H|·K, I, …)
    (index,) = window_index(spec, maps.device)
    return planes.index_select(1, index).unflatten(1, (spec.group.order, -1)).flatten(2, 3)


def channels_to_windows(spec: ConvSpec, maps: Tensor) -> Tensor:
    """Reverse :func:`windows_to_channels`, where windows cover the maps."""
    (index,) = window_index(spec, maps.device)
    count = index.shape[0] // spec.group.order
    planes = maps.unflatten(2, (count, -1)).flatten(1, 2).index_select(1, index.argsort())
    split = planes.unflatten(1, (spec.group.order, *spec.kernel_size))
    channels = 2 + spec.dimension
    interleaved = [axis for n in range(spec.dimension) for axis in (channels + 1 + n, 2 + n)]
    result = split.permute(0, 1, channels, *interleaved)
    for axis in range(spec.dimension):
        result = result.flatten(3 + axis, 4 + axis)
    return result


def filter_of_windows(spec: ConvSpec, weight: Tensor) -> Tensor:
    """Return the pointwise filter ``w[o,i,h](h·m)`` of the kernel elements m.

    Shape:
        (O, I, |H|, k, …) to (O, K·I, |H|, 1, …).
    """
    (index,) = window_index(spec, weight.device)
    entries = weight.flatten(2).index_select(2, index).unflatten(2, (spec.group.order, -1))  # (O, I, |H|, K)
    return entries.permute(0, 3, 1, 2).flatten(1, 2).reshape(len(weight), -1, spec.group.order, *(1,) * spec.dimension)
