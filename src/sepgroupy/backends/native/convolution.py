"""The kernels' convolution and its derivatives, as autograd needs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

from ..base import CONV
from ..constants import group_index, planar_index
from ..conv_spec import ConvSpec
from ..filter_bank import expand_filter, full_filter
from .launch import ConvInputs, NativeConv

_INPUT_GRAD: dict[int, Any] = {1: conv1d_input, 2: conv2d_input, 3: conv3d_input}


class GroupConv(torch.autograd.Function):
    """The convolution of plain eager tensors, without the calls that an operator costs. Differentiable twice."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Convolve; the arguments are the inputs, eps, batch_stats, the convolution, return_stats and share_x."""
        *tensors, ctx.eps, ctx.batch_stats, ctx.conv, return_stats, share_x = args
        ctx.save_for_backward(*tensors[:-1])  # not the residual
        ctx.set_materialize_grads(False)
        y, mean, var = ctx.conv.forward(ConvInputs(*tensors).contiguous(), ctx.eps, return_stats)
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
            gradients = differentiate(grad, inputs, ctx.eps, ctx.batch_stats, ctx.conv, needs, other_grad)
            return (*gradients, None, None, residual, *(None,) * 5)
        y = definition(inputs, ctx.eps, ctx.batch_stats, ctx.conv)
        wanted = [t for t, need in zip(inputs[:8], needs, strict=False) if need and t is not None]
        found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True) if wanted else ())
        dx, *others = (next(found) if need else None for need in needs[:8])
        return (dx if dx is None or other_grad is None else dx + other_grad, *others, residual, *(None,) * 5)


def differentiate(
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
    grad, inputs = grad.contiguous(), inputs.contiguous()
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
    size, options = inputs.x.flatten(1, 2).shape, options_of(conv.spec)
    return _INPUT_GRAD[conv.spec.dimension](
        size, _filter_bank(inputs, conv.spec), grad.flatten(1, 2), *options
    ).view_as(inputs.x)


def definition(inputs: ConvInputs, eps: float, batch_stats: bool, conv: NativeConv) -> Tensor:
    """Compute the same by PyTorch's operations, for second and forward-mode derivatives and function transforms."""
    x, norm, order = inputs.x, inputs.norm(eps, batch_stats), conv.spec.group.order
    if norm is not None:
        x = norm(x.flatten(0, 1)).view_as(x)
    bias = None if inputs.bias is None else inputs.bias.expand(order, -1).flatten()
    y = CONV[conv.spec.dimension](x.flatten(1, 2), _filter_bank(inputs, conv.spec), bias, *options_of(conv.spec))
    y = y.unflatten(1, (order, y.shape[1] // order))
    return y if inputs.residual is None else y + inputs.residual


def _filter_bank(inputs: ConvInputs, spec: ConvSpec) -> Tensor:
    weight = inputs.weight if inputs.depthwise is None else full_filter(inputs.depthwise, inputs.weight)
    (table,) = (planar_index if spec.kind == "lifting" else group_index)(spec, weight.device)
    return expand_filter(weight, table)


def options_of(spec: ConvSpec) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return stride, padding and dilation, as PyTorch's convolutions take them."""
    return spec.stride, spec.padding[::2], spec.dilation
