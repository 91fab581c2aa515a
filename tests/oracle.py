"""The definition of the group convolutions, stated slowly in numpy and float64, for the layers to be compared with.

Nothing here comes from sepgroupy but a group's list of matrices: elements are multiplied as matrices and found again
by comparison, and every pixel is carried to its new place by its own coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Group = Any  # anything with ``arrays``, the elements as integer matrices (|H|, d, d)
Sizes = int | Sequence[int]

PAD_MODES: dict[str, Any] = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def index_of(group: Group, matrix: NDArray[np.int64]) -> int:
    """Index of the element that the matrix is."""
    (index,) = [i for i, element in enumerate(group.arrays) if np.array_equal(element, matrix)]
    return index


def move(a: NDArray[Any], matrix: NDArray[np.int64]) -> NDArray[Any]:
    """``(g·a)[g·q] = a[q]`` over the last d axes, q measured from the centre (doubled, so that it is an integer)."""
    dimension = len(matrix)
    size = a.shape[a.ndim - dimension :]
    moved_size = np.abs(matrix) @ size
    last = np.array(size)[:, None] - 1
    pixels = np.indices(size).reshape(dimension, -1)
    targets = (matrix @ (2 * pixels - last) + (moved_size - 1)[:, None]) // 2
    moved = np.empty((*a.shape[: a.ndim - dimension], *moved_size), dtype=a.dtype)
    moved[(..., *targets)] = a[(..., *pixels)]
    return moved


def move_feature_map(f: NDArray[Any], group: Group, element: int) -> NDArray[Any]:
    """``(t·f)[t·k] = t·(f[k])``: on the group, the axis before the spatial ones moves too."""
    t = group.arrays[element]
    axis = f.ndim - len(t) - 1
    parts = np.moveaxis(f, axis, 0)
    moved = [np.empty(0)] * len(parts)
    for k, part in enumerate(parts):
        moved[index_of(group, t @ group.arrays[k])] = move(part, t)
    return np.stack(moved, axis)


def full_filter(parameters: Mapping[str, Array]) -> Array:
    """Filter on the group, (O, I, |H| or 1, …), of a layer's free parameters under their published names."""
    if "weight" in parameters:
        return parameters["weight"]
    pointwise, depthwise = parameters["pointwise_weight"], parameters["depthwise_weight"]
    dimension = pointwise.ndim - 3
    filters = np.empty((*pointwise.shape[:3], *depthwise.shape[-dimension:]))
    for o, i, h in np.ndindex(pointwise.shape[:3]):
        kernel = depthwise[o, i] if depthwise.ndim == dimension + 2 else depthwise[o, 0, 0]
        filters[o, i, h] = pointwise[o, i, h].item() * kernel
    return filters


def layer(
    x: Array,  # (B, I, …) for a lifting layer, else (B, I, |H|, …)
    parameters: Mapping[str, Array],
    group: Group,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Array:
    """``y[o, g] = Σ_i Σ_h (g·w[o,i])[h] ⋆ x[i, h] + b[o]``; a lifting layer is the same without h."""
    w = full_filter(parameters)
    dimension = group.arrays.shape[-1]
    lifting = x.ndim == dimension + 2
    maps = x[:, :, None] if lifting else x
    out_channels, in_channels = w.shape[:2]
    outputs: list[list[Array]] = []
    for element, matrix in enumerate(group.arrays):
        bank = move(w, matrix) if lifting else move_feature_map(w, group, element)
        outputs.append([])
        for o in range(out_channels):
            first = o // (out_channels // groups) * in_channels  # of the block of channels that o sees
            seen = maps[:, first : first + in_channels]
            y = correlate(seen, bank[o], stride, padding, dilation, padding_mode)
            outputs[-1].append(y + parameters["bias"][o] if "bias" in parameters else y)
    return np.array(outputs).transpose(2, 1, 0, *range(3, dimension + 3))


def transposed_layer(
    x: Array,  # (B, I, |H|, …)
    parameters: Mapping[str, Array],  # weight, or full filter, (I, O/groups, |H|, …)
    group: Group,
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    output_padding: Sizes = 0,
) -> Array:
    """``y[o, h] = Σ_i Σ_g (g·w[i,o])[h] ⋆ᵀ x[i, g] + b[o]``: each input value adds its filter at its own place."""
    w = full_filter(parameters)
    dimension = group.arrays.shape[-1]
    axes = range(dimension)
    spatial, sizes = w.shape[3:], x.shape[3:]
    steps, gaps = by_axis(stride, dimension), by_axis(dilation, dimension)
    cut, added = by_axis(padding, dimension), by_axis(output_padding, dimension)
    whole = [(sizes[a] - 1) * steps[a] + gaps[a] * (spatial[a] - 1) + 1 + added[a] for a in axes]
    y = np.zeros((len(x), groups, w.shape[1], len(group.arrays), *whole))
    block = x.shape[1] // groups
    for g, i in np.ndindex(len(group.arrays), x.shape[1]):
        filters = move_feature_map(w[i], group, g)  # (O/groups, |H|, …)
        for q in np.ndindex(spatial):
            place = [slice(gaps[a] * q[a], gaps[a] * q[a] + steps[a] * (sizes[a] - 1) + 1, steps[a]) for a in axes]
            values = x[:, i, g].reshape(len(x), 1, 1, *sizes)
            y[(slice(None), i // block, ..., *place)] += (
                filters[(..., *q)].reshape(*filters.shape[:2], *[1] * dimension) * values
            )
    y = y.reshape(len(x), -1, *y.shape[3:])
    y = y[(..., *(slice(c, n - c) for c, n in zip(cut, whole, strict=True)))]
    return y + parameters["bias"].reshape(-1, *[1] * (dimension + 1)) if "bias" in parameters else y


def correlate(
    x: Array,  # (B, I, h, …)
    kernel: Array,  # (I, h, …)
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    padding_mode: str = "zeros",
) -> Array:  # (B, …)
    """``y[p] = Σ_i Σ_h Σ_q kernel[i, h, q] x[i, h, stride·p + dilation·q]``, x padded."""
    spatial = kernel.shape[2:]
    axes = range(len(spatial))
    steps, gaps = by_axis(stride, len(spatial)), by_axis(dilation, len(spatial))
    around = [(0, 0), (0, 0), (0, 0), *pads(padding, spatial, gaps)]
    x = np.pad(x, around, mode=PAD_MODES[padding_mode])
    sizes = [(x.shape[3 + a] - gaps[a] * (spatial[a] - 1) - 1) // steps[a] + 1 for a in axes]
    y = np.zeros((len(x), *sizes))
    for q in np.ndindex(spatial):
        window: Any = [slice(gaps[a] * q[a], gaps[a] * q[a] + steps[a] * (sizes[a] - 1) + 1, steps[a]) for a in axes]
        y += np.tensordot(x[(..., *window)], kernel[(..., *q)], axes=([1, 2], [0, 1]))
    return y


def by_axis(value: Sizes, dimension: int) -> tuple[int, ...]:
    """One number for each axis."""
    return (value,) * dimension if isinstance(value, int) else tuple(value)


def pads(padding: Sizes | str, kernel: tuple[int, ...], gaps: tuple[int, ...]) -> list[tuple[int, int]]:
    """Pixels added before and after, axis by axis."""
    if padding == "valid":
        padding = 0
    if padding == "same":  # as torch.nn.Conv2d: where the total is odd, the greater half comes after
        totals = [gap * (size - 1) for gap, size in zip(gaps, kernel, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(p, p) for p in by_axis(padding, len(kernel))]  # type: ignore[arg-type]
