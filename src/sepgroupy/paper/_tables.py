"""Cost tables of models, beside the paper's numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..analysis import Complexity, RelativeTime, complexity, relative_times
from ..errors import ArgumentError
from ..models import build_model
from ._published import PAPER_RESULTS, PaperResult, Shape

Models = Mapping[str, tuple[nn.Module, Shape]]


@dataclass(frozen=True)
class CostRow:
    """One model in a table, from :func:`cost_table`.

    Args:
        model: its name.
        shape: of an image, (channels, rows, columns).
        device: where it was measured.
        cost: what was measured.
        paper: what the paper prints of the model of this name, None if there is none.
        time: relative to the first model of the same shape, None if it was not measured.
    """

    model: str
    shape: Shape
    device: str
    cost: Complexity
    paper: PaperResult | None = None
    time: RelativeTime | None = None


def paper_models(names: Sequence[str] = tuple(PAPER_RESULTS)) -> dict[str, tuple[nn.Module, Shape]]:
    """Build models of the paper's tables by name, each with the shape of its images, for :func:`cost_table`.

    Raises:
        ArgumentError: a name is unknown.
    """
    if unknown := [name for name in names if name.lower() not in PAPER_RESULTS]:
        raise ArgumentError(
            f"model (={unknown[0]!r}) is in none of the paper's tables: use one of {', '.join(PAPER_RESULTS)}"
        )
    return {name: (build_model(name), PAPER_RESULTS[name].shape) for name in map(str.lower, names)}


def cost_table(models: Models, measure: bool = False, batch_size: int = 8, rounds: int = 5) -> list[CostRow]:
    """Measure what models cost, one row each; how, is said at :func:`complexity` and :func:`relative_times`.

    Args:
        models: networks by name, each with the shape of an image, (channels, rows, columns); they are measured on
            the device of their parameters.
        measure: also time a training step and inference, against the first model of the same shape. For the
            paper's eleven on two cores this takes a minute or more.
        batch_size: images in a step that is timed.
        rounds: how often each model is timed.

    Raises:
        ArgumentError: a model does not fit its shape, or batch_size or rounds is less than 1.

    >>> [row.cost.parameters for row in cost_table(paper_models(["z2cnn", "gc-p4cnn-small"]))]
    [25210, 3420]
    """
    costs = {name: complexity(module, shape) for name, (module, shape) in models.items()}
    times: dict[str, RelativeTime] = {}
    if measure:
        for shape in dict.fromkeys(shape for _, shape in models.values()):
            rivals = {name: module for name, (module, other) in models.items() if other == shape}
            measured = relative_times(list(rivals.values()), shape, batch_size, rounds)
            times |= dict(zip(rivals, measured, strict=True))
    return [
        CostRow(name, shape, _device(module), costs[name], PAPER_RESULTS.get(name), times.get(name))
        for name, (module, shape) in models.items()
    ]


def to_markdown(rows: Sequence[CostRow]) -> str:
    """Return rows as Markdown: a table for each image shape, numbers in the units of the paper's tables."""
    tables = []
    for shape in dict.fromkeys(row.shape for row in rows):
        columns = [c for c in _COLUMNS if any(c.value(row) is not None for row in rows if row.shape == shape)]
        lines = [[c.heading for c in columns], [":--", *["--:"] * (len(columns) - 1)]]
        for row in rows:
            if row.shape == shape:
                values = [(c, c.value(row)) for c in columns]
                lines.append(["" if value is None else c.show(value) for c, value in values])
        tables.append("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "\n".join(tables)


def to_csv(rows: Sequence[CostRow]) -> str:
    """Return rows as CSV: one table, plain numbers: bytes, multiply-accumulates, ratios."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.name for column in _COLUMNS])
    writer.writerows([column.value(row) for column in _COLUMNS] for row in rows)
    return text.getvalue()


def _device(module: nn.Module) -> str:
    return next((p.device.type for p in module.parameters()), "cpu")


def _scaled(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.5g} {unit}"
    return f"{value:.5g}"


def _mebibytes(value: float) -> str:
    return f"{value / 2**20:.2f} MiB"


@dataclass(frozen=True)
class _Column:
    name: str
    heading: str
    value: Callable[[CostRow], Any]
    show: Callable[[Any], str] = str


_COLUMNS = (
    _Column("model", "model", lambda row: row.model),
    _Column("shape", "image", lambda row: "×".join(map(str, row.shape))),
    _Column("width", "*w*", lambda row: row.paper and row.paper.width),
    _Column("test_error_paper", "test error, paper", lambda row: row.paper and row.paper.test_error),
    _Column("parameters", "parameters", lambda row: row.cost.parameters, "{:,}".format),
    _Column("parameters_paper", "paper", lambda row: row.paper and row.paper.parameters, _scaled),
    _Column("macs", "MACs, formula", lambda row: row.cost.macs, _scaled),
    _Column("macs_paper", "paper", lambda row: row.paper and row.paper.macs, _scaled),
    _Column("macs_executed", "MACs, executed", lambda row: row.cost.macs_executed, _scaled),
    _Column("device", "measured on", lambda row: row.device),
    _Column("memory", "memory", lambda row: row.cost.memory, _mebibytes),
    _Column("memory_paper", "paper", lambda row: row.paper and row.paper.memory, _mebibytes),
    _Column("training_time", "training step", lambda row: row.time and row.time.training, "{:.2f}".format),
    _Column("inference_time", "inference", lambda row: row.time and row.time.inference, "{:.2f}".format),
)
