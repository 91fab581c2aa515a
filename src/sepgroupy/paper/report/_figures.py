"""The report's plots: figures from numbers, narrow enough that their letters can be read on a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, StrMethodFormatter

from ...pages import STYLE
from ._run_groups import RunGroup

# Okabe and Ito's colours, for every kind of colour vision; the markers tell the kinds apart without colour.
_STYLES: dict[str, dict[str, Any]] = {
    "plain": {"color": "#D55E00", "marker": "o"},
    "c": {"color": "#E69F00", "marker": "s"},
    "dense": {"color": "#0072B2", "marker": "^"},
    "g": {"color": "#009E73", "marker": "D"},
    "gc": {"color": "#CC79A7", "marker": "v"},
}

Spread = tuple[float, float | None]  # mean and standard deviation


@dataclass(frozen=True)
class Curve:
    """What one model shows, for :func:`curves`.

    Args:
        name: of the model, as :attr:`RunGroup.label`.
        xs: where.
        ys: mean and standard deviation there, percent.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[Spread]


def error_against(groups: Sequence[RunGroup], xs: Sequence[float], label: str) -> Figure:
    """Draw test error against what a network has or costs, a line for the widths of each model.

    Args:
        groups: their errors are drawn.
        xs: one for each.
        label: of the axis, with the unit.
    """
    names = dict.fromkeys(group.config.model for group in groups)
    points: dict[str, list[tuple[float, Spread]]] = {name: [] for name in names}
    for group, x in zip(groups, xs, strict=True):
        points[group.config.model].append((x, (group.mean, group.sd)))
    figure, axes = _blank(label)
    for name, pairs in points.items():
        _draw(axes, Curve(name, *zip(*sorted(pairs), strict=True)))
    _log_axis(axes, xs)
    return _finish(figure, axes)


def curves(lines: Sequence[Curve], label: str, log: bool = False) -> Figure:
    """Draw test errors along an axis, a line a model.

    Args:
        lines: what is drawn.
        label: of the axis, with the unit.
        log: whether it is logarithmic, with a tick at each place.
    """
    figure, axes = _blank(label)
    for line in lines:
        _draw(axes, line)
    places = sorted({x for line in lines for x in line.xs})
    if log:
        axes.set_xscale("log")
        axes.set_xticks(places, [f"{place:,.0f}" for place in places], rotation=45 if len(places) > 4 else 0)
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xticks(range(0, 361, 45))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}°"))
    return _finish(figure, axes)


def style_of(label: str) -> Mapping[str, Any]:
    """Return how lines of a model are drawn: its kind tells colour and marker, small ones are open and dashed."""
    model = label.split(",")[0]
    kind = next(
        (kind for kind in ("gc", "g", "c") if model.startswith(f"{kind}-")), "dense" if "p4" in model else "plain"
    )
    small = {"linestyle": "--", "markerfacecolor": "white"} if model.endswith("-small") else {}
    return _STYLES[kind] | small


def _blank(label: str) -> tuple[Figure, Axes]:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 3.5), layout="constrained")
        axes = figure.add_subplot()
    axes.set_xlabel(label)
    axes.set_ylabel("test error (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _draw(axes: Axes, line: Curve) -> None:
    means, sds = [y for y, _ in line.ys], [sd or 0.0 for _, sd in line.ys]
    style = {"linewidth": 1.5, "markersize": 5, "capsize": 2.5, "elinewidth": 1} | dict(style_of(line.name))
    axes.errorbar(line.xs, means, yerr=sds if any(sds) else None, label=line.name, **style)


def _log_axis(axes: Axes, values: Sequence[float]) -> None:
    axes.set_xscale("log")
    low, high = min(values) / 1.4, max(values) * 1.4
    digits = (1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 4, 5, 7)
    ticks = [digit * 10**exponent for exponent in range(13) for digit in digits]
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.set_xlim(low, high)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: scaled(x)))
    axes.xaxis.set_minor_locator(NullLocator())


def _finish(figure: Figure, axes: Axes) -> Figure:
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def scaled(value: float) -> str:
    """Write a number with k, M or G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.4g}"
