"""Where a network loses its equivariance, why, and what would repair it."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError
from ..groups import GroupLike, PointGroup, as_group
from ._causes import Cause, causes, geometry_of, uneven_grid
from ._report import AuditReport, AuditRow
from ._trace import OUTPUT, Step, Stop, Subject

_REACH = 32  # five strides of 2: sizes repeat after 2⁵


def audit(
    model: nn.Module,
    group: GroupLike,
    input_size: int | Sequence[int],
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> AuditReport:
    """Measure, layer by layer and for every element of the group, how far a network is from equivariance.

    The pictures ``t·x``, x random, go through a copy of the network in one batch, twice. Once each layer's output is
    set to ``t·y(x)`` after it has been measured, so that the error of the next is its own; once errors pile up. How t
    acts on a map is read from its shape: planar, on the group, with the fiber folded into the batch or merged
    with the channels, channels last, flattened, or invariant, whichever fits the values best. The output
    has to be planar, on the group, or (with fewer than four axes) invariant.

    The copy is in evaluation mode. Its parameters and running statistics that are constant get small random
    numbers, for the ones and zeros of a new norm would hide what training makes of them.

    Args:
        model: any network with the batch as first axis; steps between its leaf modules are seen too.
        group: the point group.
        input_size: rows and columns of the picture, whose channels are those of the first convolution; or the
            whole shape (channels, rows, columns), or (channels, |H|, rows, columns) for a map on the group.
        dtype: in which to measure; float64 tells rounding from everything else.
        seed: of the random numbers.

    Raises:
        ArgumentError: the network does not take such a picture, or an argument cannot be right.

    >>> from sepgroupy import LiftingConv2d
    >>> report = audit(LiftingConv2d(1, 2, 3, stride=2, group="p4"), "p4", 8)
    >>> report.exact, report.sizes, dict(report.first.change)
    (False, (7, 9), {'kernel_size': 4, 'padding': 0})
    """
    group = _plane(group)
    subject = Subject(model, group, input_shape(model, input_size, group), dtype, seed)
    steps = subject.trace()
    totals = subject.trace(steps=steps)
    if len(steps) != len(totals):
        raise ArgumentError("model goes another way through its modules each time: it cannot be audited")
    reasons = [_causes(subject, step) if step.broken else [] for step in steps]
    rows = tuple(
        _row(step, total, why)
        for step, total, why in zip(steps, totals, reasons, strict=True)
        if step.module is not None or step.broken or step.name == OUTPUT
    )
    exact = not any(total.broken for total in totals if total.name == OUTPUT)
    uneven = not exact and any(cause.resamples for why in reasons for cause in why)
    sizes = _exact_sizes(subject) if uneven else ()
    return AuditReport(group, subject.shape, subject.tolerance, rows, exact, sizes)


def exact_sizes(
    model: nn.Module,
    group: GroupLike,
    around: int | Sequence[int],
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[int, ...]:
    """Return the input sizes nearest to a given one, below (or the same) and above, at which no grid is uneven.

    At these every stride and every pooling, in modules and between them, sees a grid that the group maps to itself.
    What breaks the symmetry at every size, such as an ordinary convolution, is not looked at.

    Args:
        model: as for :func:`audit`; a size that it does not take is passed over.
        group: the point group.
        around: the input size, or the whole shape of a square picture, as for :func:`audit`.
        dtype: in which to measure.
        seed: of the random numbers.

    Returns:
        At most two sizes, none farther than 32 pixels away.

    Raises:
        ArgumentError: an argument cannot be right.
    """
    group = _plane(group)
    return _exact_sizes(Subject(model, group, input_shape(model, around, group), dtype, seed))


def input_shape(model: nn.Module, size: int | Sequence[int], group: PointGroup) -> tuple[int, ...]:
    """Return the shape of a picture, its channels those of the first convolution if they are not given."""
    shape: Any = size
    if isinstance(size, Integral):
        channels = next((m.in_channels for m in model.modules() if hasattr(m, "in_channels")), None)
        if channels is None:
            raise ArgumentError(f"input_size (={size}) must be (channels, rows, columns): model has no convolution")
        shape = (channels, int(size), int(size))
    if not isinstance(shape, Sequence) or len(shape) not in (3, 4) or not all(isinstance(n, int) for n in shape):
        raise ArgumentError(f"input_size (={size!r}) must be an integer, or (channels, rows, columns)")
    if min(shape) < 1:
        raise ArgumentError(f"input_size (={size!r}) must be positive")
    if shape[-2] != shape[-1] and (group.arrays[:, 0, 1] != 0).any():
        raise ArgumentError(f"input_size (={size!r}) must be square: {group} exchanges rows and columns")
    return tuple(shape)


def _plane(group: GroupLike) -> PointGroup:
    group = as_group(group)
    if group.dimension != 2:
        raise ArgumentError(f"group (={group}) must act on 2 axes")
    return group


def _exact_sizes(subject: Subject) -> tuple[int, ...]:
    *channels, rows, columns = subject.shape
    if rows != columns:
        return ()
    below = (n for n in range(rows, max(0, rows - _REACH - 1), -1) if _is_even(subject, (*channels, n, n)))
    above = (n for n in range(rows + 1, rows + _REACH + 1) if _is_even(subject, (*channels, n, n)))
    return tuple(n for found in (below, above) for n in [next(found, None)] if n is not None)


def _is_even(subject: Subject, shape: tuple[int, ...]) -> bool:
    """Whether no grid is uneven: by the rule where there is a module, which is quick, then by measuring."""

    def check(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        geometry = geometry_of(module)
        if geometry and args and uneven_grid(geometry, tuple(args[0].shape[-2:]), subject.group):
            raise Stop

    try:
        with subject.hooks(check):
            subject(subject.picture(shape))
        return not any(cause.resamples for s in subject.trace(shape) if s.broken for cause in _causes(subject, s))
    except (Stop, ArgumentError):
        return False


def _causes(subject: Subject, step: Step) -> list[Cause]:
    return causes(step, subject.group, subject.orbit, subject.tolerance)


def _row(step: Step, total: Step, reasons: list[Cause]) -> AuditRow:
    kind = type(step.module).__name__ if step.module is not None else "between modules"
    return AuditRow(
        step.name,
        "" if step.name == OUTPUT else kind,
        str(step.reading),
        total.errors,
        step.errors,
        step.broken,
        "; ".join(cause.why for cause in reasons),
        "; ".join(cause.repair for cause in reasons),
        {key: value for cause in reasons for key, value in cause.change.items()},
    )
