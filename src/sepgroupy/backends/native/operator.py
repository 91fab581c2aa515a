"""The kernels' convolution as an operator of torch, for compilers, autocast and dispatch modes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...errors import ArgumentError
from ...groups import PointGroup
from ..conv_spec import ConvSpec
from .convolution import differentiate, transpose
from .launch import ConvInputs, NativeConv, native_conv

Integers = Sequence[int]

_TENSORS = "Tensor x, Tensor weight, Tensor? depthwise, Tensor? bias"
_OPTIONS = "bool lifting, int groups, int[] elements, int[] stride, int[] padding, int[] dilation"
OPTIONS = 6
"""The number of the operators' last arguments, which state the convolution."""


@torch.library.custom_op(
    "sepgroupy::group_conv",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_TENSORS}, Tensor? residual, {_OPTIONS}) -> Tensor",
)
def group_conv(
    x: Tensor, weight: Tensor, depthwise: Tensor | None, bias: Tensor | None, residual: Tensor | None, *options: Any
) -> Tensor:
    """Lift to the group whose elements' entries are given, or convolve on it, and add the residual."""
    inputs = ConvInputs(x, weight, depthwise, bias, residual=residual)
    return _conv_of(inputs, *options).forward(inputs.contiguous())[0]


@torch.library.custom_op(
    "sepgroupy::group_conv_transposed",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_TENSORS}, SymInt[] size, {_OPTIONS}) -> Tensor",
)
def group_conv_transposed(
    x: Tensor, weight: Tensor, depthwise: Tensor | None, bias: Tensor | None, size: Integers, *options: Any
) -> Tensor:
    """Transpose the convolution of a filter (O, I, …): x (B, |H|, O, …) to (B, |H|, I, *size), plus the bias (I,)."""
    inputs = ConvInputs(x, weight, depthwise, bias)
    return transpose(inputs, _conv_of(inputs, *options), tuple(size))


@torch.library.custom_op(
    "sepgroupy::group_conv_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor grad, {_TENSORS}, bool[] needs, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def group_conv_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Return the gradients of x, weight, depthwise and bias, empty where they are not needed."""
    inputs, needs, options = ConvInputs(*args[:4]), args[4], args[5:]
    gradients = differentiate(grad, inputs, 0.0, False, _conv_of(inputs, *options), (*needs, False, False))
    like = (grad if t is None else t for t in inputs[:4])
    return tuple(t.new_empty(0) if g is None else g for t, g in zip(like, gradients, strict=False))


def _conv_of(inputs: ConvInputs, lifting: bool, groups: int, elements: Integers, *geometry: Integers) -> NativeConv:
    filters = inputs.weight if inputs.depthwise is None else inputs.depthwise
    if not (kernel := filters.shape[3:]):
        raise ArgumentError(f"a filter has shape {tuple(filters.shape)}; the kernels read (O, I, |H|, k, …)")
    return native_conv(spec_of(kernel, lifting, groups, elements, *geometry))


def spec_of(kernel: Sequence[int], lifting: bool, groups: int, elements: Integers, *geometry: Integers) -> ConvSpec:
    """Return the specification of a convolution with a kernel of this size and the operators' last arguments."""
    kind = "lifting" if lifting else "dense"
    return _spec_of(kind, groups, tuple(elements), tuple(map(int, kernel)), *map(tuple, geometry))


@lru_cache(maxsize=1024)
def _spec_of(
    kind: str, groups: int, elements: tuple[int, ...], kernel: tuple[int, ...], *geometry: tuple[int, ...]
) -> ConvSpec:
    stride, padding, dilation = geometry
    group = group_of_entries(elements, len(kernel))
    return ConvSpec.parse(group, kind, kernel, stride, padding, dilation, groups)


def group_of_entries(entries: Sequence[int], dimension: int) -> PointGroup:
    """Return the group whose elements' entries follow each other.

    Raises:
        ArgumentError: they are not whole matrices, or not those of a group.
    """
    if len(entries) % dimension**2:
        raise ArgumentError(f"elements (={list(entries)}) must be {dimension**2} entries of each matrix")
    rows = [tuple(entries[i : i + dimension]) for i in range(0, len(entries), dimension)]
    return PointGroup(tuple(tuple(rows[i : i + dimension]) for i in range(0, len(rows), dimension)))


@group_conv.register_fake
def _(x: Tensor, weight: Tensor, depthwise: Tensor | None, bias: Tensor | None, residual: Any, *options: Any) -> Tensor:
    conv = _conv_of(ConvInputs(x, weight, depthwise, bias), *options)
    return x.new_empty(conv.output_shape(x.shape, weight.shape))


@group_conv_transposed.register_fake
def _(x: Tensor, weight: Tensor, depthwise: Tensor | None, bias: Any, size: Any, *options: Any) -> Tensor:
    return x.new_empty((*x.shape[:2], weight.shape[1], *size))


@group_conv_backward.register_fake
def _(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    pairs = zip(args[:4], args[4], strict=True)
    return tuple(grad.new_empty(0) if t is None else t.new_empty(t.shape if need else 0) for t, need in pairs)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])  # not the residual
    ctx.options = inputs[5:]


def _operator_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, depthwise, bias = ctx.saved_tensors
    needs = [bool(need) for need in ctx.needs_input_grad[:4]]
    gradients = group_conv_backward(grad, x, weight, depthwise, bias, needs, *ctx.options)
    found = (g if need else None for g, need in zip(gradients, ctx.needs_input_grad[:4], strict=True))
    return (*found, grad if ctx.needs_input_grad[4] else None, *(None,) * len(ctx.options))


group_conv.register_autograd(_operator_backward, setup_context=_save_for_backward)


def _save_for_transposed_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, depthwise, _, _, *ctx.options = inputs
    ctx.save_for_backward(x, weight, depthwise)


def _transposed_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, depthwise = ctx.saved_tensors
    needs = ctx.needs_input_grad
    dx = group_conv(grad, weight, depthwise, None, None, *ctx.options) if needs[0] else None
    filters, dweight, ddepthwise = [False, bool(needs[1]), bool(needs[2]), False], None, None
    if any(filters):
        _, dweight, ddepthwise, _ = group_conv_backward(x, grad, weight, depthwise, None, filters, *ctx.options)
    dbias = grad.flatten(3).sum(3).sum((0, 1)) if needs[3] else None
    found = (dx, dweight if needs[1] else None, ddepthwise if needs[2] else None, dbias)
    return (*found, *(None,) * (1 + len(ctx.options)))


group_conv_transposed.register_autograd(_transposed_backward, setup_context=_save_for_transposed_backward)
