"""Write the tables of docs/performance.md anew from the results, between their marks.

python -m benchmarks.tables
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sepgroupy._files import atomic

from .summary import Row, read, select, targets

ROOT = Path(__file__).parents[1]


def networks(rows: Sequence[Row]) -> str:
    """Time and kept memory of each network, the library's two ways against the baseline."""
    lines = [
        "| network, batch | baseline: evaluation, step, ms | PyTorch alone: times as fast "
        "| kernels: ms | times as fast | kept, MiB | of baseline |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for ours in select(rows, variant="sepgroupy"):
        same = {name: ours[name] for name in ("model", "batch", "precision")}
        base, alone = (next(iter(select(rows, variant=v, **same)), None) for v in ("baseline", "sepgroupy torch"))
        kept = float(ours["kept_mib"] or 0)
        share = f"{kept / float(base['kept_mib']):.2f}" if base and kept else "–"
        lines.append(
            f"| {ours['model']}, {ours['batch']} | {_times(base)} | {_speedups(alone)} | {_times(ours)} "
            f"| {_speedups(ours) if base else '–'} | {f'{kept:.1f}' if kept else '–'} "
            f"| {share} |"
        )
    return "\n".join(lines)


def layers(rows: Sequence[Row]) -> str:
    """Time of each layer: both ways against the baseline, beside a ready bank, and how far it is from the limit."""
    lines = [
        "| layer | ready bank: times as fast | PyTorch alone | kernels: ms | times as fast | × limit |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for ours in select(rows, variant="sepgroupy"):
        names = ("group", "kind", "kernel", "channels", "size", "batch", "precision")
        same = {name: ours[name] for name in names}
        ready, alone = (next(iter(select(rows, variant=v, **same)), None) for v in ("ready bank", "sepgroupy torch"))
        limit = f"{float(ours['evaluation_over_limit']):.1f}, {float(ours['step_over_limit']):.1f}"
        lines.append(
            f"| {ours['group']} {ours['kind']} {ours['kernel']}×{ours['kernel']}, {ours['channels']} at "
            f"{ours['size']}×{ours['size']}, batch {ours['batch']} | {_speedups(ready)} | {_speedups(alone)} "
            f"| {_times(ours)} | {_speedups(ours)} | {limit} |"
        )
    return "\n".join(lines)


def _times(row: Row | None) -> str:
    if row is None:
        return "–"
    found = (float(row[column]) for column in ("evaluation_ms", "step_ms") if row[column])
    return ", ".join(f"{time:,.0f}" if time >= 100 else f"{time:.1f}" for time in found)


def _speedups(row: Row | None) -> str:
    if row is None:
        return "–"
    columns = ("evaluation_speedup", "step_speedup")
    return ", ".join(f"{float(row[column]):.2f}" for column in columns if row[column])


def rewrite(text: str, tables: Mapping[str, str]) -> str:
    """Put each table between its marks, ``<!-- name -->`` and ``<!-- end -->``."""
    for name, table in tables.items():
        before, rest = text.split(f"<!-- {name} -->\n")
        text = f"{before}<!-- {name} -->\n{table}\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}"
    return text


if __name__ == "__main__":
    results = read(ROOT / "benchmarks" / "results")
    page = ROOT / "docs" / "performance.md"
    found = {"targets": targets(results), "networks": networks(results["models"]), "layers": layers(results["layers"])}
    with atomic(page) as temporary:
        temporary.write_text(rewrite(page.read_text(encoding="utf-8"), found), encoding="utf-8")
