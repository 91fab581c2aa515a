"""The specification of a convolution: its arguments without the parameters, parsed once and checked with the group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .._constants import Constant
from ..errors import ArgumentError
from ..groups import PointGroup, axis_names
from .geometry import MAX_SIZE, Sizes, by_axis, one_per_axis, output_padding_by_axis, padding_by_side

KINDS = ("dense", "g", "gc")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
MAX_NUMEL = 2**40
"""Largest number of values in a tensor: 4 TiB in float32. A larger one is refused."""
DIMENSIONS = {1: "samples", 2: "pixels", 3: "voxels"}
"""The numbers of spatial axes that PyTorch convolves over, and the name of a point of such a grid."""


@dataclass(frozen=True)
class ConvSpec(Constant):
    """A convolution on a point group, created by :meth:`parse`. Equal specifications have equal hashes.

    Args:
        group: the point group.
        kind: ``"lifting"``, from images to group feature maps; or the filter of a group convolution, ``"dense"``,
            ``"g"`` or ``"gc"``.
        kernel_size: by spatial axis, as stride and dilation: (rows, columns) of images.
        padding: before and after, by spatial axis: (top, bottom, left, right) of images.
        groups: blocks of channels that are convolved separately.
        padding_mode: one of ``PADDING_MODES``.
        transposed: whether this is the transpose of the convolution from its output to its input.
        output_padding: pixels that a transposed convolution adds to the last side of each axis.
    """

    group: PointGroup
    kind: str
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0, 0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"
    transposed: bool = False
    output_padding: tuple[int, ...] = (0, 0)

    @classmethod
    def parse(
        cls,
        group: PointGroup,
        kind: str,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        transposed: bool = False,
        output_padding: Sizes = 0,
    ) -> ConvSpec:
        """Parse the arguments of ``torch.nn.Conv2d``, or 1d or 3d as the group has axes.

        Those that break the group's symmetry are refused.

        Raises:
            ArgumentError: a value is out of range; the values of two axes differ and the group exchanges the axes;
                ``padding="same"`` would pad one side more than the side to which the group moves it.
        """
        arguments = (kernel_size, stride, padding, dilation, groups, padding_mode, transposed, output_padding)
        hashable = tuple(tuple(a) if isinstance(a, list) else a for a in arguments)
        types = tuple(type(v) for a in hashable for v in (a if isinstance(a, tuple) else (a,)))
        try:
            return _parse(types, group, kind, *hashable)
        except TypeError:  # unhashable, so not a valid value
            return _parse.__wrapped__(types, group, kind, *arguments)

    def __post_init__(self) -> None:
        names = ("kind", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "transposed")
        values = (self.group, self.output_padding, *(getattr(self, name) for name in names))
        object.__setattr__(self, "_hash", hash(values))  # computed once: layers look up constants in every call
        self.name_constant()

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined, no-any-return]

    def __reduce__(self) -> tuple[Any, ...]:
        # Hash and name are valid in one process only.
        return type(self), tuple(getattr(self, f.name) for f in fields(self))

    def __deepcopy__(self, memo: object) -> ConvSpec:
        return self

    @property
    def dimension(self) -> int:
        """The number of spatial axes."""
        return len(self.kernel_size)

    @property
    def pads_separately(self) -> bool:
        """Whether padding is a separate step before the convolution: not of zeros, or unequal on the two sides."""
        return any(self.padding) and (self.padding_mode != "zeros" or self.padding[::2] != self.padding[1::2])

    @property
    def pointwise(self) -> bool:
        """Whether the kernel has one element, so that each output pixel reads one input pixel."""
        return max(self.kernel_size) == 1

    def output_size(self, *size: int) -> tuple[int, ...]:
        """Return the spatial sizes of the output for an input of these: rows and columns of images."""
        pads = map(sum, _sides(self.padding))
        steps = zip(self.kernel_size, self.dilation, self.stride, self.output_padding, strict=True)
        return tuple(
            (n - 1) * stride - pad + dilation * (kernel - 1) + added + 1
            if self.transposed
            else (n + pad - dilation * (kernel - 1) - 1) // stride + 1
            for n, pad, (kernel, dilation, stride, added) in zip(size, pads, steps, strict=True)
        )

    def check_input(self, x: Tensor, in_channels: int, weight: Tensor) -> None:
        """Refuse an input of another layout, shape, size or dtype than this convolution reads.

        Raises:
            ArgumentError: x does not fit. Under autocast its dtype may differ from the parameters'.
        """
        if not isinstance(x, Tensor) or x.layout != torch.strided:
            what = x.layout if isinstance(x, Tensor) else type(x).__name__
            raise ArgumentError(f"x must be a dense tensor, not {what}")
        if x.dtype != weight.dtype and (x.is_meta or not torch.is_autocast_enabled(x.device.type)):
            raise ArgumentError(
                f"x is {x.dtype} and the layer's parameters are {weight.dtype}: they must have the same dtype"
            )
        lifting = self.kind == "lifting"
        expected = (in_channels,) if lifting else (in_channels, self.group.order)
        dimension = len(self.kernel_size)
        if x.ndim != 1 + dimension + len(expected) or tuple(x.shape[1:-dimension]) != expected:
            axes = ", ".join(map(str, (*expected, *axis_names(dimension))))
            text = f"x has shape {tuple(x.shape)}; this layer reads (B, {axes})"
            if not lifting:
                text += f", a feature map on {self.group.name or self.group} with in_channels (={in_channels})"
                if x.ndim == 2 + dimension:
                    text += f". Apply a LiftingConv{dimension}d to x first"
            raise ArgumentError(text)
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):  # there sizes may be symbols
            try:
                _check_size(self, x.shape)
            except TypeError:  # symbols, which have no hash
                self.check_size(math.prod(x.shape[:-dimension]), *x.shape[-dimension:])

    def check_size(self, images: int, *size: int) -> None:
        """Refuse images, or volumes, that the kernel or the padding does not fit.

        Raises:
            ArgumentError: they are smaller than the kernel's extent or than the pixels that the padding repeats or
                reflects, or they or the output are too large for any machine.
        """
        text = f"{'×'.join(map(str, size))} {DIMENSIONS[self.dimension]}"
        sides = _sides(self.padding)
        if self.transposed:
            result = self.output_size(*size)
            if min(*size, *result) < 1:
                raise ArgumentError(
                    f"x is {text}, of which padding (={self.padding}) would leave none after this layer"
                )
            shape = (images, *(n + sum(pads) for n, pads in zip(result, sides, strict=True)))
            if exceeds_any_memory(shape):
                raise ArgumentError(
                    f"the output of {text}, stride (={self.stride}), dilation (={self.dilation}) "
                    f"would have {math.prod(shape):.1e} values, more than any machine holds"
                )
            return
        for n, pads, kernel, dilation in zip(size, sides, self.kernel_size, self.dilation, strict=True):
            if n < self._min_size(max(pads)):
                raise ArgumentError(
                    f"x is {text}, too small for padding (={self.padding}) with padding_mode (={self.padding_mode!r})"
                )
            if n + sum(pads) < dilation * (kernel - 1) + 1:
                raise ArgumentError(
                    f"x is {text}, with padding (={self.padding}) smaller than the extent of "
                    f"kernel_size (={self.kernel_size}), dilation (={self.dilation})"
                )
        shape = (images, *(n + sum(pads) for n, pads in zip(size, sides, strict=True)))
        if exceeds_any_memory(shape):
            raise ArgumentError(
                f"x, {images} feature maps of {text} with padding (={self.padding}), would have "
                f"{math.prod(shape):.1e} values, more than any machine holds"
            )

    def _min_size(self, pad: int) -> int:
        # torch returns an empty tensor for an image without pixels, with any padding.
        return {"reflect": pad + 1, "circular": max(pad, 1)}.get(self.padding_mode, 1)


@lru_cache(maxsize=1024)
def _check_size(spec: ConvSpec, shape: torch.Size) -> None:
    spec.check_size(math.prod(shape[: -spec.dimension]), *shape[-spec.dimension :])


@lru_cache(maxsize=1024)
def _parse(
    types: tuple[type, ...],  # a cache alone would take 1.0 for 1
    group: PointGroup,
    kind: str,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
    padding_mode: str,
    transposed: bool,
    output_padding: Sizes,
) -> ConvSpec:
    if kind not in ("lifting", *KINDS):
        raise ArgumentError(f"kind (={kind!r}) must be one of {', '.join(KINDS)}")
    if group.dimension not in DIMENSIONS:
        raise ArgumentError(
            f"group (={group}) must act on {', '.join(map(str, DIMENSIONS))} axes to convolve over them"
        )
    kernel = by_axis("kernel_size", kernel_size, 1, group)
    strides = by_axis("stride", stride, 1, group)
    dilations = by_axis("dilation", dilation, 1, group)
    if not isinstance(groups, Integral) or not 1 <= int(groups) <= MAX_SIZE:
        raise ArgumentError(f"groups (={groups!r}) must be a positive integer below 2³¹")
    if padding_mode not in PADDING_MODES:
        raise ArgumentError(f"padding_mode (={padding_mode!r}) must be one of {', '.join(PADDING_MODES)}")
    if transposed and isinstance(padding, str):
        raise ArgumentError(f"padding (={padding!r}) must be an integer or {one_per_axis(group)}")
    pads = padding_by_side(padding, kernel, strides, dilations, group)
    added = output_padding_by_axis(output_padding, strides, dilations, group) if transposed else (0,) * group.dimension
    return ConvSpec(group, kind, kernel, strides, pads, dilations, int(groups), padding_mode, transposed, added)


def exceeds_any_memory(shape: Sequence[int]) -> bool:
    """Whether a tensor of this shape would be too large for any machine."""
    return math.prod(shape) > MAX_NUMEL or max(shape, default=0) > MAX_SIZE


def _sides(padding: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return padding before and after, by axis."""
    return list(zip(padding[::2], padding[1::2], strict=True))
