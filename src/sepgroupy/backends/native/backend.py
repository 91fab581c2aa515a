"""The kernels as a backend: a function of plain eager tensors, an operator for compilers and dispatch modes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

from ...errors import ArgumentError
from ..base import CONV, Backend, Filters, can_bypass_dispatcher, pad
from ..batch_norm import BatchNormReLU
from ..constants import group_index, planar_index
from ..conv_spec import ConvSpec
from ..filter_bank import expand_filter, full_filter, with_group_axis
from ..tracing import constant_to_dynamo
from . import flops
from .launch import (
    ConvInputs,
    NativeConv,
    group_of_entries,
    max_in_channels,
    native_conv,
    unsupported_reason,
)
from .library import DTYPES, kernels

Integers = Sequence[int]

_INPUT_GRAD: dict[int, Any] = {1: conv1d_input, 2: conv2d_input, 3: conv3d_input}


class Native(Backend):
    """Compiled kernels: lifting directly, all else in the group's Fourier domain (docs/native.md)."""

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
        """Compute on CPUs."""
        return device == "cpu"

    def unsupported_reason(self, spec: ConvSpec, x: Tensor | None = None) -> str | None:
        """Compute small kernels and strides, without blocks of channels, for groups of order up to 48, on a CPU."""
        if x is not None and x.device.type not in ("cpu", "meta"):
            return f"an input on a CPU, not on {x.device}"
        if x is not None and x.shape[1] > max_in_channels(spec):
            return f"at most {max_in_channels(spec)} channels to lift with this kernel"
        return unsupported_reason(spec)

    def expand_filters(self, spec: ConvSpec, parameters: Mapping[str, Tensor]) -> Filters:
        """Return the parameters themselves, weight or pointwise and depthwise weight: the kernels expand them."""
        if "weight" in parameters:
            return (parameters["weight"], None)
        return parameters["pointwise_weight"], with_group_axis(parameters["depthwise_weight"], spec.dimension)

    def expand_filters_for_reuse(self, spec: ConvSpec, parameters: Mapping[str, Tensor], x: Tensor) -> Filters:
        """Return also the filters in the Fourier domain, as the kernels read them."""
        weight, depthwise = (
            None if f is None else f.detach().contiguous() for f in self.expand_filters(spec, parameters)
        )
        assert weight is not None
        conv, inner = _conv_after_padding(spec), _shape_after_padding(spec, x)
        return weight, depthwise, conv.expand_filters(inner, weight, depthwise)

    def reuse_key(self, spec: ConvSpec, x: Tensor) -> Hashable:
        """Return the layout of expanded filters, which depends on whether rows fill vectors; None if there are none."""
        if spec.kind == "lifting" or not x.shape[1] or x.dtype not in DTYPES or not can_bypass_dispatcher(x):
            return None
        return _conv_after_padding(spec).filter_layout(_shape_after_padding(spec, x)[-1], x.dtype)

    def run(self, spec: ConvSpec, x: Tensor, filters: Filters, bias: Tensor | None) -> Tensor:
        """Convolve."""
        if not torch.compiler.is_compiling():
            return self.run_fused(spec, x, filters, bias).y
        return group_conv(_padded_maps(spec, x), *filters, bias, None, *_operator_options(spec)).transpose(1, 2)

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
        norm nothing is padded separately.

        Args:
            spec: the convolution.
            x: its input.
            filters: of :meth:`expand_filters`.
            bias: (O,) or None.
            norm: batch norm and ReLU before the convolution.
            residual: added to the result.
            return_stats: also return mean and biased variance of each output channel, if there are values.
            share_x: also return x, for others to read: the kernels add the gradient of what they do with it.
        """
        weight, depthwise, *expanded = filters
        assert weight is not None
        added = None if residual is None else residual.transpose(1, 2)
        inputs = ConvInputs(_padded_maps(spec, x), weight, depthwise, bias, residual=added)
        if norm is not None:
            inputs = inputs._replace(gamma=norm.gamma, beta=norm.beta, mean=norm.mean, var=norm.var)
        eps, batch_stats = (norm.eps, norm.batch_stats) if norm is not None else (0.0, False)
        share_x = share_x and not spec.pads_separately and spec.kind != "lifting"
        y, again, mean, var = _convolve(
            inputs, eps, batch_stats, _conv_after_padding(spec), return_stats, share_x, *expanded
        )
        shared = x if again is None else again.transpose(1, 2)
        return FusedOutput(y.transpose(1, 2), shared, None if mean is None or var is None else (mean, var))


class FusedOutput(NamedTuple):
    """What :meth:`Native.run_fused` returns."""

    y: Tensor
    x: Tensor
    stats: tuple[Tensor, Tensor] | None


@lru_cache(maxsize=1024)
def _conv_after_padding(spec: ConvSpec) -> NativeConv:
    """Return the kernels' convolution, whose padding is of zeros and the same on both sides."""
    padding = (0,) * len(spec.padding) if spec.pads_separately else spec.padding
    kind = "lifting" if spec.kind == "lifting" else "dense"
    return native_conv(
        replace(spec, kind=kind, padding=padding, padding_mode="zeros", output_padding=(0,) * spec.dimension)
    )


def _padded_maps(spec: ConvSpec, x: Tensor) -> Tensor:
    """Return x as the kernels read it, (B, |H| or 1, I, *spatial), padded where they cannot."""
    maps = x.unsqueeze(1) if spec.kind == "lifting" else x.transpose(1, 2)
    if spec.pads_separately:
        maps = pad(maps.flatten(0, 1), spec)[0].unflatten(0, maps.shape[:2])
    return maps


def _shape_after_padding(spec: ConvSpec, x: Tensor) -> tuple[int, ...]:
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
    """Convolve to (B, |H|, O, *spatial') and add the residual; return also x, if shared, and the statistics.

    Dtypes shorter than float32 are computed in it, autocast's too.
    """
    options = (eps, batch_stats, conv, return_stats, share_x, expanded)
    if inputs.x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            y, again, mean, var = _convolve(_in_float32(inputs), *options)
        return y.to(torch.get_autocast_dtype("cpu")), again, mean, var
    if inputs.x.dtype not in DTYPES:
        y, again, mean, var = _convolve(_in_float32(inputs), *options)
        return y.to(inputs.x.dtype), again, mean, var
    if can_bypass_dispatcher(inputs.x):
        if torch.is_grad_enabled():
            share_x = share_x and inputs.x.requires_grad  # else what others do with x would need a gradient
            y, again, mean, var = GroupConv.apply(*inputs, eps, batch_stats, conv, return_stats, share_x)
            return y, again, mean, var
        y, mean, var = conv.forward(_contiguous(inputs), eps, return_stats, expanded)  # without autograd's calls
        return y, None, mean, var
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        y = _definition(inputs, eps, batch_stats, conv)
    else:
        y = group_conv(*inputs[:4], inputs.residual, *_operator_options(conv.spec))
    return y, None, None, None


def _in_float32(inputs: ConvInputs) -> ConvInputs:
    """Return inputs whose dtypes may differ, as under autocast, in one that the kernels compute in."""
    wide = torch.float64 if inputs.x.dtype == torch.float64 else torch.float32
    return ConvInputs(*(None if t is None else t.to(wide) for t in inputs))  # type: ignore[arg-type]


class GroupConv(torch.autograd.Function):
    """The convolution of plain eager tensors, without the calls that an operator costs. Differentiable twice."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Convolve; the arguments are the inputs, eps, batch_stats, the convolution, return_stats and share_x."""
        *tensors, ctx.eps, ctx.batch_stats, ctx.conv, return_stats, share_x = args
        ctx.save_for_backward(*tensors[:-1])  # not the residual
        ctx.set_materialize_grads(False)
        y, mean, var = ctx.conv.forward(_contiguous(ConvInputs(*tensors)), ctx.eps, return_stats)
        if mean is not None and var is not None:
            ctx.mark_non_differentiable(mean, var)
        return y, tensors[0] if share_x else None, mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, other_grad: Tensor | None, *_: None) -> tuple[Any, ...]:
        """Return the gradients, through the definition if they are to be differentiated in turn."""
        if grad is None:
            return (other_grad, *(None,) * 13)
        inputs, needs = ConvInputs(*ctx.saved_tensors), ctx.needs_input_grad
        residual = grad if needs[8] else None
        if not torch.is_grad_enabled():
            gradients = _backward(grad, inputs, ctx.eps, ctx.batch_stats, ctx.conv, needs, other_grad)
            return (*gradients, None, None, residual, *(None,) * 5)
        y = _definition(inputs, ctx.eps, ctx.batch_stats, ctx.conv)
        wanted = [t for t, need in zip(inputs[:8], needs, strict=False) if need and t is not None]
        found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True) if wanted else ())
        dx, *others = (next(found) if need else None for need in needs[:8])
        return (dx if dx is None or other_grad is None else dx + other_grad, *others, residual, *(None,) * 5)


def _contiguous(inputs: ConvInputs) -> ConvInputs:
    return ConvInputs(*(None if t is None else t.contiguous() for t in inputs))  # type: ignore[arg-type]


def _backward(
    grad: Tensor,
    inputs: ConvInputs,
    eps: float,
    batch_stats: bool,
    conv: NativeConv,
    needs: Sequence[bool],
    other_grad: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, to which ``other_grad`` is added, of weight, depthwise, bias, gamma and beta.

    Those that are not needed are None.
    """
    grad, inputs = grad.contiguous(), _contiguous(inputs)
    dx = dweight = ddepthwise = dbias = dgamma = dbeta = None
    if conv.lifting:
        dx = _images_grad(grad, inputs, conv) if needs[0] else None
        if needs[1]:
            dweight, dbias = conv.backward_of_lifting(grad, inputs.x, inputs.weight)
    else:
        wants_x, wants_filters = needs[0] or needs[4] or needs[5], needs[1] or needs[2]
        other_grad = None if other_grad is None else other_grad.contiguous()
        if wants_x or wants_filters:
            dx, dweight, ddepthwise, dgamma, dbeta = conv.backward(
                grad, inputs, eps, batch_stats, other_grad, wants_x, wants_filters
            )
    if needs[3] and dbias is None:
        dbias = grad.flatten(3).sum(3).sum((0, 1))
    found = (dx, dweight, ddepthwise, dbias, dgamma, dbeta)
    return tuple(g if need else None for g, need in zip(found, needs, strict=False))


def _images_grad(grad: Tensor, inputs: ConvInputs, conv: NativeConv) -> Tensor:
    size, options = inputs.x.flatten(1, 2).shape, _options(conv.spec)
    return _INPUT_GRAD[conv.spec.dimension](
        size, _filter_bank(inputs, conv.spec), grad.flatten(1, 2), *options
    ).view_as(inputs.x)


def _definition(inputs: ConvInputs, eps: float, batch_stats: bool, conv: NativeConv) -> Tensor:
    """Compute the same by PyTorch's operations, for second and forward-mode derivatives and function transforms."""
    x, norm, order = inputs.x, inputs.norm(eps, batch_stats), conv.spec.group.order
    if norm is not None:
        x = norm(x.flatten(0, 1)).view_as(x)
    bias = None if inputs.bias is None else inputs.bias.expand(order, -1).flatten()
    y = CONV[conv.spec.dimension](x.flatten(1, 2), _filter_bank(inputs, conv.spec), bias, *_options(conv.spec))
    y = y.unflatten(1, (order, y.shape[1] // order))
    return y if inputs.residual is None else y + inputs.residual


def _filter_bank(inputs: ConvInputs, spec: ConvSpec) -> Tensor:
    weight = inputs.weight if inputs.depthwise is None else full_filter(inputs.depthwise, inputs.weight)
    (table,) = (planar_index if spec.kind == "lifting" else group_index)(spec, weight.device)
    return expand_filter(weight, table)


def _options(spec: ConvSpec) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    return spec.stride, spec.padding[::2], spec.dilation


@constant_to_dynamo
def _operator_options(spec: ConvSpec) -> tuple[Any, ...]:
    elements = tuple(entry for matrix in spec.group.elements for row in matrix for entry in row)
    return spec.kind == "lifting", elements, *_options(_conv_after_padding(spec).spec)


# ---- the same as an operator, for torch.compile, autocast and dispatch modes -----------------------------------------

_TENSORS = "Tensor x, Tensor weight, Tensor? depthwise, Tensor? bias"
_OPTIONS = "bool lifting, int[] elements, int[] stride, int[] padding, int[] dilation"


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
    return _conv_of(inputs, *options).forward(_contiguous(inputs))[0]


@torch.library.custom_op(
    "sepgroupy::group_conv_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor grad, {_TENSORS}, bool[] needs, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def group_conv_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """Return the gradients of x, weight, depthwise and bias, empty where they are not needed."""
    inputs, needs, options = ConvInputs(*args[:4]), args[4], args[5:]
    gradients = _backward(grad, inputs, 0.0, False, _conv_of(inputs, *options), (*needs, False, False))
    return tuple(grad.new_empty(0) if g is None else g for g in gradients[:4])


def _conv_of(inputs: ConvInputs, lifting: bool, elements: Integers, *geometry: Integers) -> NativeConv:
    filters = inputs.weight if inputs.depthwise is None else inputs.depthwise
    if not (kernel := filters.shape[3:]):
        raise ArgumentError(f"a filter has shape {tuple(filters.shape)}; the kernels read (O, I, |H|, k, …)")
    kind = "lifting" if lifting else "dense"
    return _conv_of_elements(kind, tuple(elements), tuple(map(int, kernel)), *map(tuple, geometry))


@lru_cache(maxsize=1024)
def _conv_of_elements(
    kind: str, elements: tuple[int, ...], kernel: tuple[int, ...], *geometry: tuple[int, ...]
) -> NativeConv:
    group = group_of_entries(elements, len(kernel))
    stride, padding, dilation = geometry
    return native_conv(ConvSpec.parse(group, kind, kernel, stride, padding, dilation))


@group_conv.register_fake
def _(x: Tensor, weight: Tensor, depthwise: Tensor | None, bias: Tensor | None, residual: Any, *options: Any) -> Tensor:
    conv = _conv_of(ConvInputs(x, weight, depthwise, bias), *options)
    return x.new_empty(conv.output_shape(x.shape, weight.shape))


@group_conv_backward.register_fake
def _(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return tuple(
        grad.new_empty(t.shape if t is not None and need else 0) for t, need in zip(args[:4], args[4], strict=True)
    )


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
for _operator in (group_conv, group_conv_backward):
    _operator.register_autocast("cpu", torch.float32)  # the kernels know no shorter dtype
flops.register()
