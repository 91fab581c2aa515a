"""Convolutions by the compiled kernels: tensors of the right kind and size, given to them by address.

The kernels trust what they are given, so everything about a tensor is checked before: type, device and layout here,
its shape in ``problem``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import ArgumentError
from ..batch_norm import BatchNormReLU
from ..conv_spec import ConvSpec
from .library import DTYPES, MAPS, TensorAddresses, kernels
from .limits import is_direct, is_gathered, unsupported_reason
from .memory import empty, workspace
from .orbits import filter_gradient, filter_of_orbits
from .problem import checked_output_shape, checked_problem, output_shape

Tensors = dict[str, "Tensor | None"]


class ConvInputs(NamedTuple):
    """The input of a convolution, in this order everywhere: relu(norm(x)) if there are mean and variance, else x."""

    x: Tensor  # (B, |H|, I, *spatial), or images (B, 1, I, *spatial) to lift
    weight: Tensor  # (O, I, |H|, k, …); (O, I, |H|, 1, …) with a depthwise factor; (O, I, 1, k, …) to lift
    depthwise: Tensor | None = None  # (O, 1, 1, k, …), or (O, I, 1, k, …) of a g layer
    bias: Tensor | None = None  # (O,)
    gamma: Tensor | None = None  # (I,), of the norm
    beta: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None
    residual: Tensor | None = None  # (B, |H|, O, *spatial'), added to the result

    def contiguous(self) -> ConvInputs:
        """Return inputs whose values lie in memory as the kernels read them."""
        return ConvInputs(*[None if t is None else t.contiguous() for t in self])  # type: ignore[arg-type]

    def norm(self, eps: float, batch_stats: bool) -> BatchNormReLU | None:
        """Return the batch norm and ReLU before the convolution, or None."""
        if self.mean is None or self.var is None:
            return None
        return BatchNormReLU(self.mean, self.var, self.gamma, self.beta, eps, batch_stats)


@lru_cache(maxsize=1024)
def native_conv(spec: ConvSpec) -> NativeConv:
    """Return the cached NativeConv of a specification."""
    return NativeConv(spec)


class NativeConv:
    """One convolution of feature maps (B, |H|, C, *spatial) with a filter of one of three kinds.

    A dense one is a weight (O, I, |H|, k, …). Of a gc and of a g layer the weight is the pointwise factor,
    (O, I, |H|, 1, …), and depthwise the other, (O, 1, 1, k, …) or (O, I, 1, k, …).
    A lifting one reads images (B, 1, I, *spatial) and a weight (O, I, 1, k, …).
    With blocks of channels, filters are dense or of a gc layer and have I/groups input channels. They and lifting ones
    are convolved without norm and residual: directly, or lifting ones as ``orbits`` says.

    The padding is of zeros, the same on both sides.
    """

    def __init__(self, spec: ConvSpec) -> None:
        self.spec, self.direct = spec, is_direct(spec)
        reason = unsupported_reason(spec) or ("the convolution that is transposed" if spec.transposed else None)
        if reason:
            raise ArgumentError(f"the kernels need {reason}")
        self._problem = lru_cache(maxsize=64)(partial(checked_problem, spec))
        self._checked_output_shape = lru_cache(maxsize=64)(partial(checked_output_shape, spec))
        self._count_products = lru_cache(maxsize=64)(self._saved_products)

    def output_shape(self, x: Any, weight: Any) -> tuple[int, ...]:
        """Return the shape of the output for an input and a filter of these shapes, which may be symbols."""
        return output_shape(self.spec, x, weight)

    def forward(
        self,
        inputs: ConvInputs,
        eps: float = 0.0,
        return_stats: bool = False,
        expanded: Tensor | None = None,
        products: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Convolve x, or relu(norm(x)) if there is a mean, and add the residual.

        Return the result and, if wanted and there are values, mean and biased variance of its channels. ``expanded``
        are filters of :meth:`expand_filters`, used in place of the parameters. ``products``, of :meth:`new_products`,
        are written for the backward pass.
        """
        x, weight, depthwise, bias, gamma, beta, mean, var, residual = inputs
        y = empty(self._checked_output_shape(x.shape, weight.shape), x)
        computes = bool(y.numel() and x.numel())
        y_mean, y_var = _two(weight, y.shape[2]) if return_stats and computes else (None, None)
        outputs: Tensors = {"y": y, "y_mean": y_mean, "y_var": y_var}
        if is_gathered(self.spec, weight.shape[1]):
            weight = filter_of_orbits(self.spec, weight)
        if self.direct:
            self._run("forward", {"x": x, "weight": weight, "depthwise": depthwise, "bias": bias, **outputs}, computes)
        else:
            filters = {"x": x, "weight": weight, "depthwise": depthwise, "bias": bias}
            norm = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
            added = {"residual": residual, "expanded": expanded if computes else None, "products": products}
            self._run("forward", {**filters, **norm, **added, **outputs}, computes, eps)
        if not computes:
            y.copy_(y.new_zeros(()) if residual is None else residual)
            if bias is not None:
                y += bias.view(-1, *(1,) * self.spec.dimension)
        return y, y_mean, y_var

    def backward(
        self,
        grad: Tensor,
        inputs: ConvInputs,
        eps: float = 0.0,
        batch_stats: bool = False,
        other_grad: Tensor | None = None,
        wants_x: bool = True,
        wants_filters: bool = True,
        products: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight, depthwise, gamma and beta.

        ``other_grad`` is added to that of x. ``products`` are those that ``forward`` has written for the same inputs.
        With ``batch_stats`` the norm's statistics are those of x, and the gradient passes through them. Without
        ``wants_x`` those of x, gamma and beta are None, without ``wants_filters`` those of weight and depthwise.
        """
        x, weight, depthwise, _, gamma, beta, mean, var, _ = inputs
        dx = empty(x.shape, x) if wants_x else None
        dw = torch.empty_like(weight) if wants_filters else None
        dd = torch.empty_like(depthwise) if wants_filters and depthwise is not None else None
        dgamma, dbeta = _two(weight, x.shape[2]) if wants_x and mean is not None else (None, None)
        filters, norm = {"x": x, "weight": weight, "depthwise": depthwise}, {"gamma": gamma, "beta": beta}
        norm |= {"mean": mean, "var": var}
        given: Tensors = {**filters, **norm, "grad": grad, "other_grad": other_grad, "products": products}
        found: Tensors = {"dx": dx, "dweight": dw, "ddepthwise": dd, "dgamma": dgamma, "dbeta": dbeta}
        computes = bool(grad.numel() and x.numel())
        self._run("backward", {**given, **found}, computes, eps, batch_stats)
        if dx is not None and other_grad is not None and not computes:
            dx += other_grad
        return dx, dw, dd, None if gamma is None else dgamma, None if beta is None else dbeta

    def new_products(self, inputs: ConvInputs) -> Tensor | None:
        """Return memory for the products of a gc layer, which its backward pass would compute again.

        None where they would take more memory than the filter.
        """
        x, weight, depthwise, *_ = inputs
        if self.direct or depthwise is None or depthwise.shape[1] != 1 or not (x.numel() and weight.numel()):
            return None
        size = self._count_products((x.shape, weight.shape, depthwise.shape), x.dtype)
        return weight.new_empty(size) if size else None

    def _saved_products(self, shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> int:
        problem, _ = self._problem("forward", ("x", "weight", "depthwise"), shapes, 1, dtype)
        return int(kernels().library.saved_products(problem))

    def transpose(
        self, x: Tensor, weight: Tensor, depthwise: Tensor | None, bias: Tensor | None, size: tuple[int, ...]
    ) -> Tensor:
        """Return the transposed convolution of x, (B, |H|, O, *spatial'): maps (B, |H|, I, *size) plus the bias (I,).

        It is the gradient of an input of which x is the gradient of the output.
        """
        y = empty((*x.shape[:2], weight.shape[1], *size), x)
        filters = {"weight": weight, "depthwise": depthwise, "bias": bias}
        computes = bool(x.numel() and y.numel())
        self._run("backward", {"grad": x, **filters, "x": None, "dx": y}, computes)
        if not computes and bias is not None:
            y += bias.view(-1, *(1,) * self.spec.dimension)
        return y

    def backward_directly(
        self, grad: Tensor, inputs: ConvInputs, wants_x: bool = False, wants_filters: bool = True
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of x (None of images), weight, depthwise and bias (None where pixels are gathered)."""
        x, weight, depthwise = inputs[:3]
        if is_gathered(self.spec, weight.shape[1]):
            pointwise = ConvInputs(x, filter_of_orbits(self.spec, weight))
            found = self.backward(grad, pointwise, wants_x=False, wants_filters=wants_filters)[1]
            return None, None if found is None else filter_gradient(self.spec, found), None, None
        dx = empty(x.shape, x) if wants_x else None
        dw, db = (torch.empty_like(weight), weight.new_empty(len(weight))) if wants_filters else (None, None)
        dd = torch.empty_like(depthwise) if wants_filters and depthwise is not None else None
        given: Tensors = {"x": x, "weight": weight, "depthwise": depthwise, "grad": grad}
        computes = bool(grad.numel() and x.numel())
        self._run("backward", given | {"dx": dx, "dweight": dw, "ddepthwise": dd, "dbias": db}, computes)
        return dx, dw, dd, db if computes or db is None else grad.flatten(3).sum(3, dtype=db.dtype).sum((0, 1))

    def filter_layout(self, width: int, dtype: torch.dtype) -> tuple[int, bool]:
        """Return the vector width, and whether rows of ``width`` pixels fill vectors.

        They determine the layout of :meth:`expand_filters`.
        """
        lanes = kernels().library.vector_values(DTYPES[dtype], width // self.spec.stride[-1])
        return lanes, width % lanes == 0

    def expand_filters(self, x: tuple[int, ...], weight: Tensor, depthwise: Tensor | None) -> Tensor:
        """Return the filters as the kernels transform them in each call, for an input of this shape."""
        one = (1, *x[1:])  # they do not depend on the batch, which may be empty
        shapes = (one, weight.shape, None if depthwise is None else depthwise.shape)
        names = ("x", "weight", "depthwise")
        problem, size = self._problem("expand_filters", names, shapes, 1, weight.dtype)
        values = kernels().library.filters_size(problem)
        expanded = torch.zeros(values, dtype=weight.dtype, device="cpu")
        filters = {"weight": weight, "depthwise": depthwise, "expanded": expanded}
        check_readable(filters)
        launch("expand_filters", problem, {**filters, "workspace": workspace.acquire(size)})
        return expanded

    def _run(self, name: str, tensors: Tensors, computes: bool, eps: float = 0.0, batch_stats: bool = False) -> None:
        check_readable(tensors)
        shapes = tuple([None if t is None else t.shape for t in tensors.values()])
        maps: Any = tensors["dx"] if tensors["x"] is None else tensors["x"]
        options = (torch.get_num_threads(), maps.dtype, eps, batch_stats)
        problem, size = self._problem(name, tuple(tensors), shapes, *options)
        if computes:
            launch(name, problem, {**tensors, "workspace": workspace.acquire(size)})
            return
        for result in ("dx", "dweight", "ddepthwise", "dgamma", "dbeta"):
            if (gradient := tensors.get(result)) is not None:
                gradient.zero_()


def _two(like: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    return like.new_empty(channels), like.new_empty(channels)


def launch(name: str, problem: Any, tensors: Mapping[str, Tensor | None]) -> None:
    """Launch a kernel on tensors, each under the name of its field of :class:`.library.TensorAddresses`."""
    addresses = TensorAddresses()
    for field, tensor in tensors.items():
        if tensor is not None:
            setattr(addresses, field, tensor.data_ptr())
    getattr(kernels().library, name)(problem, ctypes.byref(addresses))


def parameter_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of filters, norms and statistics beside feature maps of a dtype."""
    return torch.float32 if dtype is torch.bfloat16 else dtype


def check_readable(tensors: Mapping[str, Tensor | None]) -> None:
    """Refuse tensors, by the names of their fields, that the kernels cannot read.

    Raises:
        ArgumentError: one of them is not a contiguous CPU tensor, or of another dtype than the first one, which is
            float32, float64 or bfloat16. With bfloat16, tensors other than feature maps must be float32.
    """
    first = next(iter(tensors.values()))
    dtype: torch.dtype = first.dtype  # type: ignore[union-attr]
    others = parameter_dtype(dtype)
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        expected = dtype if name in MAPS else others
        if not (dtype in DTYPES and tensor.dtype is expected and tensor.is_cpu and tensor.is_contiguous()):
            raise ArgumentError(
                f"{name} is {tensor.dtype} on {tensor.device}: the kernels read contiguous CPU tensors of one dtype, "
                "float32 or float64, or feature maps in bfloat16 and all else in float32"
            )
