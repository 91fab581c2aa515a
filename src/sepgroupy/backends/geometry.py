"""Kernel sizes, strides and paddings of users, parsed to one value for each axis and checked with the group."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np

from ..errors import ArgumentError
from ..groups import PointGroup, as_group, axis_names, group_names

Sizes = int | Sequence[int]
"""One number for all spatial axes, or one for each."""
Pair = Sizes  # the name in two dimensions
MAX_SIZE = 2**31 - 1
"""Largest value of any argument that counts something: torch's convolutions count pixels in 32 bits."""


def by_axis(name: str, value: Sizes, least: int, group: PointGroup) -> tuple[int, ...]:
    """Return an argument's value for each axis; refuse unequal values on axes that the group exchanges."""
    values: Any = (value,) * group.dimension if isinstance(value, Integral) else value
    if (
        not isinstance(values, Sequence)
        or len(values) != group.dimension
        or not all(isinstance(v, Integral) and least <= int(v) <= MAX_SIZE for v in values)
    ):
        raise ArgumentError(
            f"{name} (={value!r}) must be an integer of at least {least}, below 2³¹, or {one_per_axis(group)}"
        )
    parsed = tuple(map(int, values))
    for axes in np.abs(group.arrays).argmax(2):  # of each element, the axis that each axis comes from
        for axis, source in enumerate(axes):
            if parsed[axis] != parsed[source]:
                first, second = sorted((axis, source))
                names = axis_names(group.dimension)
                raise ArgumentError(
                    f"{name} (={value!r}) must be the same on axes {names[first]} and {names[second]}: {group} "
                    "exchanges them. Use equal values, or a group that does not exchange these axes "
                    f"({', '.join(_groups_that_preserve(parsed))})"
                )
    return parsed


def one_per_axis(group: PointGroup) -> str:
    """Describe the values of one argument, in a message."""
    names = {1: "a sequence of one integer", 2: "a pair of integers", 3: "a sequence of three integers"}
    return names.get(group.dimension, f"a sequence of {group.dimension} integers")


def _groups_that_preserve(values: tuple[int, ...]) -> list[str]:
    """Name the groups that exchange no axes of unequal values."""
    groups = [as_group(name, len(values)) for name in group_names(len(values))]
    return [
        group.name
        for group in groups
        if group.order > 1 and (np.array(values)[np.abs(group.arrays).argmax(2)] == values).all()
    ]


def padding_by_side(
    padding: Sizes | str,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    group: PointGroup,
) -> tuple[int, ...]:
    """Return the padding before and after each axis; refuse one that the group does not map to itself."""
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0) * group.dimension
        if padding != "same":
            raise ArgumentError(f"padding (={padding!r}) must be 'same', 'valid', an integer or {one_per_axis(group)}")
        if max(stride) > 1:
            raise ArgumentError(f"padding='same' needs stride 1, not {stride}")
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
        for matrix in group.arrays:
            for axis, row in enumerate(matrix):
                source = int(abs(row).argmax())
                if sides[axis] != sides[source][:: int(row[source])]:
                    raise ArgumentError(
                        f"padding='same' pads {sides} (before, after) by axis for kernel_size (={kernel}), "
                        f"dilation (={dilation}), which {group} does not map to itself: use an odd kernel_size"
                    )
    else:
        sides = [(p, p) for p in by_axis("padding", padding, 0, group)]
    return tuple(pad for side in sides for pad in side)


def output_padding_by_axis(
    value: Sizes, stride: tuple[int, ...], dilation: tuple[int, ...], group: PointGroup
) -> tuple[int, ...]:
    """Return the output padding of a transposed convolution for each axis; refuse one that breaks the symmetry."""
    added = by_axis("output_padding", value, 0, group)
    if any(pad >= max(steps) for pad, *steps in zip(added, stride, dilation, strict=True)):
        raise ArgumentError(
            f"output_padding (={value!r}) must be smaller than stride (={stride}) or dilation (={dilation})"
        )
    for axis, pad in enumerate(added):
        if pad and (group.arrays[:, axis] < 0).any():
            raise ArgumentError(
                f"output_padding (={value!r}) lengthens one side of an axis that {group} reverses: use 0, and a "
                "kernel_size that gives the size you want, "
                "(n - 1)·stride - 2·padding + dilation·(kernel_size - 1) + 1"
            )
    return added
