"""The kernels' convolution and its derivatives, as autograd needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

from ..base import CONV, convolve, repeat_bias
from ..constants import group_index, spatial_index
from ..conv_spec import ConvSpec
from ..filter_bank import expand_filter, full_filter
from ..group_axis import merge_group_into_channels, split_group_from_channels
from .batch_norm import batch_statistics, needs_definition
from .launch import ConvInputs, NativeConv

_INPUT_GRAD: dict[int, Any] = {1: conv1d_input, 2: conv2d_input, 3: conv3d_input}


class GroupConvFunction(torch.autograd.Function):
    """The convolution of plain eager tensors, without the calls that an operator costs. Differentiable twice."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Convolve; the arguments are the inputs, eps, batch_stats, the convolution, return_stats and share_x."""
        *tensors, ctx.eps, ctx.batch_stats, ctx.conv, return_stats, share_x = args
        inputs = ConvInputs(*tensors)
        products = ctx.conv.new_products(inputs) if any(ctx.needs_input_grad[1:3]) else None
        ctx.save_for_backward(*tensors[:-1], products)  # not the residual
        ctx.set_materialize_grads(False)
        y, mean, var = ctx.conv.forward(inputs.contiguous(), ctx.eps, return_stats, products=products)
        if mean is not None and var is not None:
            ctx.mark_non_differentiable(mean, var)
        return y, tensors[0] if share_x else None, mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, other_grad: Tensor | None, *_: None) -> tuple[Any, ...]:
        """Return the gradients, through the definition if they are to be differentiated in turn."""
        if grad is None:
            return (other_grad, *(None,) * 13)
        *tensors, products = ctx.saved_tensors
        inputs, needs = ConvInputs(*tensors), ctx.needs_input_grad
        residual = grad if needs[8] else None
        if not needs_definition(grad):
            gradients = differentiate(grad, inputs, ctx.eps, ctx.batch_stats, ctx.conv, needs, other_grad, products)
            return (*gradients, None, None, residual, *(None,) * 5)
        wanted = [t for t, need in zip(inputs[:8], needs, strict=False) if need and t is not None]
        with torch.enable_grad():
            y = definition(inputs, ctx.eps, ctx.batch_stats, ctx.conv)
            found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True) if wanted else ())
        dx, *others = (next(found) if need else None for need in needs[:8])
        return (dx if dx is None or other_grad is None else dx + other_grad, *others, residual, *(None,) * 5)


class TransposedConvFunction(torch.autograd.Function):
    """The transposed convolution of plain eager tensors. Differentiable twice."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        """Convolve; the arguments are x, weight, depthwise, bias, the convolution to transpose and the size of y."""
        *tensors, ctx.conv, ctx.size = args
        ctx.save_for_backward(*tensors)
        return transpose(ConvInputs(*tensors), ctx.conv, ctx.size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Return the gradients, through the definition if they are to be differentiated in turn."""
        inputs, needs, conv = ConvInputs(*ctx.saved_tensors), ctx.needs_input_grad[:4], ctx.conv
        if needs_definition(grad):
            wanted = [t for t, need in zip(inputs, needs, strict=False) if need and t is not None]
            with torch.enable_grad():
                y = transposed_definition(inputs, conv, ctx.size)
                found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True) if wanted else ())
            return (*(next(found) if need else None for need in needs), None, None)
        grad, inputs = grad.contiguous(), inputs.contiguous()
        reversed_inputs = ConvInputs(grad, inputs.weight, inputs.depthwise)
        dx = conv.forward(reversed_inputs)[0] if needs[0] else None
        dweight = ddepthwise = None
        if needs[1] or needs[2]:
            _, dweight, ddepthwise, *_ = conv.backward(inputs.x, reversed_inputs, wants_x=False)
        dbias = _channel_sums(grad, inputs.weight.dtype) if needs[3] else None
        found_filters = (dweight if needs[1] else None, ddepthwise if needs[2] else None)
        return (dx, *found_filters, dbias, None, None)


def transpose(inputs: ConvInputs, conv: NativeConv, size: tuple[int, ...]) -> Tensor:
    """Return the transposed convolution of x (B, |H|, O, …), with its bias: (B, |H|, I, *size)."""
    x, weight, depthwise, bias, *_ = inputs.contiguous()
    return conv.transpose(x, weight, depthwise, bias, size)


def transposed_definition(inputs: ConvInputs, conv: NativeConv, size: tuple[int, ...]) -> Tensor:
    """Compute the same by PyTorch's operations."""
    spec = replace(conv.spec, transposed=True, output_padding=(0,) * conv.spec.dimension)
    added = [n - least for n, least in zip(size, spec.output_size(*inputs.x.shape[3:]), strict=True)]
    spec = replace(spec, output_padding=tuple(added))
    channels = merge_group_into_channels(inputs.x.to(inputs.weight.dtype).transpose(1, 2), 1)
    y = convolve(channels, _filter_bank(inputs, spec), repeat_bias(inputs.bias, spec), spec, 1)
    return split_group_from_channels(y, spec.group.order, 1).transpose(1, 2).to(inputs.x.dtype)


def differentiate(
    grad: Tensor,
    inputs: ConvInputs,
    eps: float,
    batch_stats: bool,
    conv: NativeConv,
    needs: Sequence[bool],
    other_grad: Tensor | None = None,
    products: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, to which ``other_grad`` is added, of weight, depthwise, bias, gamma and beta.

    Those that are not needed are None.
    """
    grad, inputs = grad.contiguous(), inputs.contiguous()
    dx = dweight = ddepthwise = dbias = dgamma = dbeta = None
    if conv.direct:
        of_images = conv.spec.kind == "lifting"
        wants_x = needs[0] and not of_images
        if wants_x or needs[1] or needs[2]:
            dx, dweight, ddepthwise, dbias = conv.backward_directly(grad, inputs, wants_x, needs[1] or needs[2])
        if needs[0] and of_images:
            dx = _images_grad(grad, inputs, conv.spec)
    else:
        wants_x, wants_filters = needs[0] or needs[4] or needs[5], needs[1] or needs[2]
        other_grad = None if other_grad is None else other_grad.contiguous()
        if wants_x or wants_filters:
            dx, dweight, ddepthwise, dgamma, dbeta = conv.backward(
                grad, inputs, eps, batch_stats, other_grad, wants_x, wants_filters, products
            )
    if needs[3] and dbias is None:
        dbias = _channel_sums(grad, inputs.weight.dtype)
    found = (dx, dweight, ddepthwise, dbias, dgamma, dbeta)
    return tuple(g if need else None for g, need in zip(found, needs, strict=False))


def _channel_sums(maps: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sums, (C,), of feature maps (B, |H|, C, …) in a dtype, without a copy of bfloat16 maps in float32."""
    if maps.dtype is dtype or not maps.numel():
        return maps.flatten(3).sum(3).sum((0, 1)).to(dtype)
    mean, _ = batch_statistics(maps.flatten(0, 1).flatten(2).unsqueeze(2))
    return mean * (maps.numel() // maps.shape[2])


def _images_grad(grad: Tensor, inputs: ConvInputs, spec: ConvSpec) -> Tensor:
    size, channels = inputs.x.flatten(1, 2).shape, merge_group_into_channels(grad.transpose(1, 2), spec.groups)
    bank = _filter_bank(inputs, spec)
    dx = _INPUT_GRAD[spec.dimension](size, bank, channels.to(bank.dtype), *options_of(spec), spec.groups)
    return dx.view_as(inputs.x).to(inputs.x.dtype)


def definition(inputs: ConvInputs, eps: float, batch_stats: bool, conv: NativeConv) -> Tensor:
    """Compute the same by PyTorch's operations, for second and forward-mode derivatives and function transforms."""
    x, norm, spec = inputs.x.to(inputs.weight.dtype), inputs.norm(eps, batch_stats), conv.spec
    if norm is not None:
        x = norm(x.flatten(0, 1)).view_as(x)
    channels, bias = merge_group_into_channels(x.transpose(1, 2), spec.groups), repeat_bias(inputs.bias, spec)
    y = CONV[spec.dimension](channels, _filter_bank(inputs, spec), bias, *options_of(spec), spec.groups)
    y = split_group_from_channels(y, spec.group.order, spec.groups).transpose(1, 2)
    return (y if inputs.residual is None else y + inputs.residual).to(inputs.x.dtype)


def _filter_bank(inputs: ConvInputs, spec: ConvSpec) -> Tensor:
    weight = inputs.weight if inputs.depthwise is None else full_filter(inputs.depthwise, inputs.weight)
    (table,) = (spatial_index if spec.kind == "lifting" else group_index)(spec, weight.device)
    return expand_filter(weight, table, spec.groups)


def options_of(spec: ConvSpec) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return stride, padding and dilation, as PyTorch's convolutions take them."""
    return spec.stride, spec.padding[::2], spec.dilation
