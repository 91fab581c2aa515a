"""The kernels as a backend: a function of plain eager tensors, an operator for compilers and dispatch modes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base import Backend, Filters, can_bypass_dispatcher, pad
from ..batch_norm import BatchNormReLU
from ..conv_spec import ConvSpec
from ..filter_bank import full_filter, with_group_axis
from ..tracing import constant_to_dynamo
from .convolution import (
    GroupConvFunction,
    TransposedConvFunction,
    definition,
    options_of,
    transpose,
    transposed_definition,
)
from .dtypes import as_kernels_read, have_kernels_dtypes, is_autocast, map_dtype, result_dtype
from .launch import ConvInputs, NativeConv, native_conv, parameter_dtype
from .library import kernels
from .limits import is_direct, unsupported_reason
from .operator import group_conv, group_conv_transposed
from .windows import (
    channels_to_windows,
    filter_of_windows,
    has_windows_as_channels,
    of_windows,
    windows_to_channels,
)


class Native(Backend):
    """Compiled kernels: in the group's Fourier domain or, with few channels, directly (docs/native.md)."""

    name = "native"

    def unavailable_reason(self) -> str | None:
        """Return why the kernels were not found."""
        return None if kernels() else kernels().summary

    def summary(self) -> str:
        """Name the vectors that the kernels use."""
        return kernels().summary

    def threaded(self) -> bool:
        """Whether the kernels share their work between threads."""
        return kernels().threaded

    def supports_device(self, device: str) -> bool:
        """Whether it is a CPU."""
        return device == "cpu"

    def unsupported_reason(self, spec: ConvSpec, x: Tensor | None = None) -> str | None:
        """Return None for small kernels and strides, and groups of order up to 48, on a CPU."""
        if x is not None and x.device.type not in ("cpu", "meta"):
            return f"an input on a CPU, not on {x.device}"
        return unsupported_reason(spec)

    def expand_filters(self, spec: ConvSpec, parameters: Mapping[str, Tensor]) -> Filters:
        """Return the parameters, which the kernels expand: weight, or pointwise and depthwise weight."""
        if has_windows_as_channels(spec):
            weight = parameters.get("weight")
            if weight is None:
                factors = (parameters[f"{name}_weight"] for name in ("depthwise", "pointwise"))
                weight = full_filter(*(f.to(parameter_dtype(f.dtype)) for f in factors))
            return filter_of_windows(spec, weight), None
        if "weight" in parameters:
            return (parameters["weight"], None)
        pointwise, depthwise = parameters["pointwise_weight"], parameters["depthwise_weight"]
        if is_direct(spec) and depthwise.ndim == spec.dimension + 2 and depthwise.shape[1] > 1:
            return full_filter(depthwise, pointwise), None  # of a g layer; the kernels have none in blocks
        return pointwise, with_group_axis(depthwise, spec.dimension)

    def expand_filters_for_reuse(self, spec: ConvSpec, parameters: Mapping[str, Tensor], x: Tensor) -> Filters:
        """Return also the filters in the Fourier domain, as the kernels read them."""
        dtype = parameter_dtype(map_dtype(x))
        weight, depthwise = (
            None if f is None else f.detach().to(dtype).contiguous() for f in self.expand_filters(spec, parameters)
        )
        assert weight is not None
        if is_direct(spec):
            return weight, depthwise
        conv, inner = _conv_of(spec), _shape_of_maps(spec, x)
        return weight, depthwise, conv.expand_filters(inner, weight, depthwise)

    def reuse_key(self, spec: ConvSpec, x: Tensor) -> Hashable:
        """Return the layout of expanded filters, which depends on whether rows fill vectors; None if there are none."""
        if is_direct(spec):
            return () if spec.kind == "g" else None  # multiplied out
        if spec.transposed:
            return None  # backward passes read no expanded filters
        if not x.shape[1] or not can_bypass_dispatcher(x):
            return None
        dtype = parameter_dtype(map_dtype(x))
        return dtype, *_conv_of(spec).filter_layout(_shape_of_maps(spec, x)[-1], dtype)

    def run(self, spec: ConvSpec, x: Tensor, filters: Filters, bias: Tensor | None) -> Tensor:
        """Convolve."""
        if not (torch.compiler.is_compiling() or spec.transposed):
            return self.run_fused(spec, x, filters, bias).y
        weight, depthwise = filters
        assert weight is not None
        if spec.transposed:
            return _run_transposed(spec, x, ConvInputs(x.transpose(1, 2), weight, depthwise, bias)).transpose(1, 2)
        inputs = ConvInputs(_maps(spec, x), weight, depthwise, bias)
        y = group_conv(*as_kernels_read(inputs)[:4], None, *_operator_options(spec))
        return y.to(result_dtype(x)).transpose(1, 2)

    def run_fused(
        self,
        spec: ConvSpec,
        x: Tensor,  # (B, I, *spatial) if lifting, else (B, I, |H|, *spatial)
        filters: Filters,
        bias: Tensor | None,
        norm: BatchNormReLU | None = None,
        residual: Tensor | None = None,  # (B, O, |H|, *spatial')
        return_stats: bool = False,
        share_x: bool = False,
    ) -> FusedOutput:
        """Convolve x, or relu(norm(x)), and add the residual.

        With a norm, ``return_stats`` or ``share_x``, x is a plain eager tensor (:func:`can_bypass_dispatcher`). With a
        norm, x is read as it is (:func:`reads_as_it_is`).

        Args:
            spec: the convolution.
            x: its input.
            filters: of :meth:`expand_filters`.
            bias: (O,) or None.
            norm: batch norm and ReLU before the convolution.
            residual: added to the result.
            return_stats: also return mean and biased variance of each output channel, if there are values.
            share_x: return x as an output too, for the residual branch. The backward kernel adds that branch's gradient
                to dx.
        """
        weight, depthwise, *expanded = filters
        assert weight is not None
        added = None if residual is None else residual.transpose(1, 2)
        inputs = ConvInputs(_maps(spec, x), weight, depthwise, bias, residual=added)
        if norm is not None:
            inputs = inputs._replace(gamma=norm.gamma, beta=norm.beta, mean=norm.mean, var=norm.var)
        eps, batch_stats = (norm.eps, norm.batch_stats) if norm is not None else (0.0, False)
        share_x = share_x and reads_as_it_is(spec) and not is_direct(spec)
        y, again, mean, var = _convolve(inputs, eps, batch_stats, _conv_of(spec), return_stats, share_x, *expanded)
        shared = x if again is None else again.transpose(1, 2)
        return FusedOutput(y.transpose(1, 2), shared, None if mean is None or var is None else (mean, var))


class FusedOutput(NamedTuple):
    """Output of :meth:`Native.run_fused`.

    Args:
        y: the output of the convolution.
        x: an output of the autograd function if it is shared, else the input.
        stats: mean and biased variance of each channel of y, or None.
    """

    y: Tensor
    x: Tensor
    stats: tuple[Tensor, Tensor] | None


def reads_as_it_is(spec: ConvSpec) -> bool:
    """Whether the kernels' convolution reads the input itself: not padded, nor its windows as channels."""
    return not (spec.pads_separately or has_windows_as_channels(spec))


@lru_cache(maxsize=1024)
def _conv_of(spec: ConvSpec) -> NativeConv:
    """Return the kernels' convolution, or the one to transpose. Its padding is of zeros, the same on both sides."""
    spec = of_windows(spec) if has_windows_as_channels(spec) else spec
    padding = (0,) * len(spec.padding) if spec.pads_separately else spec.padding
    kind = "lifting" if spec.kind == "lifting" else "dense"
    plain = replace(spec, transposed=False, output_padding=(0,) * spec.dimension)
    return native_conv(replace(plain, kind=kind, padding=padding, padding_mode="zeros"))


def _maps(spec: ConvSpec, x: Tensor) -> Tensor:
    """Return x as the kernels read it, (B, |H| or 1, I, *spatial), padded where they cannot."""
    maps = x.unsqueeze(1) if spec.kind == "lifting" else x.transpose(1, 2)
    if has_windows_as_channels(spec):
        return windows_to_channels(spec, maps)
    if spec.pads_separately:
        maps = pad(maps.flatten(0, 1), spec)[0].unflatten(0, maps.shape[:2])
    return maps


def _shape_of_maps(spec: ConvSpec, x: Tensor) -> tuple[int, ...]:
    """Return the shape of :func:`_maps`."""
    if has_windows_as_channels(spec):
        channels = x.shape[1] * math.prod(spec.kernel_size)
        return (x.shape[0], x.shape[2], channels, *spec.output_size(*x.shape[3:]))
    before_and_after = zip(spec.padding[::2], spec.padding[1::2], strict=True)
    added = [sum(pads) if spec.pads_separately else 0 for pads in before_and_after]
    size = (n + pads for n, pads in zip(x.shape[3:], added, strict=True))
    return (x.shape[0], x.shape[2], x.shape[1], *size)


def _convolve(
    inputs: ConvInputs,
    eps: float,
    batch_stats: bool,
    conv: NativeConv,
    return_stats: bool = False,
    share_x: bool = False,
    expanded: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Convolve to (B, |H|, O, *spatial') and add the residual; return also x, if shared, and the statistics."""
    if is_autocast(inputs.x) or not have_kernels_dtypes(inputs):
        result, cast = result_dtype(inputs.x), as_kernels_read(inputs)
        with torch.autocast(inputs.x.device.type, enabled=False):
            y, again, mean, var = _convolve(cast, eps, batch_stats, conv, return_stats, share_x, expanded)
        return y.to(result), again, mean, var
    if can_bypass_dispatcher(inputs.x):
        if torch.is_grad_enabled():
            share_x = share_x and inputs.x.requires_grad  # else what others do with x would need a gradient
            y, again, mean, var = GroupConvFunction.apply(*inputs, eps, batch_stats, conv, return_stats, share_x)
            return y, again, mean, var
        y, mean, var = conv.forward(inputs.contiguous(), eps, return_stats, expanded)  # without autograd's calls
        return y, None, mean, var
    if _is_transformed():
        y = definition(inputs, eps, batch_stats, conv)
    else:
        y = group_conv(*inputs[:4], inputs.residual, *_options_of_conv(conv))
    return y, None, None, None


def _run_transposed(spec: ConvSpec, x: Tensor, inputs: ConvInputs) -> Tensor:
    """Compute a transposed convolution to (B, |H|, I, *spatial')."""
    size, as_channels = spec.output_size(*x.shape[3:]), has_windows_as_channels(spec)
    if as_channels:
        size = tuple(x.shape[3:])
        bias = None if inputs.bias is None else inputs.bias.repeat(math.prod(spec.kernel_size))
        inputs = inputs._replace(bias=bias)
    if torch.compiler.is_compiling():
        y = group_conv_transposed(*as_kernels_read(inputs)[:4], size, *_operator_options(spec)).to(result_dtype(x))
    else:
        y = _transpose(inputs, _conv_of(spec), size)
    return channels_to_windows(spec, y) if as_channels else y


def _transpose(inputs: ConvInputs, conv: NativeConv, size: tuple[int, ...]) -> Tensor:
    """Compute the transposed convolution of x, (B, |H|, O, …), to (B, |H|, I, *size)."""
    x = inputs.x
    if is_autocast(x) or not have_kernels_dtypes(inputs):
        result, cast = result_dtype(x), as_kernels_read(inputs)
        with torch.autocast(x.device.type, enabled=False):
            return _transpose(cast, conv, size).to(result)
    if can_bypass_dispatcher(x):
        if not torch.is_grad_enabled():
            return transpose(inputs, conv, size)
        y: Tensor = TransposedConvFunction.apply(*inputs[:4], conv, size)
        return y
    if _is_transformed():
        return transposed_definition(inputs, conv, size)
    return group_conv_transposed(*inputs[:4], size, *_options_of_conv(conv))  # type: ignore[no-any-return]


def _is_transformed() -> bool:
    """Whether a function transform or forward-mode differentiation is active."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


@constant_to_dynamo
def _operator_options(spec: ConvSpec) -> tuple[Any, ...]:
    return _options_of_conv(_conv_of(spec))


def _options_of_conv(conv: NativeConv) -> tuple[Any, ...]:
    """Return the operators' last arguments."""
    spec = conv.spec
    elements = tuple(entry for matrix in spec.group.elements for row in matrix for entry in row)
    return spec.kind == "lifting", spec.groups, elements, *options_of(spec)
