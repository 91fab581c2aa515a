"""What the results say about the targets of the library's speed."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, str]
SUITES = ("layers", "models", "scaling")


def read(folder: Path) -> dict[str, list[Row]]:
    """Read the rows of every suite that has been run on the CPU."""
    found: dict[str, list[Row]] = {}
    for suite in SUITES:
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


def ratio(rows: Sequence[Row], column: str, reference: str = "baseline") -> float | None:
    """Return how many times as large a column is for the reference as for the library; the least of several rows."""
    base, ours = (select(rows, variant=name) for name in (reference, "sepgroupy"))
    pairs = list(zip(base, ours, strict=False))
    return min((float(b[column]) / float(o[column]) for b, o in pairs if o[column]), default=None)


def targets(results: Mapping[str, Sequence[Row]]) -> str:
    """Write the table of targets in Markdown; a row that was not run stays empty."""
    layers, models = results.get("layers", ()), results.get("models", ())
    deep = select(models, model="gc-p4m-resnet44", batch=16)
    flat = select(models, model="gc-p4cnn", batch=256)
    ready = select(models, model="p4m-resnet44", batch=16)
    dense = select(layers, kind="dense", kernel=3)
    everything = [row for rows in results.values() for row in rows if row["variant"] == "sepgroupy"]
    speedups = [
        float(row[column]) for row in everything for column in ("evaluation_speedup", "step_speedup") if row[column]
    ]
    kept = ratio(deep, "kept_mib")
    construction = [float(row["construction_ms"]) for row in select(deep, variant="sepgroupy")]
    lines = [
        *(
            (f"pointwise step, {channels} channels, evaluation, against a ready bank", ">= 2.2",
             ratio(select(layers, kind="dense", kernel=1, channels=channels), "evaluation_ms", "ready bank"))
            for channels in (56, 112)
        ),
        ("gc-p4m-ResNet44, evaluation, batch 16", ">= 2", ratio(deep, "evaluation_ms")),
        ("gc-p4m-ResNet44, training step, batch 16", ">= 1.8", ratio(deep, "step_ms")),
        ("gc-p4m-ResNet44, memory kept for backward", "<= 0.6", 1 / kept if kept else None),
        ("gc-P4CNN, training step, batch 256", ">= 3", ratio(flat, "step_ms")),
        ("dense 3×3 layers, evaluation, against a ready bank", ">= 0.95", ratio(dense, "evaluation_ms", "ready bank")),
        ("dense 3×3 layers, step, against a ready bank", ">= 0.95", ratio(dense, "step_ms", "ready bank")),
        ("p4m-ResNet44, evaluation, against ready banks", ">= 0.95", ratio(ready, "evaluation_ms", "ready bank")),
        ("p4m-ResNet44, training step, against ready banks", ">= 0.95", ratio(ready, "step_ms", "ready bank")),
        ("slowest of all rows against the baseline", ">= 1", min(speedups, default=None)),
        ("constructing gc-p4m-ResNet44, s", "<= 0.3", construction[0] / 1e3 if construction else None),
    ]  # fmt: skip
    table = ["| work | target | measured | met |", "| --- | --- | --- | --- |"]
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
