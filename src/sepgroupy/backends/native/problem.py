"""One convolution as the kernels need it: its numbers, and the shape of each tensor, checked."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ...errors import ArgumentError
from ..conv_spec import ConvSpec
from .library import AXES, DTYPES, Problem, kernels
from .limits import is_direct, is_gathered
from .orbits import orbits_of
from .transform import kernel_transform, transformed_offsets

# As csrc/interface.h has them:
DENSE, SEPARABLE, FACTORED, DIRECT, GATHERED = 0, 1, 2, 3, 4  # kinds of filters
PASSES = {"forward": 0, "backward": 1, "expand_filters": 2}

Shape = tuple[int, ...]


class CheckedProblem(NamedTuple):
    """A problem, by reference, and the bytes of workspace that it needs."""

    problem: Any
    workspace: int


def output_shape(spec: ConvSpec, x: Any, weight: Any) -> Shape:
    """Return the shape of the output for an input and a filter of these shapes, which may be symbols."""
    return (x[0], spec.group.order, weight[0], *spec.output_size(*x[3:]))


def checked_output_shape(spec: ConvSpec, x: Shape, weight: Shape) -> Shape:
    """Return the shape of the output.

    Raises:
        ArgumentError: the shapes have another number of axes, or the output would have no size.
    """
    axes = 3 + spec.dimension
    if len(x) != axes or len(weight) != axes:
        shapes = f"x has shape {tuple(x)} and weight {tuple(weight)}"
        raise ArgumentError(f"{shapes}; the kernels read {axes} axes of each in {spec.dimension}-D")
    spec.check_size(x[0] * x[1] * x[2], *x[3:])
    return output_shape(spec, x, weight)


def checked_problem(
    spec: ConvSpec,
    name: str,
    names: tuple[str, ...],
    shapes: tuple[Shape | None, ...],
    threads: int,
    dtype: torch.dtype,
    eps: float = 0.0,
    batch_stats: bool = False,
) -> CheckedProblem:
    """State the problem of the kernel ``name`` for tensors of these names and shapes; None where there is no tensor.

    Raises:
        ArgumentError: a shape does not fit, or there are no kernels.
    """
    given: dict[str, Any] = dict(zip(names, shapes, strict=True))
    x, weight, depthwise = given["x"] or given["dx"], given["weight"], given.get("depthwise")
    y = checked_output_shape(spec, x, weight)
    if not (found := kernels()):
        raise ArgumentError(f"backend (='native') is unavailable: {found.summary}")
    kind = GATHERED if is_gathered(spec, x[2]) else DIRECT if is_direct(spec) else DENSE
    if depthwise is not None:
        factored = kind == DENSE and x[2] != 1 and depthwise[1:2] == (x[2],)
        kind = FACTORED if factored else SEPARABLE
    problem = ctypes.byref(_problem(spec, x, y, kind, threads, dtype, eps, batch_stats))
    expected = _expected_shapes(spec, x, y, kind)
    if name == "backward":  # of a transposed convolution, whose output is dx
        expected["bias"] = (x[2],)
    if given.get("expanded") is not None:
        expected["expanded"] = (found.library.filters_size(problem),)
    if given.get("products") is not None:
        expected["products"] = (found.library.saved_products(problem),)
    _check_shapes(given, expected, spec)
    nothing = 0 in (*x, y[2])  # to compute
    return CheckedProblem(problem, 0 if nothing else found.library.workspace_bytes(problem, PASSES[name]))


def _in_order(spec: ConvSpec) -> int:
    return 1 if spec.kind == "lifting" else spec.group.order


def _problem(
    spec: ConvSpec, x: Shape, y: Shape, kind: int, threads: int, dtype: torch.dtype, eps: float, batch_stats: bool
) -> Problem:
    batch, _, inputs, *size = x
    transform, blocks, basis, irreps = kernel_transform(spec.group)
    offsets = transformed_offsets(spec.group, spec.kernel_size, spec.dilation)
    if kind == GATHERED:
        offsets = np.ascontiguousarray(offsets[orbits_of(spec.group, spec.kernel_size).first])
    arrays = (blocks, offsets, spec.group.cayley_table.astype(np.int32), basis, irreps)
    problem = Problem(
        DTYPES[dtype], kind, transform, threads,
        batch, spec.group.order, inputs, y[2], _in_order(spec), spec.groups,
        *(_all_axes(*pair) for pair in ((size, 1), (y[3:], 1), (spec.stride, 1), (spec.padding[::2], 0))),
        len(offsets), len(blocks), batch_stats, eps, 0.0, 0.0, (0,) * AXES,
        *(array.ctypes.data for array in arrays),
    )  # fmt: skip
    problem.arrays = arrays  # they live as long as it does
    return problem


def _all_axes(values: Sequence[int], first: int) -> Shape:
    """Return the values of the kernels' axes: an image has one slice, a signal one row of it."""
    return (*(first,) * (AXES - len(values)), *values)


def _expected_shapes(spec: ConvSpec, x: Shape, y: Shape, kind: int) -> dict[str, Shape]:
    """Return the shape of each tensor that a kernel reads or writes."""
    kernel, elements, inputs, outputs = spec.kernel_size, _in_order(spec), x[2], y[2]
    pointwise = kind in (SEPARABLE, FACTORED)
    weight = (outputs, inputs // spec.groups, elements, *((1,) * len(kernel) if pointwise else kernel))
    if kind == GATHERED:
        weight = (outputs, len(orbits_of(spec.group, kernel).first) * inputs, spec.group.order, *(1,) * len(kernel))
    expected = {
        "x": (x[0], elements, inputs, *x[3:]),
        **dict.fromkeys(("gamma", "beta", "mean", "var"), (inputs,)),
        "weight": weight,
        "depthwise": (outputs, inputs if kind == FACTORED else 1, 1, *kernel),
        "bias": (outputs,),
        "residual": y,
        "y": y,
        "y_mean": (outputs,),
        "y_var": (outputs,),
        "grad": y,
    }
    expected["other_grad"] = expected["x"]
    gradients = {f"d{of}": expected[of] for of in ("x", "weight", "depthwise", "bias", "gamma", "beta")}
    return expected | gradients


def _check_shapes(given: Mapping[str, Shape | None], expected: Mapping[str, Shape], spec: ConvSpec) -> None:
    pairs = {"mean": "var", "var": "mean"}  # neither is given without the other
    for what, shape in given.items():
        if shape is None and given.get(pairs.get(what, "")) is None:
            continue
        if shape is None or tuple(shape) != expected[what]:
            label = "the output's gradient" if what == "grad" else what
            raise ArgumentError(
                f"{label} has shape {shape if shape is None else tuple(shape)}, not {tuple(expected[what])}, for {spec}"
            )
