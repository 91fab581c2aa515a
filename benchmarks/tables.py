"""Write the tables of docs/performance.md from the results, between their marks.

python -m benchmarks.tables
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sepgroupy._files import atomic

from .arguments import RESULTS, ROOT
from .results import Row, read
from .summary import select, targets


def networks(rows: Sequence[Row]) -> str:
    """Return time and saved memory of each network, both variants of the library's compared with the baseline."""
    lines = [
        "| network, batch | baseline: inference, step, ms | PyTorch alone: times as fast "
        "| kernels: ms | times as fast | saved, MiB | of baseline |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for line in select(rows, variant="sepgroupy"):
        base, pytorch = (_same_row(rows, line, variant) for variant in ("baseline", "sepgroupy torch"))
        saved = float(line["saved_mib"] or 0)
        share = f"{saved / float(base['saved_mib']):.2f}" if base and saved else "–"
        lines.append(
            f"| {line['model']}, {line['batch']} | {_times(base)} | {_speedups(pytorch)} | {_times(line)} "
            f"| {_speedups(line) if base else '–'} | {f'{saved:.1f}' if saved else '–'} "
            f"| {share} |"
        )
    return "\n".join(lines)


def layers(rows: Sequence[Row]) -> str:
    """Return the time of each layer, compared with the baseline, and how far it is from the limit."""
    lines = [
        "| layer | precomputed filters: times as fast | PyTorch alone | kernels: ms | times as fast | × limit |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for line in select(rows, variant="sepgroupy"):
        precomputed, pytorch = (_same_row(rows, line, variant) for variant in ("precomputed", "sepgroupy torch"))
        limit = f"{float(line['inference_over_limit']):.1f}, {float(line['step_over_limit']):.1f}"
        lines.append(
            f"| {line['row']} | {_speedups(precomputed)} | {_speedups(pytorch)} "
            f"| {_times(line)} | {_speedups(line)} | {limit} |"
        )
    return "\n".join(lines)


def converted(rows: Sequence[Row]) -> str:
    """Return the time of each converted network, fused and with cached filters, in units of the plain network's."""
    lines = ["| network | match | inference, times the plain network's | step |", "| :-- | :-- | --: | --: |"]
    for line in rows:
        if line["variant"] == line["model"]:
            times = (1 / float(line[f"{what}_speedup"]) for what in ("inference", "step"))
            lines.append(f"| {line['row']} | {line['match']} | {' | '.join(f'{time:.2f}' for time in times)} |")
    return "\n".join(lines)


def _same_row(rows: Sequence[Row], line: Row, variant: str) -> Row | None:
    return next(iter(select(rows, row=line["row"], precision=line["precision"], variant=variant)), None)


def _times(row: Row | None) -> str:
    if row is None:
        return "–"
    found = (float(row[column]) for column in ("inference_ms", "step_ms") if row[column])
    return ", ".join(f"{time:,.0f}" if time >= 100 else f"{time:.1f}" for time in found)


def _speedups(row: Row | None) -> str:
    if row is None:
        return "–"
    columns = ("inference_speedup", "step_speedup")
    return ", ".join(f"{float(row[column]):.2f}" for column in columns if row[column])


def rewrite_page(name: str, tables: Mapping[str, str]) -> None:
    """Write each table into a page of docs/, between its marks, ``<!-- name -->`` and ``<!-- end -->``."""
    page = ROOT / "docs" / name
    text = page.read_text(encoding="utf-8")
    for mark, table in tables.items():
        before, rest = text.split(f"<!-- {mark} -->\n")
        text = f"{before}<!-- {mark} -->\n{table}\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}"
    with atomic(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    results = read(RESULTS)
    found = {
        "targets": targets(results),
        "converted": converted(results["converted"]),
        "networks": networks(results["models"]),
        "layers": layers(results["layers"]),
    }
    rewrite_page("performance.md", found)
