"""The arguments of a convolution, parsed once and held against the group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch

from ..errors import ArgumentError
from ..groups import PointGroup

Pair = int | Sequence[int]
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
LARGEST_SIZE = 2**31 - 1
"""Of any argument that counts something: torch's convolutions count pixels in 32 bits."""
LARGEST_TENSOR = 2**40
"""Numbers in a tensor: 4 TiB in float32. What no machine holds is refused by name."""


@dataclass(frozen=True)
class Geometry:
    """Kernel, stride, padding and dilation by axis (row, column), of a convolution that a group can act on.

    ``padding`` is (top, bottom, left, right). Make one with :meth:`parse`.
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"

    @classmethod
    def parse(
        cls,
        group: PointGroup,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> Geometry:
        """Parse the arguments of ``torch.nn.Conv2d`` and refuse those that break the group's symmetry.

        Raises:
            ArgumentError: a value is out of range; an axis pair is uneven and the group exchanges the axes;
                ``padding="same"`` would pad one side more than its mirror image.
        """
        if group.dimension != 2:
            raise ArgumentError(f"group (={group}) must act on 2 axes for a two-dimensional convolution")
        kernel = _pair("kernel_size", kernel_size, 1, group)
        strides = _pair("stride", stride, 1, group)
        dilations = _pair("dilation", dilation, 1, group)
        if not isinstance(groups, Integral) or not 1 <= int(groups) <= LARGEST_SIZE:
            raise ArgumentError(f"groups (={groups!r}) must be a positive integer below 2³¹")
        if padding_mode not in PADDING_MODES:
            raise ArgumentError(f"padding_mode (={padding_mode!r}) must be one of {', '.join(PADDING_MODES)}")
        pads = _padding(padding, kernel, strides, dilations, group)
        return cls(kernel, strides, pads, dilations, int(groups), padding_mode)

    def check_size(self, maps: int, rows: int, columns: int) -> None:
        """Refuse so many maps of a size that the kernel or the padding does not fit.

        Raises:
            ArgumentError: they are smaller than the kernel's extent, or than what their padding repeats or mirrors, or
                larger with it than any machine holds.
        """
        # Of a picture without pixels torch makes nothing, whatever the padding.
        least = {"reflect": lambda pad: pad + 1, "circular": lambda pad: max(pad, 1)}.get(
            self.padding_mode, lambda pad: 1
        )
        sides = (self.padding[:2], self.padding[2:])
        for size, pads, kernel, dilation in zip((rows, columns), sides, self.kernel_size, self.dilation, strict=True):
            if size < least(max(pads)):
                raise ArgumentError(
                    f"x is {rows}×{columns} pixels, too small for padding (={self.padding}) with "
                    f"padding_mode (={self.padding_mode!r})"
                )
            if size + sum(pads) < dilation * (kernel - 1) + 1:
                raise ArgumentError(
                    f"x is {rows}×{columns} pixels, with padding (={self.padding}) smaller than the extent of "
                    f"kernel_size (={self.kernel_size}), dilation (={self.dilation})"
                )
        top, bottom, left, right = self.padding
        check_numbers(
            f"x, {maps} maps of {rows}×{columns} pixels with padding (={self.padding}),",
            (maps, top + rows + bottom, left + columns + right),
        )

    def output_size(self, rows: int, columns: int) -> tuple[int, int]:
        """Sizes of what comes out of a picture of these sizes."""
        sides = zip((rows, columns), (self.padding[:2], self.padding[2:]), strict=True)
        steps = zip(self.kernel_size, self.dilation, self.stride, strict=True)
        height, width = (
            (size + sum(pads) - dilation * (kernel - 1) - 1) // stride + 1
            for (size, pads), (kernel, dilation, stride) in zip(sides, steps, strict=True)
        )
        return height, width

    @property
    def pads_apart(self) -> bool:
        """Whether the padding is a step of its own: not of zeros, or not the same on both sides."""
        top, bottom, left, right = self.padding
        return any(self.padding) and (self.padding_mode != "zeros" or (top, left) != (bottom, right))

    @property
    def pointwise(self) -> bool:
        """Whether the kernel is 1×1, so that no pixel sees another."""
        return self.kernel_size == (1, 1)


def check_numbers(what: str, shape: Sequence[int]) -> None:
    """Raise ArgumentError if a tensor of this shape has more numbers than any machine holds."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # where sizes may be unknown
        return
    if math.prod(shape) > LARGEST_TENSOR or max(shape, default=0) > LARGEST_SIZE:
        raise ArgumentError(f"{what} would have {math.prod(shape):.1e} numbers, more than any machine holds")


def parse_output_padding(group: PointGroup, value: Pair, geometry: Geometry) -> tuple[int, int]:
    """Parse what a transposed convolution adds to the last side of each axis, and refuse it where that side moves.

    Raises:
        ArgumentError: it is out of range, or the group turns the last side of a padded axis to another side.
    """
    added = _pair("output_padding", value, 0, group)
    if any(pad >= max(steps) for pad, *steps in zip(added, geometry.stride, geometry.dilation, strict=True)):
        raise ArgumentError(
            f"output_padding (={value!r}) must be smaller than stride (={geometry.stride}) or dilation "
            f"(={geometry.dilation})"
        )
    for axis, pad in enumerate(added):
        if pad and (group.arrays[:, axis] < 0).any():
            raise ArgumentError(
                f"output_padding (={value!r}) lengthens one side of an axis that {group} reverses: use 0, and a "
                "kernel_size that makes the wanted size, (n - 1)·stride - 2·padding + dilation·(kernel_size - 1) + 1"
            )
    return added


def _pair(name: str, value: Pair, least: int, group: PointGroup) -> tuple[int, int]:
    pair: Any = (value, value) if isinstance(value, Integral) else value
    if (
        not isinstance(pair, Sequence)
        or len(pair) != 2
        or not all(isinstance(v, Integral) and least <= int(v) <= LARGEST_SIZE for v in pair)
    ):
        raise ArgumentError(f"{name} (={value!r}) must be an integer of at least {least}, below 2³¹, or a pair of them")
    row, column = int(pair[0]), int(pair[1])
    if row != column and _exchanges_axes(group):
        raise ArgumentError(
            f"{name} (={value!r}) must be the same on both axes: {group} exchanges rows and columns. Use an even pair, "
            "or a group without quarter turns and diagonal mirrors (pm, p2, p2mm)"
        )
    return (row, column)


def _padding(
    padding: Pair | str,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    group: PointGroup,
) -> tuple[int, int, int, int]:
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0, 0, 0)
        if padding != "same":
            raise ArgumentError(f"padding (={padding!r}) must be 'same', 'valid', an integer or a pair of integers")
        if stride != (1, 1):
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
        sides = [(p, p) for p in _pair("padding", padding, 0, group)]
    return (*sides[0], *sides[1])


def _exchanges_axes(group: PointGroup) -> bool:
    return bool((group.arrays[:, 0, 1] != 0).any())
