"""The kernels as PyTorch functions: for ordinary tensors, and as operators for compilers, exporters and autocast."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...groups import PointGroup
from .._filters import full_filter, gather_bank, index_table
from .._geometry import Geometry
from ._library import SUFFIXES, Call, call_for

Integers = Sequence[int]


class Inputs(NamedTuple):
    """What is convolved, in this order everywhere: relu(norm(x)) where there are a mean and a variance, else x."""

    x: Tensor  # (B, |H|, I, Y, X)
    weight: Tensor  # (O, I, |H|, k, k), or (O, I, |H|, 1, 1) with a depthwise factor
    depthwise: Tensor | None = None  # (O, 1, 1, k, k)
    bias: Tensor | None = None  # (O,)
    gamma: Tensor | None = None  # (I,), of the norm
    beta: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None

    def affine_map(self, eps: float) -> tuple[Tensor | None, Tensor | None]:
        """Return scale and shift of the norm."""
        if self.mean is None or self.var is None:
            return None, None
        scale = (self.var + eps).rsqrt()
        scale = scale if self.gamma is None else scale * self.gamma
        return scale, -self.mean * scale if self.beta is None else torch.addcmul(self.beta, self.mean, scale, value=-1)

    def contiguous(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return x and the factors of the filter as the kernels read them."""
        depthwise = None if self.depthwise is None else self.depthwise.contiguous()
        return self.x.contiguous(), self.weight.contiguous(), depthwise


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


def convolve(inputs: Inputs, eps: float, batch: bool, group: PointGroup, geometry: Geometry) -> Tensor:
    """Convolve to (B, |H|, O, Y', X') as :class:`sepgroupy.nn.GroupConv2d` defines.

    The padding must be of zeros, the same on both sides. Types shorter than float32 are computed in it, autocast's too.

    Args:
        inputs: tensors on the CPU.
        eps: of the norm.
        batch: whether the norm's statistics are those of x, so that gradients pass through them.
        group: the point group.
        geometry: stride, padding and dilation.
    """
    autocast = inputs.x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else inputs.x.dtype
    if inputs.x.dtype not in SUFFIXES:
        inputs = Inputs(*(None if t is None else t.float() for t in inputs))  # type: ignore[arg-type]
    y: Tensor
    if is_ordinary(inputs.x) and not torch._C._len_torch_dispatch_stack():
        y = GroupConv.apply(*inputs, eps, batch, call_for(group, geometry))
    elif torch._C._are_functorch_transforms_active():
        y = _definition(inputs, eps, batch, call_for(group, geometry))
    else:
        elements = [entry for matrix in group.elements for row in matrix for entry in row]
        padding = [geometry.padding[0], geometry.padding[2]]
        y = group_conv(*inputs, eps, batch, elements, geometry.stride, padding, geometry.dilation)
    return y.to(dtype)


class GroupConv(torch.autograd.Function):
    """The convolution of ordinary tensors, without the calls that an operator costs. Differentiable twice."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        """Convolve; the arguments are the inputs, eps, batch and the call."""
        *tensors, ctx.eps, ctx.batch, ctx.call = args
        ctx.save_for_backward(*tensors)
        return _forward(Inputs(*tensors), ctx.eps, ctx.call)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Return the gradients, through the definition if they are to be differentiated in turn."""
        inputs, needs = Inputs(*ctx.saved_tensors), ctx.needs_input_grad
        if not torch.is_grad_enabled():
            return (*_backward(grad, inputs, ctx.eps, ctx.batch, ctx.call), *(None,) * 5)
        y = _definition(inputs, ctx.eps, ctx.batch, ctx.call)
        wanted = [t for t, need in zip(inputs, needs, strict=False) if need and t is not None]
        found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
        return tuple(next(found) if need else None for need in needs)


def _forward(inputs: Inputs, eps: float, call: Call) -> Tensor:
    bias = None if inputs.bias is None else inputs.bias.contiguous()
    return call.forward(*inputs.contiguous(), bias, *inputs.affine_map(eps))


def _backward(grad: Tensor, inputs: Inputs, eps: float, batch: bool, call: Call) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, weight, depthwise, bias, gamma and beta."""
    x, weight, depthwise = inputs.contiguous()
    dx, dweight, ddepthwise, dnorm = call.backward(grad.contiguous(), x, weight, depthwise, *inputs.affine_map(eps))
    dbias = None if inputs.bias is None else grad.sum((0, 1, 3, 4))
    if inputs.mean is None or inputs.var is None:
        return dx, dweight, ddepthwise, dbias, None, None
    # x̂ = (x - μ)/σ, z = γ·x̂ + β: dβ = Σ dz, dγ = Σ dz·x̂, and through the statistics dx -= γ/σ·(dβ + x̂·dγ)/n.
    inverse = (inputs.var + eps).rsqrt()
    dbeta, dgamma = dnorm[1].clone(), torch.addcmul(dnorm[0], inputs.mean, dnorm[1], value=-1) * inverse
    if batch:
        factor = -inverse / (x.numel() // x.shape[2])
        factor = factor if inputs.gamma is None else factor * inputs.gamma
        slope = factor * dgamma * inverse
        call.add_affine(dx, x, slope, factor * dbeta - slope * inputs.mean)
    affine = (None if inputs.gamma is None else dgamma, None if inputs.beta is None else dbeta)
    return dx, dweight, ddepthwise, dbias, *affine


def _definition(inputs: Inputs, eps: float, batch: bool, call: Call) -> Tensor:
    """Compute the same by PyTorch's own operations, for second derivatives and function transforms."""
    x, weight, depthwise, bias, gamma, beta, mean, var = inputs
    order, geometry = call.group.order, call.geometry
    if mean is not None:
        mean, var = (None, None) if batch else (mean, var)
        x = F.batch_norm(x.flatten(0, 1), mean, var, gamma, beta, batch, 0.0, eps).relu().view_as(x)
    filters = weight if depthwise is None else full_filter(depthwise, weight)
    bank = gather_bank(filters, index_table(call.group, geometry.kernel_size, fiber=True))
    padding = (geometry.padding[0], geometry.padding[2])
    bias = None if bias is None else bias.repeat(order)
    y = F.conv2d(x.flatten(1, 2), bank, bias, geometry.stride, padding, geometry.dilation)
    return y.unflatten(1, (order, -1))


# ---- the same as an operator, for torch.compile, torch.export, autocast and dispatch modes ---------------------------

_ARGUMENTS = (
    "Tensor x, Tensor weight, Tensor? depthwise, Tensor? bias, Tensor? gamma, Tensor? beta, Tensor? mean, Tensor? var, "
    "float eps, bool batch, int[] elements, int[] stride, int[] padding, int[] dilation"
)


@torch.library.custom_op(
    "sepgroupy::group_conv", mutates_args=(), device_types="cpu", schema=f"({_ARGUMENTS}) -> Tensor"
)
def group_conv(*args: Any) -> Tensor:
    """Convolve on the group whose elements' entries are given."""
    *tensors, eps, _, elements, stride, padding, dilation = args
    inputs = Inputs(*tensors)
    return _forward(inputs, eps, _parse(inputs, elements, stride, padding, dilation))


@torch.library.custom_op(
    "sepgroupy::group_conv_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
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
    inputs = Inputs(*args[:8])
    return inputs.x.new_empty(
        _parse(inputs, *args[10:]).output_shape(tuple(inputs.x.shape), tuple(inputs.weight.shape))
    )


@group_conv_backward.register_fake
def _(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return tuple(grad.new_empty(0 if t is None else t.shape) for t in args[:6])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:8])
    ctx.options = inputs[8:]


def _operator_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    gradients = group_conv_backward(grad, *ctx.saved_tensors, *ctx.options)
    found = (g if need else None for g, need in zip(gradients, ctx.needs_input_grad, strict=False))
    return (*found, *(None,) * (len(ctx.needs_input_grad) - len(gradients)))


group_conv.register_autograd(_operator_backward, setup_context=_keep)
for _operator in (group_conv, group_conv_backward):
    _operator.register_autocast("cpu", torch.float32)  # the kernels know no shorter type
