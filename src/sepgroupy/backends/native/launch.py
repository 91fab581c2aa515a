"""Convolutions by the compiled kernels: the numbers they need, and memory of the right size."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...errors import ArgumentError
from ..batch_norm import BatchNormReLU
from ..conv_spec import ConvSpec
from . import library
from .library import DTYPES, Problem, check_readable, launch
from .limits import is_direct, unsupported_reason
from .memory import empty, workspace
from .transform import kernel_transform, transformed_offsets

# As csrc/interface.h has them:
DENSE, SEPARABLE, FACTORED, DIRECT = 0, 1, 2, 3  # kinds of filters
PASSES = {"forward": 0, "backward": 1, "expand_filters": 2}

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
        """Return the norm."""
        if self.mean is None or self.var is None:
            return None
        return BatchNormReLU(self.mean, self.var, self.gamma, self.beta, eps, batch_stats)


class Launch(NamedTuple):
    """A checked problem: by reference, and the bytes of workspace that it needs."""

    problem: Any
    workspace: int


@lru_cache(maxsize=1024)
def native_conv(spec: ConvSpec) -> NativeConv:
    """Return what convolves as specified."""
    return NativeConv(spec)


class NativeConv:
    """One convolution of feature maps (B, |H|, C, *spatial) with a filter of one of three kinds.

    A dense one is a weight (O, I, |H|, k, …). Of a gc and of a g layer the weight is the pointwise factor,
    (O, I, |H|, 1, …), and depthwise the other, (O, 1, 1, k, …) or (O, I, 1, k, …).
    A lifting one reads images (B, 1, I, *spatial) and a weight (O, I, 1, k, …).
    With blocks of channels, filters are dense or of a gc layer and have I/groups input channels. They and lifting ones
    are convolved directly, without norm and residual.

    The padding is of zeros, the same on both sides.
    """

    def __init__(self, spec: ConvSpec) -> None:
        self.spec, self.direct = spec, is_direct(spec)
        self.in_order = 1 if spec.kind == "lifting" else spec.group.order
        if reason := unsupported_reason(spec):
            raise ArgumentError(f"the kernels need {reason}")
        self._checked_launch = lru_cache(maxsize=64)(self._check)
        self._checked_shape = lru_cache(maxsize=64)(self._check_shape)

    def output_shape(self, x: Any, weight: Any) -> tuple[int, ...]:
        """Return the shape of the output for an input and a filter of these shapes, which may be symbols."""
        return (x[0], self.spec.group.order, weight[0], *self.spec.output_size(*x[3:]))

    def _check_shape(self, x: tuple[int, ...], weight: tuple[int, ...]) -> tuple[int, ...]:
        axes = 3 + self.spec.dimension
        if len(x) != axes or len(weight) != axes:
            shapes = f"x has shape {tuple(x)} and weight {tuple(weight)}"
            raise ArgumentError(f"{shapes}; the kernels read {axes} axes of each in {self.spec.dimension}-D")
        self.spec.check_size(x[0] * x[1] * x[2], *x[3:])
        return self.output_shape(x, weight)

    def forward(
        self, inputs: ConvInputs, eps: float = 0.0, return_stats: bool = False, expanded: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Convolve x, or relu(norm(x)) if there is a mean, and add the residual.

        Return the result and, if wanted and there are values, mean and biased variance of its channels. ``expanded``
        are filters of :meth:`expand_filters`, used in place of the parameters.
        """
        x, weight, depthwise, bias, gamma, beta, mean, var, residual = inputs
        y = empty(self._checked_shape(x.shape, weight.shape), x)
        computes = bool(y.numel() and x.numel())
        y_mean, y_var = _two(x, y.shape[2]) if return_stats and computes else (None, None)
        outputs: Tensors = {"y": y, "y_mean": y_mean, "y_var": y_var}
        if self.direct:
            self._run("forward", {"x": x, "weight": weight, "depthwise": depthwise, "bias": bias, **outputs}, computes)
        else:
            filters = {"x": x, "weight": weight, "depthwise": depthwise, "bias": bias}
            norm = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
            added = {"residual": residual, "expanded": expanded if computes else None}
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
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight, depthwise, gamma and beta.

        ``other_grad`` is added to that of x. With ``batch_stats`` the norm's statistics are those of x, and the
        gradient passes through them. Without ``wants_x`` those of x, gamma and beta are None, without
        ``wants_filters`` those of weight and depthwise.
        """
        x, weight, depthwise, _, gamma, beta, mean, var, _ = inputs
        dx = empty(x.shape, x) if wants_x else None
        dw = torch.empty_like(weight) if wants_filters else None
        dd = torch.empty_like(depthwise) if wants_filters and depthwise is not None else None
        dgamma, dbeta = _two(x, x.shape[2]) if wants_x and mean is not None else (None, None)
        filters, norm = {"x": x, "weight": weight, "depthwise": depthwise}, {"gamma": gamma, "beta": beta}
        given: Tensors = {**filters, **norm, "mean": mean, "var": var, "grad": grad, "other_grad": other_grad}
        found: Tensors = {"dx": dx, "dweight": dw, "ddepthwise": dd, "dgamma": dgamma, "dbeta": dbeta}
        computes = bool(grad.numel() and x.numel())
        self._run("backward", {**given, **found}, computes, eps, batch_stats)
        if dx is not None and other_grad is not None and not computes:
            dx += other_grad
        return dx, dw, dd, None if gamma is None else dgamma, None if beta is None else dbeta

    def backward_directly(
        self, grad: Tensor, inputs: ConvInputs, wants_x: bool = False, wants_filters: bool = True
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of x, unless it is of images, and of weight, depthwise and bias."""
        x, weight, depthwise = inputs[:3]
        dx = empty(x.shape, x) if wants_x else None
        dw, db = (torch.empty_like(weight), weight.new_empty(len(weight))) if wants_filters else (None, None)
        dd = torch.empty_like(depthwise) if wants_filters and depthwise is not None else None
        given: Tensors = {"x": x, "weight": weight, "depthwise": depthwise, "grad": grad}
        computes = bool(grad.numel() and x.numel())
        self._run("backward", given | {"dx": dx, "dweight": dw, "ddepthwise": dd, "dbias": db}, computes)
        return dx, dw, dd, db if computes or db is None else grad.flatten(3).sum(3).sum((0, 1))

    def filter_layout(self, width: int, dtype: torch.dtype) -> tuple[int, bool]:
        """Return what the layout of :meth:`expand_filters` depends on, for rows of ``width`` pixels."""
        lanes = library.kernels().library.vector_values(DTYPES[dtype], width // self.spec.stride[-1])
        return lanes, width % lanes == 0

    def expand_filters(self, x: tuple[int, ...], weight: Tensor, depthwise: Tensor | None) -> Tensor:
        """Return the filters as the kernels transform them in each call, for an input of this shape."""
        one = (1, *x[1:])  # they do not depend on the batch, which may be empty
        shapes = (one, weight.shape, None if depthwise is None else depthwise.shape)
        names = ("x", "weight", "depthwise")
        problem, size = self._checked_launch("expand_filters", names, shapes, 1, weight.dtype)
        values = library.kernels().library.filters_size(problem)
        expanded = torch.zeros(values, dtype=weight.dtype, device="cpu")
        check_readable([expanded, weight, depthwise])
        filters = {"weight": weight, "depthwise": depthwise, "expanded": expanded}
        launch("expand_filters", problem, {**filters, "workspace": workspace.take(size)})
        return expanded

    def _run(self, name: str, tensors: Tensors, computes: bool, eps: float = 0.0, batch_stats: bool = False) -> None:
        # The kernels trust what they are given: a tensor that does not fit would be read past its end.
        check_readable(tensors.values())
        x = tensors["x"]
        assert x is not None
        shapes = tuple([None if t is None else t.shape for t in tensors.values()])
        options = (torch.get_num_threads(), x.dtype, eps, batch_stats)
        problem, size = self._checked_launch(name, tuple(tensors), shapes, *options)
        if computes:
            launch(name, problem, {**tensors, "workspace": workspace.take(size)})
            return
        for result in ("dx", "dweight", "ddepthwise", "dgamma", "dbeta"):
            if (gradient := tensors.get(result)) is not None:
                gradient.zero_()

    def _check(
        self,
        name: str,
        names: tuple[str, ...],
        shapes: tuple[Any, ...],
        threads: int,
        dtype: torch.dtype,
        eps: float = 0.0,
        batch_stats: bool = False,
    ) -> Launch:
        """Check the shapes of the tensors that are there; state the problem."""
        given = dict(zip(names, shapes, strict=True))
        x, weight, depthwise = given["x"], given["weight" if "weight" in given else "dweight"], given.get("depthwise")
        y, outputs, inputs = self._check_shape(x, weight), weight[0], x[2]
        if not (found := library.kernels()):
            raise ArgumentError(f"backend (='native') is unavailable: {found.summary}")
        kind = DIRECT if self.direct else DENSE
        if depthwise is not None:
            factored = not self.direct and inputs != 1 and depthwise[1:2] == (inputs,)
            kind = FACTORED if factored else SEPARABLE
        problem = ctypes.byref(self._problem(x, y, outputs, kind, threads, dtype, eps, batch_stats))
        expected = self._expected_shapes(x, y, outputs, kind)
        if given.get("expanded") is not None:
            expected["expanded"] = (found.library.filters_size(problem),)
        _check_shapes(given, expected, self.spec)
        nothing = 0 in (*x, outputs)  # to compute
        return Launch(problem, 0 if nothing else found.library.workspace_bytes(problem, PASSES[name]))

    def _problem(
        self,
        x: tuple[int, ...],
        y: tuple[int, ...],
        outputs: int,
        kind: int,
        threads: int,
        dtype: torch.dtype,
        eps: float,
        batch_stats: bool,
    ) -> Problem:
        spec, (batch, _, inputs, *size) = self.spec, x
        transform, blocks, basis, irreps = kernel_transform(spec.group)
        offsets = transformed_offsets(spec.group, spec.kernel_size, spec.dilation)
        arrays = (blocks, offsets, spec.group.cayley_table.astype(np.int32), basis, irreps)
        problem = Problem(
            DTYPES[dtype], kind, transform, threads,
            batch, spec.group.order, inputs, outputs, self.in_order, spec.groups,
            *(_all_axes(*pair) for pair in ((size, 1), (y[3:], 1), (spec.stride, 1), (spec.padding[::2], 0))),
            len(offsets), len(blocks), batch_stats, eps,
            *(array.ctypes.data for array in arrays),
        )  # fmt: skip
        problem.arrays = arrays  # they live as long as it does
        return problem

    def _expected_shapes(
        self, x: tuple[int, ...], y: tuple[int, ...], outputs: int, kind: int
    ) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor that a kernel reads or writes."""
        kernel, elements = self.spec.kernel_size, self.in_order
        batch, _, inputs, *size = x
        pointwise = kind in (SEPARABLE, FACTORED)
        expected = {
            "x": (batch, elements, inputs, *size),
            **dict.fromkeys(("gamma", "beta", "mean", "var"), (inputs,)),
            "weight": (outputs, inputs // self.spec.groups, elements, *((1,) * len(kernel) if pointwise else kernel)),
            "depthwise": (outputs, inputs if kind == FACTORED else 1, 1, *kernel),
            "bias": (outputs,),
            "residual": y,
            "y": y,
            "y_mean": (outputs,),
            "y_var": (outputs,),
            "other_grad": (batch, elements, inputs, *size),
            "grad": y,
        }
        gradients = {f"d{of}": expected[of] for of in ("x", "weight", "depthwise", "bias", "gamma", "beta")}
        return expected | gradients


def _check_shapes(
    given: Mapping[str, tuple[int, ...] | None], expected: Mapping[str, tuple[int, ...]], spec: ConvSpec
) -> None:
    pairs = {"mean": "var", "var": "mean"}  # neither is given without the other
    for what, shape in given.items():
        if shape is None and given.get(pairs.get(what, "")) is None:
            continue
        if shape is None or tuple(shape) != expected[what]:
            label = "the output's gradient" if what == "grad" else what
            raise ArgumentError(
                f"{label} has shape {shape if shape is None else tuple(shape)}, not {tuple(expected[what])}, for {spec}"
            )


def _all_axes(values: Sequence[int], first: int) -> tuple[int, ...]:
    """Return the values of the kernels' axes: an image has one slice, a signal one row of it."""
    return (*(first,) * (library.AXES - len(values)), *values)


def _two(like: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    return like.new_empty(channels), like.new_empty(channels)
