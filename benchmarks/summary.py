"""What the results say about the targets of the library's speed."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, str]
IDENTITY = {
    "layers": ("group", "kind", "kernel", "channels", "size", "batch", "threads", "precision"),
    "models": ("model", "batch", "threads", "precision"),
    "across": ("model", "against", "batch", "threads"),
    "scaling": ("sweep", "channels", "size", "batch", "threads"),
}
"""What tells the rows of a suite apart, beside the variant."""


def read(folder: Path) -> dict[str, list[Row]]:
    """Read the rows of every suite that has been run on the CPU."""
    found: dict[str, list[Row]] = {}
    for suite in IDENTITY:
        path = folder / f"{suite}.csv"
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                found[suite] = list(csv.DictReader(file))
    return found


def select(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Return the rows with these values, of those with the most threads unless threads are among them."""
    if "threads" not in wanted and rows:
        wanted["threads"] = max(int(row["threads"]) for row in rows)
    return [row for row in rows if all(row[name] == str(value) for name, value in wanted.items())]


def ratio(rows: Sequence[Row], column: str, reference: str = "baseline", variant: str = "sepgroupy") -> float | None:
    """Return how many times as large a column is for the reference as for a variant; the least of several rows."""
    base, ours = (select(rows, variant=name) for name in (reference, variant))
    return min((quotient(b, o, column) for b, o in zip(base, ours, strict=False) if o[column]), default=None)


def quotient(base: Row, ours: Row, column: str) -> float:
    """Return how many times as large a column is for one row as for another.

    Times are compared by their shares of the baseline's in the same rounds: the machine's speed changes between rounds.
    """
    if column in ("evaluation_ms", "step_ms"):
        speedup = column.replace("_ms", "_speedup")
        return float(ours[speedup]) / float(base[speedup])
    return float(base[column]) / float(ours[column])


def targets(results: Mapping[str, Sequence[Row]]) -> str:
    """Write the tables of targets in Markdown, PyTorch alone and the kernels; a row that was not run stays empty."""
    layers, models = results.get("layers", ()), results.get("models", ())

    def model(name: str, batch: int = 16) -> list[Row]:
        return select(models, model=name, batch=batch)

    def layer(**wanted: Any) -> list[Row]:
        return select(layers, **wanted)

    deep, flat, dense = model("gc-p4m-resnet44"), model("gc-p4cnn", 256), layer(kind="dense", kernel=3)
    alone = {"variant": "sepgroupy torch"}
    kept, torch_kept = ratio(deep, "kept_mib"), ratio(deep, "kept_mib", **alone)
    construction = [float(row["construction_ms"]) for row in select(deep, variant="sepgroupy")]
    pairs = [row for row in results.get("across", ()) if row["variant"] == row["model"]]
    across = {row["model"]: float(row["step_speedup"]) for row in pairs}
    torch_lines: list[tuple[str, str, float | None]] = [
        *(
            (f"pointwise step, {channels} channels, evaluation", ">= 2.2",
             ratio(layer(kind="dense", kernel=1, channels=channels), "evaluation_ms", **alone))
            for channels in (56, 112)
        ),
        ("gc-p4m-ResNet44, evaluation, batch 16", ">= 2", ratio(deep, "evaluation_ms", **alone)),
        ("gc-p4m-ResNet44, training step, batch 16", ">= 1.8", ratio(deep, "step_ms", **alone)),
        ("gc-p4m-ResNet44, memory kept for backward", "<= 0.6", 1 / torch_kept if torch_kept else None),
        ("gc-P4CNN, training step, batch 256", ">= 3", ratio(flat, "step_ms", **alone)),
        *(
            (f"{name}, {words}, against a ready bank", ">= 0.95", ratio(rows, column, "ready bank", **alone))
            for name, rows in (("dense 3×3 layers", dense), ("p4m-ResNet44", model("p4m-resnet44")))
            for words, column in (("evaluation", "evaluation_ms"), ("step", "step_ms"))
        ),
        ("slowest of all rows against the baseline", ">= 1", _slowest(results, **alone)),
        ("constructing gc-p4m-ResNet44, s", "<= 0.3", construction[0] / 1e3 if construction else None),
    ]  # fmt: skip
    native_lines: list[tuple[str, str, float | None]] = [
        *(
            (f"dense p4m {c} channels at {n}×{n}, {words}, against a ready bank", f">= {bound}",
             function(layer(kind="dense", kernel=3, channels=c, size=n, batch=b)))
            for c, n, b, least in ((11, 32, 16, 2.5), (23, 16, 32, 3), (45, 8, 64, 3), (64, 16, 16, 3))
            for words, bound, function in (
                ("evaluation", least, lambda rows: ratio(rows, "evaluation_ms", "ready bank")),
                ("forward + backward", 2, lambda rows: ratio(rows, "step_ms", "ready bank")),
            )
        ),
        ("p4m-ResNet44, evaluation, batch 16", ">= 2.5", ratio(model("p4m-resnet44"), "evaluation_ms")),
        ("p4m-ResNet44, training step, batch 16", ">= 2", ratio(model("p4m-resnet44"), "step_ms")),
        *(
            (f"gc layer {c} channels at {n}×{n}, evaluation", ">= 3.5",
             ratio(layer(kind="gc", channels=c, size=n, batch=16), "evaluation_ms"))
            for c, n in ((28, 32), (56, 16), (112, 8))
        ),
        ("gc-p4m-ResNet44, evaluation, batch 16", ">= 4", ratio(deep, "evaluation_ms")),
        ("gc-p4m-ResNet44, training step, batch 16", ">= 3", ratio(deep, "step_ms")),
        ("plain ResNet44's training step over gc-p4m-ResNet44's", ">= 0.33", across.get("gc-p4m-resnet44")),
        ("p4m-ResNet44's published step over g-p4m-ResNet44's", ">= 2", across.get("g-p4m-resnet44")),
        ("P4CNN's published step over gc-P4CNN's, batch 256", ">= 1", across.get("gc-p4cnn")),
        ("gc-p4m-ResNet44, memory kept for backward", "<= 0.6", 1 / kept if kept else None),
        ("slowest of all rows against the baseline", ">= 1", _slowest(results)),
        ("slowest of all rows against PyTorch alone", ">= 1", _slowest(results, reference="sepgroupy torch")),
    ]  # fmt: skip
    return f"{_table('PyTorch alone', torch_lines)}\n\n{_table('with the kernels', native_lines)}"


def _slowest(
    results: Mapping[str, Sequence[Row]], variant: str = "sepgroupy", reference: str = "baseline"
) -> float | None:
    found = []
    for suite, rows in results.items():
        names = IDENTITY[suite]
        times = {(row["variant"], *(row[name] for name in names)): row for row in rows}
        for (which, *key), row in times.items():
            base = times.get((reference, *key))
            if which == variant and base:
                found += [quotient(base, row, c) for c in ("evaluation_ms", "step_ms") if base[c] and row[c]]
    return min(found, default=None)


def _table(title: str, lines: Sequence[tuple[str, str, float | None]]) -> str:
    table = [f"| {title} | target | measured | met |", "| --- | --- | --- | --- |"]
    for work, target, value in lines:
        table.append(f"| {work} | {target} | {'' if value is None else f'{value:.2f}'} | {_met(target, value)} |")
    return "\n".join(table)


def slower(results: Mapping[str, Sequence[Row]]) -> list[str]:
    """Name the rows in which the library is slower than the baseline, the slowest first."""
    names = ("model", "sweep", "group", "kind", "kernel", "channels", "size", "batch", "threads", "precision")
    found = [
        (float(row[f"{what}_speedup"]), f"{suite}: {what}, {', '.join(f'{n} {row[n]}' for n in names if n in row)}")
        for suite, rows in results.items()
        for row in rows
        for what in ("evaluation", "step")
        if row["variant"] == "sepgroupy" and row[f"{what}_speedup"] and float(row[f"{what}_speedup"]) < 1
    ]
    return [f"{speedup:.2f} times  {name}" for speedup, name in sorted(found)]


def _met(target: str, value: float | None) -> str:
    if value is None:
        return ""
    relation, bound = target.split()
    return "yes" if (value >= float(bound) if relation == ">=" else value <= float(bound)) else "no"
