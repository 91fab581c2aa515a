"""How much of a filter one spatial kernel explains: the paper's measure of what the kinds g and gc would lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn

from .._files import atomic
from .._plain_weights import call_on_probe, copy_with_plain_weights
from ..errors import ArgumentError
from ..nn import GroupConvolution

QUESTIONS = {"g": "along the group axis (g)", "gc": "along group × input channels (gc)"}
_COLOURS = {"trained": "#0072B2", "untrained": "#E69F00"}
_SMALL = 1e-12  # of their mean square: less variance than this is rounding


@dataclass(frozen=True, eq=False)
class LayerRedundancy:
    """Shares of variance that the first principal component explains in one layer, from :func:`redundancy`.

    Args:
        name: of the layer, as in ``named_modules``.
        g: (O, I), for each filter ``w[o,i]`` among its |H| kernels; None where it is no question.
        gc: (O,), for each output channel among its I·|H| kernels; None where it is no question.
    """

    name: str
    g: Tensor | None
    gc: Tensor | None


def redundancy(model: nn.Module) -> list[LayerRedundancy]:
    """Measure how redundant the dense filters of a network are, layer by layer.

    The kernels ``w[o,i,h]`` of a filter are points in k² dimensions. With their mean taken off and the eigenvalues
    ``λ₁ ≥ λ₂ ≥ …`` of their covariance, the measure is ``λ₁ / Σλ``, the share of variance that the first principal
    component explains. 1 means that one kernel, scaled, serves them all up to a constant one: along the group axis
    that is nearly a filter of kind g (``w[o,i,h] = pw[o,i,h]·dw[o,i]``), along group × input channels of kind gc
    (``pw[o,i,h]·dw[o]``), and for filters of these kinds it is exactly 1. Equal kernels, too, count as 1.

    Planar convolutions, the lifting one among them, have no group axis and answer the gc question alone. A question
    whose answer is 1 for every filter is not asked: of two kernels or fewer, and of 1×1 kernels. For transposed
    convolutions O and I are exchanged.

    Chance explains more than nothing: compare with :func:`untrained`.

    Args:
        model: the network; its layers on a group of kind g and gc have no such filters and are left out.

    Raises:
        ArgumentError: a filter is not finite.

    The filters are those of the next call, also where weight norm, spectral norm, pruning or a pre-hook computes them.

    Source: Lengyel & van Gemert (2021).

    >>> from sepgroupy import GroupConv2d
    >>> layer = GroupConv2d(2, 3, 3, group="p4")
    >>> [row.g.shape for row in redundancy(layer)]
    [torch.Size([3, 2])]
    """
    rows = []
    for name, layer in copy_with_plain_weights(model).eval().named_modules():
        if (weight := _dense_weight(name, layer)) is None:
            continue
        if not weight.isfinite().all():
            raise ArgumentError(f"model has filters in {name} that are not finite")
        g, gc = _explained(weight.flatten(3)), _explained(weight.flatten(3).flatten(1, 2))
        if g is not None or gc is not None:
            rows.append(LayerRedundancy(name, g, gc))
    return rows


def untrained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy of a network whose layers have drawn their parameters anew, for what chance explains.

    Args:
        model: the network; layers without ``reset_parameters`` keep what they have.
        seed: of the random numbers; those of the caller are left alone.
    """
    fresh = copy_with_plain_weights(model)  # of reparametrized ones a reset would change only a result
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in fresh.modules():
            reset: Any = getattr(layer, "reset_parameters", None)
            if reset is not None:
                reset()
    return fresh


def draw_redundancy(trained: Sequence[LayerRedundancy], chance: Sequence[LayerRedundancy]) -> Figure:
    """Draw the distribution over the filters of every layer, beside that of an untrained network.

    Boxes hold the middle half of the filters and their whiskers 90 %; the line in a box is the median.

    Args:
        trained: of a trained network.
        chance: of the same network untrained.
    """
    questions = [kind for kind in QUESTIONS if any(getattr(row, kind) is not None for row in trained)]
    if not questions:
        raise ArgumentError("trained must have a layer with dense filters larger than 1×1")
    most = max(sum(getattr(row, kind) is not None for row in trained) for kind in questions)
    size = (max(4.2, 1.2 + 0.34 * most), 2.3 * len(questions) + 0.5)
    figure = Figure(figsize=size, dpi=200, layout="constrained")
    for axes, kind in zip(figure.subplots(len(questions), squeeze=False)[:, 0], questions, strict=True):
        names = [row.name for row in trained if getattr(row, kind) is not None]
        for offset, (label, rows) in zip((-0.2, 0.2), (("trained", trained), ("untrained", chance)), strict=True):
            shares = [100 * getattr(row, kind).flatten() for row in rows if getattr(row, kind) is not None]
            drawn = axes.boxplot(
                [values.numpy() for values in shares],
                positions=[place + offset for place in range(len(names))],
                widths=0.34,
                whis=(5, 95),
                showfliers=False,
                patch_artist=True,
                medianprops={"color": "black", "linewidth": 1.4},
            )
            for box in drawn["boxes"]:
                box.set(facecolor=_COLOURS[label], hatch="////" if label == "untrained" else None, linewidth=0.7)
        axes.set_xticks(range(len(names)), names, rotation=90 if most > 9 else 0, fontsize=8)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.set_ylim(0, 103)
        axes.set_title(QUESTIONS[kind], fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supylabel("variance explained by PC1 (%)", fontsize=10)
    handles = [
        Patch(facecolor=colour, edgecolor="black", hatch="////" if label == "untrained" else None, label=label)
        for label, colour in _COLOURS.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure


def plot_redundancy(
    path: str | PathLike[str], trained: Sequence[LayerRedundancy], chance: Sequence[LayerRedundancy]
) -> None:
    """Save what :func:`draw_redundancy` draws.

    Args:
        path: the picture; its suffix says the format.
        trained: of a trained network.
        chance: of the same network untrained.
    """
    figure = draw_redundancy(trained, chance)
    with atomic(Path(path)) as temporary:
        figure.savefig(temporary)


def _dense_weight(name: str, layer: nn.Module) -> Tensor | None:
    """Return the filters of a layer in float64, (O, I, |H| or 1, k, k), or None if it has no dense ones."""
    planar = isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    if not planar and not (isinstance(layer, GroupConvolution) and layer.kind in ("lifting", "dense")):
        return None
    if layer._forward_pre_hooks:  # which may recompute the weight
        call_on_probe(name or "model", layer)
    weight: Any = layer.weight
    weight = weight.detach().double().cpu()
    return weight.unsqueeze(2) if planar else weight


def _explained(
    points: Tensor,  # (…, n, k²)
) -> Tensor | None:  # (…)
    if min(points.shape[-2] - 1, points.shape[-1]) < 2:
        return None
    centred = points - points.mean(-2, keepdim=True)
    variances = torch.linalg.svdvals(centred).square()
    total = variances.sum(-1)
    constant = total <= _SMALL * points.square().sum((-2, -1))
    return torch.where(constant, 1.0, variances[..., 0] / torch.where(constant, 1.0, total))
