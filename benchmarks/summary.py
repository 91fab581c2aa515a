"""Targets of the library's speed, and whether the results meet them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .results import Row

TIMES = ("inference_ms", "step_ms")


def select(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Return the rows with these values, of those with the most threads unless threads are among them."""
    if "threads" not in wanted and rows:
        wanted["threads"] = max(int(row["threads"]) for row in rows)
    return [row for row in rows if all(row[name] == str(value) for name, value in wanted.items())]


def ratio(rows: Sequence[Row], column: str, reference: str = "baseline", variant: str = "sepgroupy") -> float | None:
    """Return how many times as large a column is for the reference as for a variant; the smallest of several rows."""
    base, found = (select(rows, variant=name) for name in (reference, variant))
    return min((quotient(b, f, column) for b, f in zip(base, found, strict=False) if f[column]), default=None)


def quotient(base: Row, line: Row, column: str) -> float:
    """Return how many times as large a column is for one line as for another of the same row.

    Times are compared by their shares of the baseline's in the same rounds: the machine's speed changes between rounds.
    """
    if column in TIMES:
        speedup = column.replace("_ms", "_speedup")
        return float(line[speedup]) / float(base[speedup])
    return float(base[column]) / float(line[column])


def targets(results: Mapping[str, Sequence[Row]]) -> str:
    """Return the tables of targets in Markdown, PyTorch alone and the kernels; a row that was not run stays empty."""
    layers, models = results.get("layers", ()), results.get("models", ())

    def model(name: str, batch: int = 16) -> list[Row]:
        return select(models, model=name, batch=batch)

    def layer(**wanted: Any) -> list[Row]:
        return select(layers, stride=1, **wanted)

    deep, dense = model("gc-p4m-resnet44"), layer(kind="dense", kernel=3)
    alone = {"variant": "sepgroupy torch"}
    saved = ratio(deep, "saved_mib")
    construction = [float(row["construction_ms"]) for row in select(deep, variant="sepgroupy")]
    pairs = [row for row in results.get("cross_model", ()) if row["variant"] == row["model"]]
    cross_model = {(row["model"], row["against"]): float(row["step_speedup"]) for row in pairs}
    converted = [row for row in results.get("converted", ()) if row["variant"] == row["model"]]
    torch_lines: list[tuple[str, str, float | None]] = [
        *(
            (f"pointwise step, {channels} channels, inference", ">= 2.2",
             ratio(layer(kind="dense", kernel=1, channels=channels), "inference_ms", **alone))
            for channels in (56, 112)
        ),
        *(
            (f"{name}, {words}, against precomputed filters", ">= 0.95", ratio(rows, column, "precomputed", **alone))
            for name, rows in (("dense 3×3 layers", dense), ("p4m-ResNet44", model("p4m-resnet44")))
            for words, column in (("inference", "inference_ms"), ("step", "step_ms"))
        ),
        ("slowest of all rows against the baseline", ">= 1", _slowest(results, **alone)),
        ("constructing gc-p4m-ResNet44, s", "<= 0.3", construction[0] / 1e3 if construction else None),
    ]  # fmt: skip
    native_lines: list[tuple[str, str, float | None]] = [
        *(
            (f"dense p4m {c} channels at {n}×{n}, {words}, against precomputed filters", f">= {bound}",
             function(layer(kind="dense", kernel=3, channels=c, size=n, batch=b)))
            for c, n, b, least in ((11, 32, 16, 2.5), (23, 16, 32, 3), (45, 8, 64, 3), (64, 16, 16, 3))
            for words, bound, function in (
                ("inference", least, lambda rows: ratio(rows, "inference_ms", "precomputed")),
                ("forward + backward", 2, lambda rows: ratio(rows, "step_ms", "precomputed")),
            )
        ),
        ("p4m-ResNet44, inference, batch 16", ">= 2.5", ratio(model("p4m-resnet44"), "inference_ms")),
        ("p4m-ResNet44, training step, batch 16", ">= 2", ratio(model("p4m-resnet44"), "step_ms")),
        *(
            (f"gc layer {c} channels at {n}×{n}, inference", ">= 3.5",
             ratio(layer(kind="gc", channels=c, size=n, batch=16), "inference_ms"))
            for c, n in ((28, 32), (56, 16), (112, 8))
        ),
        ("gc-p4m-ResNet44, inference, batch 16", ">= 4", ratio(deep, "inference_ms")),
        ("gc-p4m-ResNet44, training step, batch 16", ">= 3", ratio(deep, "step_ms")),
        *(
            (f"{name}, training step, times plain ResNet44's", f"<= {bound}",
             _inverse(cross_model.get((name.lower(), "resnet44"))))
            for name, bound in (("p4m-ResNet44", 1.7), ("g-p4m-ResNet44", 3.5), ("gc-p4m-ResNet44", 2.0))
        ),
        ("p4m-ResNet44's baseline step over g-p4m-ResNet44's", ">= 2",
         cross_model.get(("g-p4m-resnet44", "p4m-resnet44"))),
        ("P4CNN's baseline step over gc-P4CNN's, batch 256", ">= 1", cross_model.get(("gc-p4cnn", "p4cnn"))),
        *_converted(converted),
        ("gc-p4m-ResNet44, memory saved for backward", "<= 0.6", _inverse(saved)),
        ("slowest of all rows against the baseline", ">= 1", _slowest(results)),
        ("slowest of all rows against PyTorch alone", ">= 1", _slowest(results, reference="sepgroupy torch")),
    ]  # fmt: skip
    return f"{_table('PyTorch alone', torch_lines)}\n\n{_table('with the kernels', native_lines)}"


def _inverse(ratio: float | None) -> float | None:
    return 1 / ratio if ratio else None


def _converted(rows: Sequence[Row]) -> Iterator[tuple[str, str, float | None]]:
    """Yield the lines of converted networks that have a target."""
    for row in rows:
        bounds = {"inference": 2.5} if "convnext" in row["model"] else {}
        if "resnet" in row["model"]:
            bounds = dict.fromkeys(("inference", "step"), 2.2 if "dense" in row["model"] else 3.0)
        for what, bound in bounds.items():
            times = 1 / float(row[f"{what}_speedup"])
            yield f"{row['row']}, {what}, times the plain network's", f"<= {bound}", times


def _slowest(
    results: Mapping[str, Sequence[Row]], variant: str = "sepgroupy", reference: str = "baseline"
) -> float | None:
    found = []
    for rows in results.values():
        lines = {(_identity(row), row["variant"]): row for row in rows}
        for (identity, name), line in lines.items():
            base = lines.get((identity, reference))
            if name == variant and base:
                found += [quotient(base, line, column) for column in TIMES if base[column] and line[column]]
    return min(found, default=None)


def _identity(row: Row) -> tuple[str, str, str]:
    return row["row"], row["threads"], row.get("precision", "")


def _table(title: str, lines: Sequence[tuple[str, str, float | None]]) -> str:
    table = [f"| {title} | target | measured | met |", "| --- | --- | --- | --- |"]
    for work, target, value in lines:
        table.append(f"| {work} | {target} | {'' if value is None else f'{value:.2f}'} | {_met(target, value)} |")
    return "\n".join(table)


def slower(results: Mapping[str, Sequence[Row]]) -> list[str]:
    """Name the rows in which the library is slower than the baseline, the slowest first."""
    found = [
        (float(row[f"{what}_speedup"]), f"{suite}: {what}, {row['row']}, {row['threads']} threads")
        for suite, rows in results.items()
        for row in rows
        for what in ("inference", "step")
        if row["variant"] == "sepgroupy" and row[f"{what}_speedup"] and float(row[f"{what}_speedup"]) < 1
    ]
    return [f"{speedup:.2f} times  {name}" for speedup, name in sorted(found)]


def _met(target: str, value: float | None) -> str:
    if value is None:
        return ""
    relation, bound = target.split()
    return "yes" if (value >= float(bound) if relation == ">=" else value <= float(bound)) else "no"
