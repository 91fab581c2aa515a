"""Convolutions by the compiled kernels: what one needs to know, and memory that fits what they are told."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import ArgumentError
from ...groups import PointGroup, action_table, fourier_basis, moved_size
from .._affine import Affine
from .._geometry import Geometry
from . import _library
from ._library import SUFFIXES, Problem, check_readable, invoke, suffix_for
from ._memory import empty, workspace

DENSE, SEPARABLE, FACTORED = 0, 1, 2
GENERAL, CYCLIC4, DIHEDRAL4 = 0, 4, 8
MAX_TAPS, MAX_STRIDE, MAX_ORDER = 49, 3, 8

Tensors = dict[str, "Tensor | None"]


class Inputs(NamedTuple):
    """What is convolved, in this order everywhere: relu(norm(x)) where there are a mean and a variance, else x."""

    x: Tensor  # (B, |H|, I, Y, X), or planes (B, 1, I, Y, X) to lift
    weight: Tensor  # (O, I, |H|, k, k); (O, I, |H|, 1, 1) with a depthwise factor; (O, I, 1, k, k) to lift
    depthwise: Tensor | None = None  # (O, 1, 1, k, k), or (O, I, 1, k, k) of a g layer
    bias: Tensor | None = None  # (O,)
    gamma: Tensor | None = None  # (I,), of the norm
    beta: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None
    shortcut: Tensor | None = None  # (B, |H|, O, Y', X'), added to the result

    def affine(self, eps: float, batch: bool) -> Affine | None:
        """Return the norm."""
        if self.mean is None or self.var is None:
            return None
        return Affine(self.mean, self.var, self.gamma, self.beta, eps, batch)


def _pair(x: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(channels), x.new_empty(channels)


# The fast transforms of kernels.c, row by row.
_FAST = {
    CYCLIC4: [[1, 1, 1, 1], [1, -1, 1, -1], [1, 0, -1, 0], [0, 1, 0, -1]],
    DIHEDRAL4: [
        [1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, -1, -1, -1, -1],
        [1, -1, 1, -1, 1, -1, 1, -1],
        [1, -1, 1, -1, -1, 1, -1, 1],
        [1, 0, -1, 0, 1, 0, -1, 0],
        [0, 1, 0, -1, 0, 1, 0, -1],
        [0, -1, 0, 1, 0, 1, 0, -1],
        [1, 0, -1, 0, -1, 0, 1, 0],
    ],
}


@lru_cache(maxsize=64)
def _transform(group: PointGroup) -> tuple[int, NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
    """Return which transform the kernels take, the blocks, H, and the irreps scaled to go with it."""
    basis = fourier_basis(group)
    kind, matrix, scale = GENERAL, basis.matrix, np.ones(group.order)
    for fast, rows in _FAST.items():
        unscaled = np.array(rows, dtype=np.float64)
        norms = np.linalg.norm(unscaled, axis=1)
        if len(rows) == group.order and np.allclose(unscaled / norms[:, None], basis.matrix):
            kind, matrix, scale = fast, unscaled, 1 / norms
    blocks = np.array([(b.start, b.size, b.copies) for b in basis.blocks], dtype=np.int32)
    irreps = [b.irrep.reshape(-1, group.order) * scale[b.start] ** 2 for b in basis.blocks]
    return kind, blocks, np.ascontiguousarray(matrix), np.concatenate(irreps)


@lru_cache(maxsize=256)
def _moved_taps(group: PointGroup, geometry: Geometry) -> NDArray[np.int32]:
    """Return row and column, in pixels, of each tap after each element has moved it; shape (taps, order, 2)."""
    kernel, table = geometry.kernel_size, action_table(group, geometry.kernel_size)
    moved = np.empty((table.shape[1], group.order, 2), dtype=np.int32)
    for g, sources in enumerate(table):
        size = moved_size(group.arrays[g], kernel)
        rows, columns = np.unravel_index(np.arange(len(sources)), size)
        moved[sources, g, 0], moved[sources, g, 1] = rows * geometry.dilation[0], columns * geometry.dilation[1]
    return moved


def serves(group: PointGroup, geometry: Geometry) -> str:
    """Return "" if the kernels compute such convolutions, else what they would need."""
    needs = {
        "groups=1": geometry.groups == 1,
        f"strides up to {MAX_STRIDE}": max(geometry.stride) <= MAX_STRIDE,
        f"kernels of up to {MAX_TAPS} taps": geometry.kernel_size[0] * geometry.kernel_size[1] <= MAX_TAPS,
        f"a group of order up to {MAX_ORDER}": group.order <= MAX_ORDER,
    }
    return ", ".join(need for need, holds in needs.items() if not holds)


def lifts(group: PointGroup, geometry: Geometry, in_channels: int) -> bool:
    """Whether the kernels lift such planes to the group."""
    terms = geometry.kernel_size[0] * geometry.kernel_size[1] * in_channels
    return not serves(group, geometry) and geometry.stride == (1, 1) and terms <= MAX_TAPS


@lru_cache(maxsize=1024)
def call_for(group: PointGroup, geometry: Geometry, lifting: bool = False) -> Call:
    """Return what convolves under this group and geometry."""
    return Call(group, geometry, lifting)


class Call:
    """One convolution: maps (B, |H|, C, Y, X), and a filter of one of three kinds.

    A dense one is a weight (O, I, |H|, k, k). Of a gc and of a g layer the weight is the pointwise factor,
    (O, I, |H|, 1, 1), and depthwise the other, (O, 1, 1, k, k) or (O, I, 1, k, k).
    A lifting one reads planes (B, 1, I, Y, X) and a weight (O, I, 1, k, k).
    """

    def __init__(self, group: PointGroup, geometry: Geometry, lifting: bool = False) -> None:
        self.group, self.geometry, self.lifting = group, geometry, lifting
        if missing := serves(group, geometry):
            raise ArgumentError(f"the kernels need {missing}")
        self._settle = lru_cache(maxsize=64)(self._settle_anew)
        self._shape = lru_cache(maxsize=64)(self.output_shape)

    def output_shape(self, x: tuple[int, ...], weight: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the output for an input and a filter of these shapes."""
        if len(x) != 5 or len(weight) != 5:
            shapes = f"x has shape {tuple(x)} and weight {tuple(weight)}"
            raise ArgumentError(f"{shapes}; the kernels read five axes of each")
        self.geometry.check_size(x[0] * x[1] * x[2], *x[-2:])
        return (x[0], self.group.order, weight[0], *self.geometry.output_size(*x[-2:]))

    def forward(
        self, inputs: Inputs, eps: float = 0.0, moments: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Convolve x, or relu(norm(x)) with a mean, and add the shortcut.

        Return it, with mean and biased variance of its channels if they are wanted and there are values.
        """
        x, weight, depthwise, bias, gamma, beta, mean, var, shortcut = inputs
        y = empty(x, self._shape(x.shape, weight.shape))
        computes = bool(y.numel() and x.numel())
        y_mean, y_var = _pair(x, y.shape[2]) if moments and computes else (None, None)
        found: Tensors = {"y": y, "y_mean": y_mean, "y_var": y_var}
        if self.lifting:
            self._run("lift", {"x": x, "weight": weight, "bias": bias, **found}, computes)
        else:
            filters = {"x": x, "weight": weight, "depthwise": depthwise, "bias": bias}
            norm = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
            self._run("forward", {**filters, **norm, "shortcut": shortcut, **found}, computes, eps)
        if not computes:
            y.copy_(y.new_zeros(()) if shortcut is None else shortcut)
            if bias is not None:
                y += bias.view(-1, 1, 1)
        return y, y_mean, y_var

    def backward(
        self, grad: Tensor, inputs: Inputs, eps: float = 0.0, batch: bool = False, more: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, to which `more` is added, of weight, depthwise, gamma and beta.

        With batch, the norm's statistics are those of x, and the gradient passes through them.
        """
        x, weight, depthwise, _, gamma, beta, mean, var, _ = inputs
        dx, dw = empty(x, x.shape), torch.empty_like(weight)
        dd = None if depthwise is None else torch.empty_like(depthwise)
        dgamma, dbeta = (None, None) if mean is None else _pair(x, x.shape[2])
        filters, norm = {"x": x, "weight": weight, "depthwise": depthwise}, {"gamma": gamma, "beta": beta}
        given: Tensors = {**filters, **norm, "mean": mean, "var": var, "grad": grad, "more": more}
        found: Tensors = {"dx": dx, "dweight": dw, "ddepthwise": dd, "dgamma": dgamma, "dbeta": dbeta}
        computes = bool(grad.numel() and x.numel())
        self._run("backward", {**given, **found}, computes, eps, batch)
        if more is not None and not computes:
            dx += more
        return dx, dw, dd, None if gamma is None else dgamma, None if beta is None else dbeta

    def backward_of_lifting(self, grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of weight and bias."""
        dw, db = torch.empty_like(weight), weight.new_empty(weight.shape[:1])
        self._run("lift_back", {"x": x, "grad": grad, "dweight": dw, "dbias": db}, bool(grad.numel() and x.numel()))
        return dw, db

    def _run(self, name: str, tensors: Tensors, computes: bool, eps: float = 0.0, own: bool = False) -> None:
        # The kernels trust what they are given: a tensor that does not fit would be read past its end.
        values = list(tensors.values())
        check_readable(values)
        x = tensors["x"]
        assert x is not None
        shapes = tuple([None if t is None else t.shape for t in values])
        settled = self._settle(name, tuple(tensors), shapes, torch.get_num_threads(), x.dtype, eps, own)
        problem, room, suffix = settled
        if computes:
            invoke(name, (problem,), [*values, workspace.take(room * x.itemsize)], suffix)
            return
        for result in ("dx", "dweight", "ddepthwise", "dgamma", "dbeta", "dbias"):
            if (gradient := tensors.get(result)) is not None:
                gradient.zero_()

    def _settle_anew(
        self,
        name: str,
        names: tuple[str, ...],
        shapes: tuple[Any, ...],
        threads: int,
        dtype: torch.dtype,
        eps: float,
        own: bool,
    ) -> tuple[Any, int, str]:
        """Check the shapes; return the problem, by reference, the values of work space it needs, and the suffix."""
        given = dict(zip(names, shapes, strict=True))
        x, weight = given["x"], given.get("weight") or given["dweight"]
        y, kernel = self.output_shape(x, weight), self.geometry.kernel_size
        (batch, _, inputs, height, width), outputs, order = x, weight[0], self.group.order
        fiber, depthwise = 1 if self.lifting else order, given.get("depthwise")
        separable = depthwise is not None
        kind = DENSE if depthwise is None else SEPARABLE if inputs == 1 or depthwise[1:2] != (inputs,) else FACTORED
        expected = {
            "x": (batch, fiber, inputs, height, width),
            **dict.fromkeys(("gamma", "beta", "mean", "var"), (inputs,)),
            "weight": (outputs, inputs, fiber, *((1, 1) if separable else kernel)),
            "depthwise": (outputs, inputs if kind == FACTORED else 1, 1, *kernel),
            "bias": (outputs,),
            "shortcut": y,
            "y": y,
            "y_mean": (outputs,),
            "y_var": (outputs,),
            "more": (batch, fiber, inputs, height, width),
            "grad": y,
        }
        expected |= {f"d{of}": expected[of] for of in ("x", "weight", "depthwise", "bias", "gamma", "beta")}
        pairs = {"mean": "var", "var": "mean"}  # neither is given without the other
        for what, shape in given.items():
            if shape != expected[what] and not (shape is None and given.get(pairs.get(what, "")) is None):
                label = "the output's gradient" if what == "grad" else what
                raise ArgumentError(
                    f"{label} has shape {shape if shape is None else tuple(shape)}, not {tuple(expected[what])}, for "
                    f"{self.group} and {self.geometry}"
                )
        if self.lifting and not lifts(self.group, self.geometry, inputs):
            raise ArgumentError(f"x has {inputs} planes; the kernels lift with stride 1 and {MAX_TAPS} terms at most")
        found = _library.kernels()
        if not found:
            raise ArgumentError(f"algorithm (='native') is not to be had here: {found.summary}")
        transform, blocks, basis, irreps = _transform(self.group)
        moved = _moved_taps(self.group, self.geometry)
        problem = Problem(
            batch, inputs, outputs, height, width, *y[3:], *self.geometry.stride, self.geometry.padding[0],
            self.geometry.padding[2], len(moved), kind, threads, order, len(blocks), transform,
            *(array.ctypes.data for array in (blocks, moved, basis, irreps)), eps, own,
        )  # fmt: skip
        problem.arrays = (blocks, moved, basis, irreps)  # they live as long as it does
        reference = ctypes.byref(problem)
        suffix = SUFFIXES[dtype] if self.lifting else suffix_for(dtype, width // self.geometry.stride[1])
        if 0 in (*x, outputs):  # there is nothing to compute
            return reference, 0, suffix
        needs = getattr(found.library, ("lift_workspace" if self.lifting else "workspace") + suffix)
        return reference, needs(reference, int("back" in name)), suffix
