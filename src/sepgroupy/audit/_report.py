"""What an audit found: a frozen value that prints as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..groups import PointGroup


@dataclass(frozen=True)
class AuditRow:
    """One layer of an audited network, or one step between its modules.

    Errors are ``max |y(t·x) - t·y(x)| / max |y(x)|``, one for each element t of the group.
    """

    name: str
    """The module's name, or that of the module whose input a step makes."""
    type: str
    map: str
    """The map as it was read: channels × elements of the group × rows × columns, those of them that there are."""
    errors: tuple[float, ...]
    """End to end: those that are passed on from layers before are among them."""
    introduced: tuple[float, ...]
    """By this layer alone, from an exact input."""
    breaks: bool
    """Whether it introduces more than rounding does."""
    why: str = ""
    repair: str = ""
    change: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the layer that would make it exact at this size, if there are such."""

    @property
    def worst(self) -> float:
        """The largest error that the layer introduces, over all elements."""
        return max(self.introduced)


@dataclass(frozen=True)
class AuditReport:
    """What :func:`audit` found; ``str(report)`` is a table and a verdict."""

    group: PointGroup
    shape: tuple[int, ...]
    """Of the picture: channels, (elements of the group,) rows, columns."""
    tolerance: float
    rows: tuple[AuditRow, ...]
    """Layers in the order of their calls; the last are the network's outputs."""
    exact: bool
    """Whether the network as a whole is equivariant to rounding."""
    sizes: tuple[int, ...] = ()
    """The nearest input sizes at which no grid is uneven, if this one has such grids."""

    @property
    def breaking(self) -> tuple[AuditRow, ...]:
        """All layers that break the symmetry; none in a network that is exact."""
        return () if self.exact else tuple(row for row in self.rows if row.breaks) or self.rows[-1:]

    @property
    def first(self) -> AuditRow | None:
        """The first of them."""
        return next(iter(self.breaking), None)

    @property
    def why(self) -> str:
        """Why the first layer breaks the symmetry."""
        return self.first.why if self.first else ""

    @property
    def repair(self) -> str:
        """What would repair the first layer, and at which input sizes no grid is uneven."""
        if self.first is None:
            return ""
        sizes = f"no uneven grid at input size {' or '.join(map(str, self.sizes))}" if self.sizes else ""
        return "; ".join(text for text in (sizes, self.first.repair) if text)

    def __str__(self) -> str:
        order = len(self.rows[-1].errors)
        head = ["layer", "type", "map", "introduced", *(f"t={i}" for i in range(1, order))]
        lines = [
            [row.name, row.type, row.map, _short(row.worst), *map(_short, row.errors[1:]), "breaks" * row.breaks]
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
        table = []
        for *cells, mark in ([*head, ""], *lines):
            padded = (c.rjust(w) if i > 2 else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
            table.append("  ".join((*padded, mark)))
        return "\n".join(line.rstrip() for line in (*table, "", *self._verdict()))

    def _verdict(self) -> list[str]:
        shape = "×".join(map(str, self.shape))
        where = f"under {self.group.name or 'the group'} ({self.group.order} elements) at {shape}"
        change = max(self.rows[-1].errors)
        if self.first is None:
            return [f"exact {where}: the output changes by {_short(change)} of its largest value"]
        lines = [
            f"not exact {where}: the output changes by {_short(change)} of its largest value",
            f"first:  {self.first.name} ({self.first.type})",
            f"why:    {self.why}",
            f"repair: {self.repair}",
        ]
        others = list(dict.fromkeys(row.name for row in self.breaking[1:]))
        more = f", and {len(others) - 6} more" if len(others) > 6 else ""
        return lines + [f"also:   {', '.join(others[:6])}{more}"] * bool(others)


def _short(error: float) -> str:
    return f"{error:.0e}" if error else "0"
