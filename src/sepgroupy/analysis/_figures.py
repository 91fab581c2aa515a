"""Plots: each function takes numbers and writes one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from .._files import atomic
from ..auditing import AuditReport

# From Okabe and Ito's palette for every kind of colour vision; they also differ in lightness.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#000000")
_MARKERS = ("o", "s", "^", "D")


def plot_error_against_angle(
    path: str | PathLike[str], angles: Sequence[float], errors: Mapping[str, Sequence[float]]
) -> None:
    """Plot the test error against the angle by which the test images are rotated.

    Args:
        path: the file of the plot; its suffix selects the format, e.g. ``.png`` or ``.svg``.
        angles: in degrees.
        errors: for each network its errors in percent, one for each angle.
    """
    figure = Figure(figsize=(7, 3.6), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    for angle in range(90, 360, 90):
        axes.axvline(angle, color="0.85", linewidth=1, zorder=0)
    for (name, values), colour, marker in zip(errors.items(), _COLOURS, _MARKERS, strict=False):
        axes.plot(angles, values, color=colour, marker=marker, markersize=4.5, linewidth=1.6)
        axes.annotate(name, (angles[-1], values[-1]), (8, 0), textcoords="offset points", color=colour, va="center")
    axes.set_xlabel("angle by which the test digits are rotated")
    axes.set_ylabel("test error")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}°"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g} %"))
    axes.set_xticks(range(0, 361, 45))
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic(Path(path)) as temporary:
        figure.savefig(temporary)


def plot_audit(path: str | PathLike[str], report: AuditReport) -> None:
    """Plot the error of every layer, by itself and end to end, and mark the first layer that breaks the symmetry.

    Args:
        path: the file of the plot; its suffix selects the format.
        report: from :func:`sepgroupy.audit`.
    """
    rows, places = report.rows, range(len(report.rows))
    figure = Figure(figsize=(7.2, 1.4 + 0.17 * len(rows)), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    least = 1e-17  # where an error of 0 is drawn
    axes.axvspan(least / 3, report.tolerance, color="0.93", linewidth=0, zorder=0, label="rounding")
    totals = [max(least, *row.errors) for row in rows]
    axes.plot(totals, places, color=_COLOURS[3], linewidth=1.2, label="end to end")
    for breaks, colour, marker, label in (
        (False, _COLOURS[1], "o", "added by the layer: rounding"),
        (True, _COLOURS[0], "D", "added by the layer: it breaks the symmetry"),
    ):
        chosen = [place for place in places if rows[place].breaks == breaks]
        values = [max(least, rows[place].worst) for place in chosen]
        axes.plot(values, chosen, linestyle="", color=colour, marker=marker, markersize=4.5, label=label)
    if report.first is not None:
        place = rows.index(report.first)
        axes.axhline(place, color=_COLOURS[0], linewidth=1, linestyle="--", zorder=1)
        note = f"first: {report.first.name}"
        axes.annotate(note, (report.tolerance, place), (6, -4), textcoords="offset points", color=_COLOURS[0], va="top")
    axes.set_yticks(places, [row.name for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.set_xlim(least / 3, 10)
    group = f"the {report.group.order} elements of {report.group.name or 'the group'}"
    axes.set_xlabel(f"largest error over {group} (0 stands at $10^{{-17}}$)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    with atomic(Path(path)) as temporary:
        figure.savefig(temporary)
