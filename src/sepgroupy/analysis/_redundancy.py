"""The redundancy of dense filters: the share of their variance that one spatial kernel explains, as in the paper."""

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
_SMALL = 1e-12  # relative to their mean square: less variance than this is rounding


@dataclass(frozen=True, eq=False)
class LayerRedundancy:
    """Shares of variance that the first principal component explains in one layer, from :func:`redundancy`.

    Args:
        name: of the layer, as in ``named_modules``.
        g: (O, I), for each filter ``w[o,i]`` among its |H| kernels; None where it does not apply.
        gc: (O,), for each output channel among its I·|H| kernels; None where it does not apply.
    """

    name: str
    g: Tensor | None
    gc: Tensor | None


def redundancy(model: nn.Module) -> list[LayerRedundancy]:
    """Measure how redundant the dense filters of a network are, layer by layer.

    The kernels ``w[o,i,h]`` of a filter are points in k² dimensions. Their covariance has the eigenvalues
    ``λ₁ ≥ λ₂ ≥ …``. The measure is ``λ₁ / Σλ``, the share of variance that the first principal component explains.
    It is 1 where all kernels are multiples of one kernel plus a constant one. Along the group axis that is
    nearly a filter of kind g (``w[o,i,h] = pw[o,i,h]·dw[o,i]``), along group × input channels one of kind gc
    (``pw[o,i,h]·dw[o]``). For filters of these kinds the measure is exactly 1. Equal kernels count as 1 too.

    2-D convolutions and lifting convolutions have no group axis: only gc is measured. A measure that is 1 for every
    filter is left out: that of two kernels or fewer, and of 1×1 kernels. For transposed convolutions O and I are
    exchanged.

    Random kernels have a redundancy above 0: compare with that of :func:`reinitialized_copy`.

    Args:
        model: the network. Its layers of kind g and gc have no dense filters and are left out.

    Raises:
        ArgumentError: a filter is not finite.

    Filters that weight norm, spectral norm, pruning or a pre-hook computes are measured as the next call uses them.

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


def reinitialized_copy(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy of a network with new random parameters: the redundancy that chance explains.

    Args:
        model: the network. Layers without ``reset_parameters`` are copied with their parameters.
        seed: of the random numbers. The caller's random state does not change.
    """
    fresh = copy_with_plain_weights(model)  # a reset of a reparametrized weight would be overwritten
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in fresh.modules():
            reset: Any = getattr(layer, "reset_parameters", None)
            if reset is not None:
                reset()
    return fresh


def draw_redundancy(trained: Sequence[LayerRedundancy], chance: Sequence[LayerRedundancy]) -> Figure:
    """Plot the distribution over the filters of every layer, beside that of an untrained network.

    Boxes hold the middle half of the filters and their whiskers 90 %; the line in a box is the median.

    Args:
        trained: of a trained network.
        chance: of the same network untrained.

    Raises:
        ArgumentError: no layer has a dense filter larger than 1×1.
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
    """Save the plot of :func:`draw_redundancy`.

    Args:
        path: the file of the plot; its suffix selects the format.
        trained: of a trained network.
        chance: of the same network untrained.
    """
    figure = draw_redundancy(trained, chance)
    with atomic(Path(path)) as temporary:
        figure.savefig(temporary)


def _dense_weight(name: str, layer: nn.Module) -> Tensor | None:
    """Return the filters of a layer in float64, (O, I, |H| or 1, k, k), or None if it has no dense ones."""
    is_conv2d = isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    if not is_conv2d and not (isinstance(layer, GroupConvolution) and layer.kind in ("lifting", "dense")):
        return None
    if layer._forward_pre_hooks:  # a hook may recompute the weight
        call_on_probe(name or "model", layer)
    weight: Any = layer.weight
    weight = weight.detach().double().cpu()
    return weight.unsqueeze(2) if is_conv2d else weight


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
