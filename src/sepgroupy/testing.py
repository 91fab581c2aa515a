"""Check that a layer or network is equivariant under every group element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._nested import map_leaves
from .errors import ArgumentError
from .functional import transform
from .groups import GroupLike, PointGroup, as_group, axis_names

__all__ = ["TOLERANCES", "assert_equivariant", "equivariance_error"]

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 2e-2}
"""Largest relative error that rounding explains in a network of some depth, by dtype."""

_NUMBERS = (bool, int, float, complex, np.ndarray, np.generic)


def equivariance_error(module: Callable[[Tensor], Any], group: GroupLike, x: Tensor) -> Tensor:
    """Return the equivariance error of a module, one number for each group element.

    ``error[t] = max |module(t·x) - t·module(x)| / max |module(x)|``. The shapes determine the action of t. With a
    group of two dimensions five axes are a group feature map (B, C, |H|, Y, X), four an image or feature map
    (B, C, Y, X), fewer are invariant; with one of three dimensions these are six, five (B, C, Z, Y, X), fewer. If the
    module returns several tensors, the error is that of the tensor with the largest one.

    Args:
        module: from images or group feature maps to one tensor, or to mappings, sequences or dataclasses of
            tensors, nested or not. Numbers and numpy arrays in them count as tensors; None and strings are left
            out. Put it in the mode to be tested: batch norm in training mode is equivariant too, but updates its
            statistics.
        group: the point group. A name that exists in 2-D, such as "D4", is that group: for volumes pass
            ``as_group("D4", dimension=3)``.
        x: an input of any dtype, preferably random and square.

    Returns:
        (|H|,) relative errors in float64, 0 where both sides agree; infinite if shapes or NaN prevent a comparison.

    Raises:
        ArgumentError: x is neither an image nor a group feature map, or the module returns anything but tensors with
            at most the number of axes of a group feature map.
    """
    return torch.stack(list(_errors_by_output(module, as_group(group), x)[0].values())).amax(0)


def assert_equivariant(
    module: Callable[[Tensor], Any], group: GroupLike, x: Tensor, tolerance: float | None = None
) -> None:
    """Raise AssertionError, naming the output and the element, if :func:`equivariance_error` exceeds the tolerance.

    Args:
        module: as for :func:`equivariance_error`.
        group: the point group.
        x: an input.
        tolerance: largest relative error allowed; by default that of the less precise of the dtypes of x and of the
            output in ``TOLERANCES``, and 0 if both are integers.

    Raises:
        AssertionError: an error exceeds the tolerance.
        ArgumentError: the group is unknown, or x has another number of axes.

    >>> from sepgroupy.nn import LiftingConv2d
    >>> assert_equivariant(LiftingConv2d(1, 2, 3, group="p4"), "p4", torch.randn(1, 1, 7, 7))
    """
    group = as_group(group)
    errors, dtypes = _errors_by_output(module, group, x)
    for name, values in errors.items():
        limit = max(_tolerance(x.dtype), _tolerance(dtypes[name])) if tolerance is None else tolerance
        if not (values <= limit).all():
            worst = int(values.argmax())
            what = "the output" if name == "output" else name
            raise AssertionError(
                f"not equivariant under {group}: element {worst} {group.elements[worst]}, {group.actions[worst]}, "
                f"changes {what} by {values[worst]:.1e} of its largest value, more than {limit:.1e}; all elements: "
                + ", ".join(f"{e:.1e}" for e in values.tolist())
            )


def _errors_by_output(
    module: Callable[[Tensor], Any], group: PointGroup, x: Tensor
) -> tuple[dict[str, Tensor], dict[str, torch.dtype]]:
    """Return the errors, (|H|,), and the dtype of every tensor that a module returns, by its name."""
    most = 3 + group.dimension
    if not isinstance(x, Tensor) or x.ndim not in (most - 1, most):
        what = f"has shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"is a {type(x).__name__}"
        axes = ", ".join(axis_names(group.dimension))
        raise ArgumentError(f"x {what}; it must be a tensor (B, C, {axes}) or (B, C, |H|, {axes}) for {group}")
    errors: dict[str, Tensor] = {}
    with torch.no_grad():
        expected = _tensors(module(x.clone()), most)
        for element in range(group.order):
            found = _tensors(module(_act(x, group, element)), most)
            for name in {**expected, **found}:
                error = _error(found.get(name), expected.get(name), group, element)
                errors.setdefault(name, torch.zeros(group.order, dtype=torch.float64))[element] = error
    return errors, {name: tensor.dtype for name, tensor in {**found, **expected}.items()}


def _tensors(output: Any, most: int) -> dict[str, Tensor]:
    """Return all tensors in the output of a module, copied to the CPU, by name."""
    tensors: dict[str, Tensor] = {}

    def add(name: str, leaf: Any) -> None:
        if isinstance(leaf, _NUMBERS):
            leaf = torch.as_tensor(leaf)
        if isinstance(leaf, Tensor) and leaf.ndim <= most:
            tensors[name] = leaf.detach().to("cpu", copy=True)  # the next call may overwrite it
        elif leaf is not None and not isinstance(leaf, (str, bytes)):
            found = f"a tensor of shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"
            raise ArgumentError(f"module returns {found} as {name}; {_needed(most)}")

    map_leaves(add, output, "output")
    if not tensors:
        raise ArgumentError(f"module returns a {type(output).__name__} without any tensor; {_needed(most)}")
    return tensors


def _needed(most: int) -> str:
    return (
        f"it must return tensors of at most {most} axes, alone or in mappings, sequences or dataclasses: pass a "
        "function that does, such as lambda x: module(x).logits"
    )


def _error(found: Tensor | None, expected: Tensor | None, group: PointGroup, element: int) -> Tensor | float:
    if found is None or expected is None:
        return torch.inf
    try:
        target = _act(expected, group, element)
    except ArgumentError as error:
        raise ArgumentError(f"module returns a tensor whose group axis is not the group's: {error}") from None
    if found.shape != target.shape:
        return torch.inf
    if not target.numel():
        return 0.0
    wide = torch.complex128 if target.is_complex() or found.is_complex() else torch.float64
    found, target = found.to(wide), target.to(wide)
    scale = target.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return ((found - target).abs().max() / scale).nan_to_num(torch.inf, torch.inf)


def _act(x: Tensor, group: PointGroup, element: int) -> Tensor:
    if x.ndim < 2 + group.dimension:
        return x
    return transform(x, group, element, group_axis=x.ndim == 3 + group.dimension)


def _tolerance(dtype: torch.dtype) -> float:
    if dtype.is_complex:
        dtype = dtype.to_real()
    return TOLERANCES.get(dtype, max(TOLERANCES.values())) if dtype.is_floating_point else 0.0
