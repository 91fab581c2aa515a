"""The result of an audit: a frozen value that prints as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..groups import PointGroup

_MAX_COLUMNS = 8


@dataclass(frozen=True)
class AuditRow:
    """One layer of an audited network, one step between its modules, or one output.

    Errors are ``max |y(t·x) - t·y(x)| / max |y(x)|``, one for each element t of the group.
    """

    name: str
    """The module's name; that of the module whose input a step computes; or an output such as ``output['aux']``."""
    type: str
    shape: str
    """Of the feature map: channels × elements of the group × rows × columns, without absent axes."""
    errors: tuple[float, ...]
    """End to end: they include those of earlier layers."""
    layer_error: tuple[float, ...]
    """Of this layer alone, for an exact input."""
    breaks: bool
    """Whether its error exceeds rounding."""
    cause: str = ""
    suggested_fix: str = ""
    suggested_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that would make the layer exact at this size, if there are any."""
    depends_on_size: bool = False
    """Whether it may be exact at another size of its input."""
    is_output: bool = False

    @property
    def worst(self) -> float:
        """The largest error that the layer adds, over all elements."""
        return max(self.layer_error)


@dataclass(frozen=True)
class AuditReport:
    """The result of :func:`sepgroupy.audit`; ``str(report)`` is a table and a verdict."""

    group: PointGroup
    shape: tuple[int, ...]
    """Of the image: channels, (elements of the group,) and spatial sizes, such as rows and columns."""
    tolerance: float
    rows: tuple[AuditRow, ...]
    """Layers in the order of their calls; the last are the network's outputs."""
    exact: bool
    """Whether the network as a whole is equivariant to rounding."""
    sizes: tuple[int, ...] = ()
    """The nearest input sizes at which every grid is symmetric, if the grids at this one are not."""

    @property
    def breaking(self) -> tuple[AuditRow, ...]:
        """All layers that break the symmetry; none in a network that is exact."""
        return () if self.exact else tuple(row for row in self.rows if row.breaks) or self.rows[-1:]

    @property
    def first(self) -> AuditRow | None:
        """The first of them."""
        return next(iter(self.breaking), None)

    @property
    def cause(self) -> str:
        """The cause for which the first layer breaks the symmetry."""
        return self.first.cause if self.first else ""

    @property
    def suggested_fix(self) -> str:
        """A fix of the first layer, and the input sizes at which every grid is symmetric.

        If there is no such size nearby, a fix for each layer with an asymmetric grid.
        """
        if self.first is None:
            return ""
        if self.sizes:
            sizes = " or ".join(map(str, self.sizes))
            return f"every grid is symmetric at input size {sizes}; {self.first.suggested_fix}"
        sized = [row for row in self.breaking if row.depends_on_size]
        if not sized or len(set(self.shape[-self.group.dimension :])) > 1:
            return self.first.suggested_fix
        changes = "; ".join(f"{row.name}: {_arguments(row)}" for row in sized)
        fix = "" if self.first in sized else f"; {self.first.suggested_fix}"
        return (
            f"at no input size near {self.shape[-1]} that the network takes every grid is symmetric: change each of "
            f"these layers, {changes}{fix}"
        )

    def __str__(self) -> str:
        order = len(self.rows[-1].errors)
        wide = order > _MAX_COLUMNS  # then one column with the largest
        head = [
            "layer",
            "type",
            "shape",
            "layer error",
            *(["largest"] if wide else (f"t={i}" for i in range(1, order))),
        ]
        lines = []
        for row in self.rows:
            errors = [max(row.errors)] if wide else row.errors[1:]
            cells = [row.name, row.type, row.shape, _short(row.worst), *map(_short, errors)]
            lines.append([*cells, "breaks" * row.breaks])
        widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
        table = []
        for *cells, mark in ([*head, ""], *lines):
            padded = (c.rjust(w) if i > 2 else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
            table.append("  ".join((*padded, mark)))
        return "\n".join(line.rstrip() for line in (*table, "", *self._verdict()))

    def _verdict(self) -> list[str]:
        shape = "×".join(map(str, self.shape))
        where = f"under {self.group.name or 'the group'} ({self.group.order} elements) at {shape}"
        change = max(error for row in self.rows if row.is_output for error in row.errors)
        if self.first is None:
            return [f"exact {where}: the output changes by {_short(change)} of its largest value"]
        lines = [
            f"not exact {where}: the output changes by {_short(change)} of its largest value",
            f"first:  {self.first.name} ({self.first.type})",
            f"cause:  {self.cause}",
            f"fix:    {self.suggested_fix}",
        ]
        others = list(dict.fromkeys(row.name for row in self.breaking[1:]))
        more = f", and {len(others) - 6} more" if len(others) > 6 else ""
        return lines + [f"also:   {', '.join(others[:6])}{more}"] * bool(others)


def _arguments(row: AuditRow) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in row.suggested_arguments.items()) or row.suggested_fix


def _short(error: float) -> str:
    return f"{error:.0e}" if error else "0"
