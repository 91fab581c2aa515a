"""The kernels as PyTorch functions: for ordinary tensors, and as operators for compilers, exporters and autocast."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

from ...groups import PointGroup
from .._filters import full_filter, gather_bank, index_table
from .._geometry import Geometry
from ._call import Call, Inputs, call_for
from ._library import SUFFIXES
from ._maps import remember

Integers = Sequence[int]


def takes(x: Tensor) -> bool:
    """Whether the kernels compute in this type, and not in float32 for want of one."""
    return x.device.type in ("cpu", "meta") and x.dtype in SUFFIXES


def is_ordinary(x: Tensor) -> bool:
    """Whether x is a plain tensor with values, seen by no compiler, tracer, autocast or function transform."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and not x.is_meta
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled(x.device.type)
        and not torch._C._are_functorch_transforms_active()
    )


def is_direct(x: Tensor) -> bool:
    """Whether x is ordinary and no dispatch mode sees what is called either."""
    return is_ordinary(x) and not torch._C._len_torch_dispatch_stack()


def convolve(
    inputs: Inputs, eps: float, batch: bool, call: Call, moments: bool = False, fork: bool = False
) -> tuple[Tensor, Tensor]:
    """Convolve to (B, |H|, O, Y', X') as :class:`sepgroupy.nn.GroupConv2d` defines, and add the shortcut.

    Return the result, and x for whoever else reads it: what that adds to the gradient of x is added as it is written.

    The padding must be of zeros, the same on both sides. Types shorter than float32 are computed in it, autocast's too.

    Args:
        inputs: tensors on the CPU.
        eps: of the norm.
        batch: whether the norm's statistics are those of x, so that gradients pass through them.
        call: the convolution, of a group or lifting to one; the latter of ordinary tensors alone.
        moments: whether to take the result's statistics as it is written, for `recall`.
        fork: whether x is read by others.
    """
    autocast = inputs.x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else inputs.x.dtype
    if inputs.x.dtype not in SUFFIXES:
        inputs = Inputs(*(None if t is None else t.float() for t in inputs))  # type: ignore[arg-type]
    y: Tensor
    x = inputs.x
    if is_direct(x):
        again = None
        if torch.is_grad_enabled():
            y, again, mean, var = GroupConv.apply(*inputs, eps, batch, call, moments, fork)
        else:  # the same without the calls that autograd costs
            y, mean, var = _forward(inputs, eps, call, moments)
        if mean is not None and var is not None:
            remember(y, mean, var)
        return y.to(dtype), x if again is None else again
    if torch._C._are_functorch_transforms_active():
        y = _definition(inputs, eps, batch, call)
    else:
        elements = [entry for matrix in call.group.elements for row in matrix for entry in row]
        y = group_conv(*inputs, eps, batch, elements, *_options(call.geometry))
    return y.to(dtype), x


class GroupConv(torch.autograd.Function):
    """The convolution of ordinary tensors, without the calls that an operator costs. Differentiable twice."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Convolve; the arguments are the inputs, eps, batch, the call, and whether to take moments and to fork.

        Return the result, x itself if it is to fork, and mean and variance if they are wanted.
        """
        *tensors, ctx.eps, ctx.batch, ctx.call, moments, fork = args
        ctx.save_for_backward(*tensors[:-1])  # not the shortcut
        ctx.set_materialize_grads(False)
        y, mean, var = _forward(Inputs(*tensors), ctx.eps, ctx.call, moments)
        if mean is not None and var is not None:
            ctx.mark_non_differentiable(mean, var)
        return y, tensors[0] if fork else None, mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, more: Tensor | None, *_: None) -> tuple[Any, ...]:
        """Return the gradients, through the definition if they are to be differentiated in turn."""
        if grad is None:
            return (more, *(None,) * 13)
        inputs, needs = Inputs(*ctx.saved_tensors), ctx.needs_input_grad
        shortcut = grad if needs[8] else None
        if not torch.is_grad_enabled():
            gradients = _backward(grad, inputs, ctx.eps, ctx.batch, ctx.call, needs[0], more)
            return (*gradients, None, None, shortcut, *(None,) * 5)
        y = _definition(inputs, ctx.eps, ctx.batch, ctx.call)
        wanted = [t for t, need in zip(inputs[:8], needs, strict=False) if need and t is not None]
        found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
        dx, *others = (next(found) if need else None for need in needs[:8])
        return (dx if dx is None or more is None else dx + more, *others, shortcut, *(None,) * 5)


def _contiguous(inputs: Inputs) -> Inputs:
    return Inputs(*(None if t is None else t.contiguous() for t in inputs))  # type: ignore[arg-type]


def _forward(
    inputs: Inputs, eps: float, call: Call, moments: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return call.forward(_contiguous(inputs), eps, moments)


def _backward(
    grad: Tensor,
    inputs: Inputs,
    eps: float,
    batch: bool,
    call: Call,
    needs_x: bool = True,
    more: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, to which `more` is added, of weight, depthwise, bias, gamma and beta."""
    grad, inputs = grad.contiguous(), _contiguous(inputs)
    if call.lifting:
        dweight, lifted_dbias = call.backward_of_lifting(grad, inputs.x, inputs.weight)
        dbias = None if inputs.bias is None else lifted_dbias
        return _planes_grad(grad, inputs, call) if needs_x else None, dweight, None, dbias, None, None
    more = None if more is None else more.contiguous()
    *gradients, dgamma, dbeta = call.backward(grad, inputs, eps, batch, more)
    return *gradients, None if inputs.bias is None else grad.sum((0, 1, 3, 4)), dgamma, dbeta


def _planes_grad(grad: Tensor, inputs: Inputs, call: Call) -> Tensor:
    size, options = inputs.x.flatten(1, 2).shape, _options(call.geometry)
    dx = conv2d_input(size, _bank(inputs, call), grad.flatten(1, 2), *options)  # type: ignore[arg-type]
    return dx.view_as(inputs.x)


def _definition(inputs: Inputs, eps: float, batch: bool, call: Call) -> Tensor:
    """Compute the same by PyTorch's own operations, for second derivatives and function transforms."""
    x, affine, order = inputs.x, inputs.affine(eps, batch), call.group.order
    if affine is not None:
        x = affine.relu(x.flatten(0, 1), derive=True).view_as(x)
    bias = None if inputs.bias is None else inputs.bias.expand(order, -1).flatten()
    y = F.conv2d(x.flatten(1, 2), _bank(inputs, call), bias, *_options(call.geometry)).unflatten(1, (order, -1))
    return y if inputs.shortcut is None else y + inputs.shortcut


def _bank(inputs: Inputs, call: Call) -> Tensor:
    filters = inputs.weight if inputs.depthwise is None else full_filter(inputs.depthwise, inputs.weight)
    return gather_bank(filters, index_table(call.group, call.geometry.kernel_size, fiber=not call.lifting))


def _options(geometry: Geometry) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    return geometry.stride, (geometry.padding[0], geometry.padding[2]), geometry.dilation


# ---- the same as an operator, for torch.compile, torch.export, autocast and dispatch modes ---------------------------

_TENSORS = (
    "Tensor x, Tensor weight, Tensor? depthwise, Tensor? bias, Tensor? gamma, Tensor? beta, Tensor? mean, Tensor? var"
)
_OPTIONS = "float eps, bool batch, int[] elements, int[] stride, int[] padding, int[] dilation"


@torch.library.custom_op(
    "sepgroupy::group_conv",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_TENSORS}, Tensor? shortcut, {_OPTIONS}) -> Tensor",
)
def group_conv(*args: Any) -> Tensor:
    """Convolve on the group whose elements' entries are given."""
    *tensors, eps, _, elements, stride, padding, dilation = args
    inputs = Inputs(*tensors)
    return _forward(inputs, eps, _parse(inputs, elements, stride, padding, dilation))[0]


@torch.library.custom_op(
    "sepgroupy::group_conv_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor grad, {_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def group_conv_backward(*args: Any) -> tuple[Tensor, ...]:
    """Return the gradients of x, weight, depthwise, bias, gamma and beta, empty for what there is not."""
    grad, *tensors, eps, batch, elements, stride, padding, dilation = args
    inputs = Inputs(*tensors)
    gradients = _backward(grad, inputs, eps, batch, _parse(inputs, elements, stride, padding, dilation))
    return tuple(grad.new_empty(0) if g is None else g for g in gradients)


def _parse(inputs: Inputs, elements: Integers, *geometry: Integers) -> Call:
    kernel = (inputs.weight if inputs.depthwise is None else inputs.depthwise).shape[-2:]
    return _call_of(tuple(elements), (int(kernel[0]), int(kernel[1])), *map(tuple, geometry))


@lru_cache(maxsize=1024)
def _call_of(elements: tuple[int, ...], kernel: tuple[int, int], *geometry: tuple[int, int]) -> Call:
    rows = zip(elements[::2], elements[1::2], strict=True)
    group = PointGroup(tuple(zip(rows, rows, strict=True)))
    stride, padding, dilation = geometry
    return call_for(group, Geometry.parse(group, kernel, stride, padding, dilation))


@group_conv.register_fake
def _(*args: Any) -> Tensor:
    inputs = Inputs(*args[:9])
    return inputs.x.new_empty(
        _parse(inputs, *args[11:]).output_shape(tuple(inputs.x.shape), tuple(inputs.weight.shape))
    )


@group_conv_backward.register_fake
def _(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return tuple(grad.new_empty(0 if t is None else t.shape) for t in args[:6])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:8])  # not the shortcut
    ctx.options = inputs[9:]


def _operator_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    gradients = group_conv_backward(grad, *ctx.saved_tensors, *ctx.options)
    found = (g if need else None for g, need in zip(gradients, ctx.needs_input_grad, strict=False))
    shortcut = grad if ctx.needs_input_grad[8] else None
    return (*found, None, None, shortcut, *(None,) * len(ctx.options))


group_conv.register_autograd(_operator_backward, setup_context=_keep)
for _operator in (group_conv, group_conv_backward):
    _operator.register_autocast("cpu", torch.float32)  # the kernels know no shorter type
