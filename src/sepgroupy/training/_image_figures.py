"""The figures of the page of a run on images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..pages import STYLE
from ._image_facts import ImageFacts
from ._objective import IGNORE

if TYPE_CHECKING:
    from ._image_evaluation import WorstImage

_COLOURS = {"train": "#0072B2", "validation": "#D55E00"}  # Okabe and Ito's
_MOST_WITH_NUMBERS = 12  # classes
_LONGEST_NAME = 18  # characters


def learning_curve(history: Sequence[Mapping[str, float]], name: str) -> Figure:
    """Draw the loss or the error of training and validation images by epoch.

    Args:
        history: a row for each epoch.
        name: "loss" or "error".
    """
    figure, axes = _blank(4.2, 3.0)
    for part, colour in _COLOURS.items():
        points = [(row["epoch"], row[f"{part}_{name}"]) for row in history if f"{part}_{name}" in row]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, linewidth=1.5, label=part)
    axes.set_xlabel("epoch")
    axes.set_ylabel(name)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def confusion_matrix(confusion: Tensor, classes: Sequence[str]) -> Figure:
    """Draw the shares of each class (row) that were taken for each class (column)."""
    shares = confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)
    side = min(9.0, max(4.2, 1.6 + 0.45 * len(classes)))
    figure, axes = _blank(side, side)
    axes.grid(False)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    names = [_short(name) for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(classes) <= _MOST_WITH_NUMBERS:
        for row, values in enumerate(shares.tolist()):
            for column, share in enumerate(values):
                colour = "white" if share > 0.5 else "black"
                axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=colour)
    return figure


def scatter(targets: Tensor, outputs: Tensor, names: Sequence[str]) -> Figure:
    """Draw predicted against true numbers."""
    figure, axes = _blank(4.2, 3.8)
    for index, name in enumerate(names):
        axes.plot(targets[:, index].numpy(), outputs[:, index].numpy(), ".", markersize=4, label=_short(name))
    both = torch.cat([targets.flatten(), outputs.flatten()])
    ends = [float(both.min()), float(both.max())]
    axes.plot(ends, ends, color="0.6", linewidth=1, zorder=0)
    axes.set_xlabel("true")
    axes.set_ylabel("predicted")
    if len(names) > 1:
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def worst_images(worst: Sequence[WorstImage], facts: ImageFacts) -> Figure:
    """Draw images with what they are and what they were taken for; masks beside them."""
    masks = worst[0].target.ndim == 2
    wide, shown = (3, worst[:4]) if masks else (4, worst)
    rows = len(shown) if masks else -(-len(shown) // wide)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 0.4 + (1.6 if masks else 1.55) * rows), layout="constrained")
        grid = figure.subplots(rows, wide, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, one in enumerate(shown):
        if masks:
            predicted = one.output.argmax(0).masked_fill(one.target == IGNORE, 0)
            for axes, image, title in zip(grid[index], (one.image, one.target, predicted), _TITLES, strict=True):
                _show(axes, image, len(facts.classes) if image.ndim == 2 else 0)
                axes.set_title(title if index == 0 else "", fontsize=8)
        else:
            axes = grid.flat[index]
            _show(axes, one.image, 0)
            axes.set_title(_caption(one, facts), fontsize=8)
    return figure


_TITLES = ("image", "true", "predicted")


def _caption(one: WorstImage, facts: ImageFacts) -> str:
    if facts.classes:
        share, predicted = one.output.max(0)
        return f"{_short(facts.classes[int(one.target)])}\n→ {_short(facts.classes[int(predicted)])} {float(share):.0%}"
    return f"{float(one.target[0]):.3g}\n→ {float(one.output[0]):.3g}"


def _show(axes: Axes, image: Tensor, classes: int) -> None:
    """Draw an image (C, Y, X) in 0..1, three channels as colours and of others the first as gray; or a mask.

    Of a volume the slice in the middle is drawn.
    """
    if classes:
        axes.imshow(image.masked_fill(image == IGNORE, 0).numpy(), cmap="viridis", vmin=0, vmax=classes - 1)
        return
    options: dict[str, Any] = {"interpolation": "nearest"}
    image = (image if image.ndim == 3 else image[:, image.shape[1] // 2]).clamp(0, 1)
    if len(image) == 3:
        axes.imshow(image.permute(1, 2, 0).numpy(), **options)
    else:
        axes.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1, **options)


def _blank(width: float, height: float) -> tuple[Figure, Axes]:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _short(name: str) -> str:
    """Return a name of a class as text in a figure: no mathematics, and not too long."""
    name = name.replace("$", r"\$")
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
