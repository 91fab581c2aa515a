"""Plots of the results, made from the CSV files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

from sepgroupy._files import atomic

from .results import Row
from .summary import quotient, select

# Colours that differ in lightness too, from Okabe and Ito's palette for all kinds of colour vision.
_COLOURS = {"inference": "#0072B2", "step": "#D55E00"}
_LINES = {
    "baseline": ("#000000", "o"),
    "sepgroupy torch": ("#CC79A7", "v"),
    "sepgroupy": ("#D55E00", "D"),
    "two_step": ("#56B4E9", "s"),
    "fourier": ("#009E73", "^"),
}


def draw(results: Mapping[str, Sequence[Row]], folder: Path) -> None:
    """Plot every suite that has rows, except those of no baseline, to ``benchmark-<suite>.png``."""
    for suite, rows in results.items():
        if suite in ("cross_model", "converted", "modes"):
            continue
        figure = _scaling(select(rows)) if suite == "scaling" else _relative(select(rows), suite == "layers")
        with atomic(folder / f"benchmark-{suite}.png") as temporary:
            figure.savefig(temporary)
    if networks := [row for row in select(results.get("models", ()), batch=16) if row["step_ms"]]:
        with atomic(folder / "resnets.png") as temporary:
            _networks(networks).savefig(temporary)


def _networks(rows: Sequence[Row]) -> Figure:
    """Plot the training step of each network, the baseline's and the library's."""
    names = list(dict.fromkeys(row["model"] for row in rows))
    variants = {"baseline": ("baseline", "#999999"), "sepgroupy torch": ("sepgroupy, PyTorch alone", "#56B4E9"),
                "sepgroupy": ("sepgroupy", "#D55E00")}  # fmt: skip
    figure = Figure(figsize=(7, 0.8 + 0.75 * len(names)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for place, name in enumerate(names):
        found = {row["variant"]: float(row["step_ms"]) for row in select(rows, model=name)}
        if "baseline" not in found:  # a plain network has one variant
            found = {"baseline": found["sepgroupy"]}
        for offset, (variant, time) in enumerate((v, found[v]) for v in variants if v in found):
            label, colour = variants[variant]
            bar = axes.barh(place + 0.26 * (offset - (len(found) - 1) / 2), time, 0.24, color=colour, label=label)
            axes.bar_label(bar, fmt="{:.0f}", padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"training step, batch 16, {rows[0]['threads']} CPU threads, ms")
    axes.spines[["top", "right"]].set_visible(False)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def _relative(rows: Sequence[Row], layers: bool) -> Figure:
    """Plot times by the baseline's: the library's as bars, precomputed filters as rings, limits as diamonds."""
    baselines = [row for row in rows if row["variant"] == "baseline"]
    figure = Figure(figsize=(8, 1.2 + 0.42 * len(baselines)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(1, color="0.6", linewidth=1, zorder=0)
    for place, base in enumerate(baselines):
        same = {"row": base["row"]}
        for offset, (what, colour) in zip((-0.19, 0.19), _COLOURS.items(), strict=True):
            column, y = f"{what}_ms", place + offset
            if not base[column]:
                continue
            for row in select(rows, variant="sepgroupy", **same):
                fraction = 1 / quotient(base, row, column)
                axes.barh(y, fraction, 0.34, color=colour, label=f"sepgroupy, {what}")
                if layers:
                    limit = fraction / float(row[f"{what}_over_limit"])
                    axes.plot(limit, y, "kD", markersize=4, label="limit of its algorithm")
            for row in select(rows, variant="precomputed", **same):
                axes.plot(1 / quotient(base, row, column), y, "ko", fillstyle="none", label="precomputed filters")
    axes.set_yticks(range(len(baselines)), [base["row"] for base in baselines])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("time, as a fraction of the baseline's")
    axes.spines[["top", "right"]].set_visible(False)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def _scaling(rows: Sequence[Row]) -> Figure:
    """Plot times against channels, pixels per side and batch, doubly logarithmic."""
    sweeps = list(dict.fromkeys(row["sweep"] for row in rows))
    figure = Figure(figsize=(3.4 * len(sweeps), 6), dpi=150, layout="constrained")
    grid = figure.subplots(2, len(sweeps), sharex="col", squeeze=False)
    for column, sweep in enumerate(sweeps):
        for line, what in enumerate(_COLOURS):
            axes = grid[line][column]
            for variant, (colour, marker) in _LINES.items():
                points = select(rows, sweep=sweep, variant=variant)
                x, y = ([float(row[name]) for row in points] for name in (sweep, f"{what}_ms"))
                # The library takes one of the backends, so its line is broad and lies behind theirs.
                width, behind = (4, 1) if variant == "sepgroupy" else (1.2, 2)
                axes.loglog(x, y, marker=marker, markersize=4, color=colour, lw=width, label=variant, zorder=behind,
                            alpha=0.5 if behind == 1 else 1)  # fmt: skip
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.minorticks_off()
            axes.set_ylabel(f"{what}, ms" if column == 0 else "")
            axes.spines[["top", "right"]].set_visible(False)
        ticks = sorted({int(row[sweep]) for row in rows if row["sweep"] == sweep})
        grid[1][column].set_xticks(ticks, ticks, fontsize=8)
        grid[1][column].set_xlabel({"size": "pixels per side"}.get(sweep, sweep))
    grid[0][0].legend(frameon=False, fontsize=8)
    return figure
