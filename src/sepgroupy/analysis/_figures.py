"""Pictures: each function takes numbers and writes one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from .._files import atomic

# Colours that differ in lightness too, from Okabe and Ito's palette for every kind of colour vision.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#000000")
_MARKERS = ("o", "s", "^", "D")


def plot_error_against_angle(
    path: str | PathLike[str], angles: Sequence[float], errors: Mapping[str, Sequence[float]]
) -> None:
    """Draw how the test error depends on the angle by which the test pictures are turned.

    Args:
        path: the picture; its suffix says the format, e.g. ``.png`` or ``.svg``.
        angles: in degrees.
        errors: for each network its errors in percent, one for each angle.
    """
    figure = Figure(figsize=(7, 3.6), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    for quarter in range(90, 360, 90):
        axes.axvline(quarter, color="0.85", linewidth=1, zorder=0)
    for (name, values), colour, marker in zip(errors.items(), _COLOURS, _MARKERS, strict=False):
        axes.plot(angles, values, color=colour, marker=marker, markersize=4.5, linewidth=1.6)
        axes.annotate(name, (angles[-1], values[-1]), (8, 0), textcoords="offset points", color=colour, va="center")
    axes.set_xlabel("angle by which the test digits are turned")
    axes.set_ylabel("test error")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}°"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g} %"))
    axes.set_xticks(range(0, 361, 45))
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic(Path(path)) as temporary:
        figure.savefig(temporary)
