"""Check that a module is equivariant, for every element of the group: for tests of layers and of whole networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .errors import ArgumentError
from .functional import transform
from .groups import PointGroup, as_group

__all__ = ["TOLERANCES", "assert_equivariant", "equivariance_error"]

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 2e-2}
"""Largest relative error that rounding explains in a network of some depth, by dtype of its input."""


def equivariance_error(module: Callable[[Tensor], Tensor], group: PointGroup | str, x: Tensor) -> Tensor:
    """Return how far a module is from equivariance, one number for each element of the group.

    ``error[t] = max |module(t·x) - t·module(x)| / max |module(x)|``. How t acts follows from the shapes: five axes
    are a map on the group (B, C, |H|, Y, X), four are planar (B, C, Y, X), fewer are invariant.

    Args:
        module: from planar or group maps to planar, group or invariant ones. Put it in the mode to be tested:
            batch norm in training mode is equivariant too, but updates its statistics.
        group: the point group.
        x: an input, best random and square.

    Returns:
        (|H|,) relative errors in float64, 0 where both sides agree; infinite where shapes or NaN forbid comparison.

    Raises:
        ArgumentError: x is neither a planar map nor a map on the group.
    """
    group = as_group(group)
    if x.ndim not in (4, 5):
        raise ArgumentError(f"x has shape {tuple(x.shape)}; it must be (B, C, Y, X) or (B, C, |H|, Y, X)")
    errors = []
    with torch.no_grad():
        expected = module(x)
        scale = expected.abs().max().double().clamp_min(torch.finfo(torch.float64).tiny)
        for element in range(group.order):
            moved = module(_act(x, group, element))
            target = _act(expected, group, element)
            if moved.shape != target.shape:
                errors.append(torch.tensor(torch.inf, dtype=torch.float64))
                continue
            error = (moved - target).abs().max().double() / scale
            errors.append(torch.where(error.isnan(), torch.inf, error).cpu())
    return torch.stack(errors)


def assert_equivariant(
    module: Callable[[Tensor], Tensor], group: PointGroup | str, x: Tensor, tolerance: float | None = None
) -> None:
    """Raise AssertionError, naming the element, if :func:`equivariance_error` exceeds the tolerance.

    Args:
        module: as for :func:`equivariance_error`.
        group: the point group.
        x: an input.
        tolerance: largest relative error allowed; by default that of the input's dtype in ``TOLERANCES``.

    >>> from sepgroupy.nn import LiftingConv2d
    >>> assert_equivariant(LiftingConv2d(1, 2, 3, group="p4"), "p4", torch.randn(1, 1, 7, 7))
    """
    group = as_group(group)
    errors = equivariance_error(module, group, x)
    limit = TOLERANCES[x.dtype] if tolerance is None else tolerance
    if not (errors <= limit).all():
        worst = int(errors.argmax())
        raise AssertionError(
            f"not equivariant under {group}: element {worst} {group.elements[worst]} changes the output by "
            f"{errors[worst]:.1e} of its largest value, more than {limit:.1e}; all elements: "
            + ", ".join(f"{e:.1e}" for e in errors.tolist())
        )


def _act(x: Tensor, group: PointGroup, element: int) -> Tensor:
    if x.ndim < 4:
        return x
    return transform(x, group, element, fiber=x.ndim == 5)
