"""The sections of the report on one protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

import torch

from ...analysis import (
    LayerRedundancy,
    complexity,
    draw_redundancy,
    redundancy,
    reinitialized_copy,
)
from ...pages import Chapter, Plot, Section, Table, to_svg
from .._published import PAPER_RESULTS
from ._figures import Curve, Spread, curves, error_against, scaled
from ._rotation_curve import ANGLES, MAX_IMAGES, errors_by_angle
from ._rotations import error_averaged
from ._run_groups import Protocol, RunGroup

_EQUAL_SIZE = 0.1  # networks whose parameters differ by less than this part are of about equal size
_TABLE_ANGLES = (0, 22.5, 45, 67.5, 90, 180, 270)  # of ANGLES
_SETS = {
    "digits": "The bundled digits are 4,000 to train on and 1,000 to test on. The paper had 12,000 and 50,000, so that "
    "its errors are lower; what can be compared is the order."
}


def chapter(protocol: Protocol, stem: str, rotations: int = 1) -> Chapter:
    """Write the chapter of a protocol.

    Args:
        protocol: with at least one group.
        stem: beginning of the names of its figures.
        rotations: if more than 1, also show the test error with class probabilities averaged over this many rotations.
    """
    config, main = protocol.config, protocol.main
    published = [group for group in main if group.config.width is None] or main
    changes = ", ".join(f"{name} {value}" for name, value in protocol.changes.items())
    text = [
        f"Trained as in the paper{f', but for {changes}' if changes else ''}. ± is one standard deviation over seeds."
    ]
    text += [_SETS[config.data]] if config.data in _SETS else []
    names = sorted({run.result.data for group in protocol.groups for run in group.runs if run.result is not None})
    if config.data == "idx":
        text.append(
            f"The images are {', '.join(names)}. The paper's are rotated MNIST: where these are others, only the order "
            "of the networks can be compared."
        )
    sections = [
        _test_error(main, rotations),
        _parameters(main, stem),
        _training_images(protocol, stem),
        _angles(published, stem) if config.task == "rotmnist" else None,
        *(_redundancy(group, stem) for group in published),
        _costs(main, stem),
    ]
    title = f"{config.task} on {config.data}{f', {changes}' if changes else ''}"
    return Chapter(title, text, [section for section in sections if section is not None])


def _test_error(main: Sequence[RunGroup], rotations: int) -> Section:
    rows = [
        [
            group.label,
            f"{group.parameters:,}",
            str(len(group.runs)),
            spread(group.mean, group.sd),
            group.paper_error or "",
        ]
        for group in main
    ]
    head = ["model", "parameters", "seeds", "test error (%)", "test error, paper (%)"]
    after = f" after training on {main[0].train_images:,} images" if main[0].config.samples else ""
    compared, steps = order(main)
    text = [f"Mean test error{after}.", *compared]
    if rotations > 1:
        text.append(
            f"With {rotations} rotations: class probabilities averaged over rotations of each test image by "
            f"k·{90 / rotations:g}°, k = 0..{rotations - 1}."
        )
        head.insert(4, f"with {rotations} rotations (%)")
        for row, group in zip(rows, main, strict=True):
            row.insert(4, _mean_of([error_averaged(run, rotations) for run in group.runs]))
    return Section("Test error", text, tables=[Table(head, rows), *([] if steps is None else [steps])])


def order(main: Sequence[RunGroup]) -> tuple[list[str], Table | None]:
    """Compare each step of the paper's order of test errors, of all networks and of those of about equal size."""
    known = [group for group in main if group.paper_error]
    known.sort(key=lambda group: float((group.paper_error or "").split()[0]))
    if len(known) < 2:
        return [], None
    size = max(group.parameters for group in known)
    equal = [group for group in known if group.parameters > (1 - _EQUAL_SIZE) * size]
    steps = [*pairwise(equal), *(step for step in pairwise(known) if not all(group in equal for group in step))]
    text = [f"The paper's order is {_chain(known)}."]
    if 1 < len(equal) < len(known):
        text.append(f"Among networks of about {size:,} parameters it is {_chain(equal)}.")
    text.append(
        "The table has each step of it: how much lower the error is, mean ± standard error over the seeds that both "
        'networks have. A difference less than its standard error, or of one seed, is "open".'
    )
    rows = [[f"{a.label} < {b.label}", *_step(a, b)] for a, b in steps]
    return text, Table(["order in the paper", "difference (points)", "seeds", "here"], rows)


def _chain(groups: Sequence[RunGroup]) -> str:
    return " < ".join(group.label for group in groups)


def _step(lower: RunGroup, higher: RunGroup) -> tuple[str, str, str]:
    """Return by how much one network's error is lower than the other's, the number of seeds, and what that says."""
    first, second = lower.error_of_seed, higher.error_of_seed
    differences = [second[seed] - first[seed] for seed in sorted(first.keys() & second.keys())]
    if not differences:
        return "", "0", "open"
    found = mean(differences)
    error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None
    is_open = error is None or abs(found) <= error
    return spread(found, error), str(len(differences)), "open" if is_open else "the same" if found > 0 else "reversed"


def _parameters(main: Sequence[RunGroup], stem: str) -> Section:
    figure = error_against(main, [group.parameters for group in main], "parameters")
    caption = "Test error against the number of free parameters. Lower and further left is better."
    return Section("Test error against parameters", plots=[_plot(f"{stem}-parameters", caption, figure)])


def _training_images(protocol: Protocol, stem: str) -> Section | None:
    known = [group for group in protocol.groups if group.config.samples]
    labels = list(dict.fromkeys(group.label for group in known))
    lines = {label: [group for group in known if group.label == label] for label in labels}
    lines = {label: groups for label, groups in lines.items() if len(groups) > 1}
    if not lines:
        return None
    figure = curves(
        [
            Curve(label, [g.train_images for g in groups], [(g.mean, g.sd) for g in groups])
            for label, groups in lines.items()
        ],
        "training images",
        log=True,
    )
    counts = sorted({group.train_images for groups in lines.values() for group in groups})
    rows = []
    for label, groups in lines.items():
        cells = {group.train_images: spread(group.mean, group.sd) for group in groups}
        rows.append([label, *(cells.get(count, "") for count in counts)])
    table = Table(["test error (%) with", *(f"{count:,} images" for count in counts)], rows)
    caption = "Test error against the number of training images; bars are one standard deviation over seeds."
    return Section(
        "Test error against training images", plots=[_plot(f"{stem}-images", caption, figure)], tables=[table]
    )


def _angles(groups: Sequence[RunGroup], stem: str) -> Section | None:
    lines, rows = [], []
    for group in groups:
        errors = [
            [*errors_of_run, errors_of_run[0]]
            for errors_of_run in map(errors_by_angle, group.runs)
            if errors_of_run is not None
        ]
        if not errors:
            continue
        values: list[Spread] = [
            (mean(here), stdev(here) if len(here) > 1 else None) for here in zip(*errors, strict=True)
        ]
        lines.append(Curve(group.label, [*ANGLES, 360.0], values))
        rows.append(
            [
                _with_count(group.label, len(errors), len(group.runs)),
                *(spread(*values[ANGLES.index(angle)]) for angle in _TABLE_ANGLES),
            ]
        )
    if not lines:
        return None
    caption = (
        f"Test error on up to {MAX_IMAGES:,} test images against the angle by which they are rotated, "
        "counter-clockwise. The error "
        "of networks that are invariant under 90° rotations repeats after 90°, exactly."
    )
    table = Table(["test error (%) at", *(f"{angle:g}°" for angle in _TABLE_ANGLES)], rows)
    figure = curves(lines, "angle")
    return Section("Test error against angle", plots=[_plot(f"{stem}-angle", caption, figure)], tables=[table])


def _redundancy(group: RunGroup, stem: str) -> Section | None:
    models = [run.load_model() for run in group.runs if run.has_parameters]
    if not models or all(row.g is None for row in redundancy(models[0])):
        return None  # the question is about groups
    trained = _pool([redundancy(model) for model in models])
    chance = _pool([redundancy(reinitialized_copy(model, seed)) for seed, model in enumerate(models)])
    rows = [
        [row.name, *(_percent(share) for share in (row.g, other.g, row.gc, other.gc))]
        for row, other in zip(trained, chance, strict=True)
    ]
    head = ["layer", "group axis (g), trained", "untrained", "group × input channels (gc), trained", "untrained"]
    caption = (
        f"{group.label}: variance that the first principal component explains, over the filters of each layer. At "
        "100 % one spatial kernel serves them all. Boxes: middle half; whiskers: 90 %; line: median."
    )
    name = group.label.replace(", w=", "-w")
    return Section(
        f"Redundancy of {group.label}",
        [
            f"Mean share of variance (%) in {_with_count('the networks', len(models), len(group.runs))}; what is above "
            "the untrained network was learned."
        ],
        [_plot(f"{stem}-redundancy-{name}", caption, draw_redundancy(trained, chance))],
        [Table(head, rows)],
    )


def _pool(seeds: Sequence[Sequence[LayerRedundancy]]) -> list[LayerRedundancy]:
    """Join the filters of all seeds, layer by layer."""
    pooled = []
    for rows in zip(*seeds, strict=True):
        g, gc = (
            None if getattr(rows[0], kind) is None else torch.cat([getattr(row, kind) for row in rows])
            for kind in ("g", "gc")
        )
        pooled.append(LayerRedundancy(rows[0].name, g, gc))
    return pooled


def _costs(main: Sequence[RunGroup], stem: str) -> Section:
    costs = [complexity(group.config.build_model(), PAPER_RESULTS[group.config.model].shape) for group in main]
    figure = error_against(main, [cost.macs for cost in costs], "multiply-accumulates per image (formula)")
    rows = []
    for group, cost in zip(main, costs, strict=True):
        paper = PAPER_RESULTS[group.config.model] if group.config.width is None else None
        rows.append(
            [
                group.label,
                scaled(cost.macs),
                scaled(paper.macs) if paper else "",
                scaled(cost.macs_executed),
                f"{cost.memory / 2**20:.2f} MiB",
                f"{paper.memory / 2**20:.2f} MiB" if paper else "",
                f"{group.seconds:,.0f} s",
            ]
        )
    head = ["model", "MACs, formula", "paper", "MACs, executed", "memory", "paper (GPU)", "training"]
    text = (
        "Multiply-accumulates (MACs) of one image; peak memory of a forward and backward pass of two; mean time of a "
        "whole training, with all that went on beside it on the machine."
    )
    caption = "Test error against multiply-accumulates of one image. Lower and further left is better."
    return Section("Cost", [text], [_plot(f"{stem}-cost", caption, figure)], [Table(head, rows)])


def _plot(name: str, caption: str, figure: Any) -> Plot:
    return Plot(name, caption, to_svg(figure, name))


def spread(value: float, sd: float | None) -> str:
    """Write a mean, and its standard deviation if there is one."""
    return f"{value:.2f}" if sd is None else f"{value:.2f} ± {sd:.2f}"


def _mean_of(errors: Sequence[float | None]) -> str:
    """Write the mean of the known errors, and their number if it is not that of all runs."""
    known = [error for error in errors if error is not None]
    if not known:
        return ""
    return _with_count(spread(mean(known), stdev(known) if len(known) > 1 else None), len(known), len(errors))


def _with_count(text: str, known: int, runs: int) -> str:
    """Add the number of runs whose parameters are known, where that is not all of them."""
    return text if known == runs else f"{text} ({known} of {runs})"


def _percent(shares: torch.Tensor | None) -> str:
    return "" if shares is None else f"{100 * float(shares.mean()):.1f}"
