"""Measure the equivariance of a whole network, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError
from ..groups import GroupLike, PointGroup, as_group, axis_names, transformed_size
from ..nn import GroupConvolution
from ._diagnosis import Diagnosis, diagnose
from ._grid import geometry_of, has_symmetric_grid
from ._report import AuditReport, AuditRow
from ._tracing import Step, Stop, Subject

_REACH = 32  # five strides of 2: sizes repeat after 2⁵


def audit(
    model: nn.Module,
    group: GroupLike,
    input_size: int | Sequence[int],
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> AuditReport:
    """Measure the equivariance error of a network, layer by layer and for every group element.

    The images ``t·x``, x random, go through a copy of the network twice, eight elements t in a batch. In the first pass
    each layer's output is set to ``t·y(x)`` after it has been measured, so that the error of the next layer is
    separate. In the second pass errors accumulate. The action of t on a feature map is found from its shape: with or
    without group axis, with the group axis merged into the batch or the channels, channels last, flattened, or
    invariant. The values decide between these. The output must be one tensor or nested tensors, each with four axes
    (B, C, Y, X), five (B, C, |H|, Y, X), or fewer, which are invariant; of volumes five, six or fewer, of signals
    three, four or fewer.

    The copy is in inference mode. Its parameters and running statistics that are constant are replaced by small
    random numbers: the ones and zeros of a new batch norm would hide errors that appear after training.

    Args:
        model: any network with the batch as first axis; operations between its leaf modules are measured too.
        group: the point group; a name is that of a group of as many axes as the network's convolutions have.
        input_size: rows and columns of the image, whose channels are those of the first convolution; or the whole
            shape (channels, rows, columns), or (channels, |H|, rows, columns) for a group feature map.
        dtype: dtype of the measurement; float64 separates rounding from other errors.
        seed: of the random numbers.

    Raises:
        ArgumentError: the network does not take such an image, or an argument is invalid.

    >>> from sepgroupy import LiftingConv2d
    >>> report = audit(LiftingConv2d(1, 2, 3, stride=2, group="p4"), "p4", 8)
    >>> report.exact, report.sizes, dict(report.first.suggested_arguments)
    (False, (7, 9), {'kernel_size': 4, 'padding': 0})
    """
    group = as_group(group, dimension_of(model) if isinstance(group, str) else None)
    subject = Subject(model, group, input_shape(model, input_size, group), dtype, seed)
    steps = subject.trace()
    totals = subject.trace(steps=steps)
    if len(steps) != len(totals):
        raise ArgumentError("model calls other modules each time: it cannot be audited")
    diagnoses = [_diagnose(subject, step) if step.broken else [] for step in steps]
    rows = tuple(
        _row(step, total, found)
        for step, total, found in zip(steps, totals, diagnoses, strict=True)
        if step.module is not None or step.broken or step.is_output
    )
    exact = not any(total.broken for total in totals if total.is_output)
    resamples = not exact and any(row.depends_on_size for row in rows)
    return AuditReport(group, subject.shape, subject.tolerance, rows, exact, _exact_sizes(subject) if resamples else ())


def exact_sizes(
    model: nn.Module,
    group: GroupLike,
    around: int | Sequence[int],
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[int, ...]:
    """Return the nearest input sizes, one at most as large as the given one and one larger, with symmetric grids only.

    At these sizes every stride, pooling and resize, in modules and between them, samples a grid that the group maps to
    itself. Layers that break the symmetry at every size, such as a plain convolution, do not count, and neither does an
    image of one pixel.

    Args:
        model: as for :func:`audit`; sizes that it does not take are left out.
        group: the point group.
        around: the input size, or the whole shape of a square image, as for :func:`audit`.
        dtype: dtype of the measurement.
        seed: of the random numbers.

    Returns:
        At most two sizes, none farther than 32 pixels away.

    Raises:
        ArgumentError: an argument is invalid.
    """
    group = as_group(group, dimension_of(model) if isinstance(group, str) else None)
    return _exact_sizes(Subject(model, group, input_shape(model, around, group), dtype, seed))


def input_shape(model: nn.Module, size: int | Sequence[int], group: PointGroup) -> tuple[int, ...]:
    """Return the shape of an image, by default with the channels of the first convolution."""
    shape: Any = size
    axes = "rows, columns" if group.dimension == 2 else ", ".join(axis_names(group.dimension))
    if isinstance(size, Integral):
        channels = next((m.in_channels for m in model.modules() if hasattr(m, "in_channels")), None)
        if channels is None:
            raise ArgumentError(f"input_size (={size}) must be (channels, {axes}): model has no convolution")
        shape = (channels, *(int(size),) * group.dimension)
    lengths = (1 + group.dimension, 2 + group.dimension)
    if not isinstance(shape, Sequence) or len(shape) not in lengths or not all(isinstance(n, int) for n in shape):
        raise ArgumentError(f"input_size (={size!r}) must be an integer, or (channels, {axes})")
    if min(shape) < 1:
        raise ArgumentError(f"input_size (={size!r}) must be positive")
    spatial = tuple(shape[-group.dimension :])
    if any(transformed_size(matrix, spatial) != spatial for matrix in group.arrays):
        raise ArgumentError(f"input_size (={size!r}) must be the same on axes that {group} exchanges ({axes})")
    return tuple(shape)


def dimension_of(model: nn.Module) -> int | None:
    """Return the number of spatial axes of a network's first convolution; None if it has none."""
    for module in model.modules():
        if isinstance(module, GroupConvolution):
            return module.dimension
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return len(module.kernel_size)
    return None


def _exact_sizes(subject: Subject) -> tuple[int, ...]:
    dimension = subject.group.dimension
    channels, size = subject.shape[:-dimension], subject.shape[-1]
    if len(set(subject.shape[-dimension:])) > 1:
        return ()

    def fits(n: int) -> bool:
        return _has_symmetric_grids(subject, (*channels, *(n,) * dimension))

    below = (n for n in range(size, max(1, size - _REACH - 1), -1) if fits(n))
    above = (n for n in range(size + 1, size + _REACH + 1) if fits(n))
    return tuple(n for found in (below, above) for n in [next(found, None)] if n is not None)


def _has_symmetric_grids(subject: Subject, shape: tuple[int, ...]) -> bool:
    """Whether every grid is symmetric: first by the rule for modules, which is fast, then by measurement."""

    def check(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        geometry = geometry_of(module)
        if (
            geometry
            and args
            and not has_symmetric_grid(geometry, tuple(args[0].shape[-subject.group.dimension :]), subject.group)
        ):
            raise Stop

    try:
        with subject.hooks(check):
            subject(subject.image(shape))
        broken = [step for step in subject.trace(shape) if step.broken]
        return not any(found.depends_on_size for step in broken for found in _diagnose(subject, step))
    except (Stop, ArgumentError):
        return False


def _diagnose(subject: Subject, step: Step) -> list[Diagnosis]:
    assert step.orbit is not None
    return diagnose(step, subject.group, step.orbit, subject.tolerance)


def _row(step: Step, total: Step, found: list[Diagnosis]) -> AuditRow:
    kind = type(step.module).__name__ if step.module is not None else "between modules"
    return AuditRow(
        step.name,
        "" if step.is_output else kind,
        str(step.layout),
        total.errors,
        step.errors,
        step.broken,
        "; ".join(diagnosis.cause for diagnosis in found),
        "; ".join(diagnosis.suggested_fix for diagnosis in found),
        {key: value for diagnosis in found for key, value in diagnosis.suggested_arguments.items()},
        any(diagnosis.depends_on_size for diagnosis in found),
        step.is_output,
    )
