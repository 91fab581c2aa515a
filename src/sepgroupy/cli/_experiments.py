"""The commands for experiments: redundancy, compression, sweeps and reports."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..errors import ArgumentError

__all__ = ["add_commands"]

Folder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the ``sepgroupy`` command."""
    for command in (redundancy, compress, sweep, report):
        app.command()(command)


def redundancy(
    folder: Folder,
    figure: Annotated[
        Path | None, typer.Option(help="Where to save the plot.", show_default="RUN/redundancy.png")
    ] = None,
) -> None:
    """Print how much of each filter of a run one spatial kernel explains, beside the untrained network."""
    from ..analysis import plot_redundancy, redundancy, reinitialized_copy
    from ..training import load_model

    model = load_model(folder)
    rows, chance = redundancy(model), redundancy(reinitialized_copy(model))
    path = folder / "redundancy.png" if figure is None else figure
    plot_redundancy(path, rows, chance)
    table = Table("layer", title="Variance explained by PC1, mean over the filters")
    for heading in ("group axis (g)", "untrained", "group × input (gc)", "untrained"):
        table.add_column(heading, justify="right")
    for row, other in zip(rows, chance, strict=True):
        shares = (row.g, other.g, row.gc, other.gc)
        table.add_row(row.name, *("" if share is None else f"{100 * float(share.mean()):.1f} %" for share in shares))
    Console().print(table)
    print(f"distribution of every layer: {path}")


def compress(
    folder: Folder,
    kind: Annotated[str, typer.Option(help="g or gc.")] = "gc",
    output: Annotated[
        Path | None, typer.Option(help="The file to write; it must not exist.", show_default="RUN/<kind>.pt")
    ] = None,
) -> None:
    """Replace the dense filters of a run by the nearest separable ones; print the loss and how to continue training."""
    from ..paper import compress_run

    done = compress_run(folder, kind, output)
    table = Table("layer", title=f"Nearest filters of kind {kind}")
    for heading in ("relative error", "parameters", "then"):
        table.add_column(heading, justify="right")
    for layer in done.layers:
        table.add_row(layer.name, f"{layer.error:.3f}", f"{layer.before:,}", f"{layer.after:,}")
    table.add_section()
    table.add_row("network", "", *(f"{count:,}" for count in done.parameters))
    Console().print(table)
    before, after = done.scores
    print(f"test error {before.error:.2f} %, compressed {after.error:.2f} %")
    print(f"written: {done.path}\ntrain on: {done.command}")


def sweep(
    task: Annotated[str, typer.Argument(help="rotmnist or cifar10, and with it the paper's values.")],
    models: Annotated[str | None, typer.Option(help="Models, with commas: z2cnn,p4cnn,gc-p4cnn.")] = None,
    widths: Annotated[str, typer.Option(help="Channels of the first layers, with commas.")] = "published",
    samples: Annotated[str, typer.Option(help="Numbers of training images, with commas: 500,1000,all.")] = "all",
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "1,2,3",
    preset: Annotated[
        str | None, typer.Option(help="A published grid in place of these four: paper, or (rotmnist) data-efficiency.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of all runs that differs from the paper's, NAME=VALUE; repeatable."),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs"),
    cluster: Annotated[
        str | None, typer.Option(help="slurm, or local for processes here (submitit).", show_default="this process")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Number of jobs of the cluster, which share the runs.")] = 1,
    parameters: Annotated[
        list[str] | None,
        typer.Option("--job", help="Parameter of a job, NAME=VALUE, such as timeout_min=240; repeatable."),
    ] = None,
) -> None:
    """Train a grid of runs and collect them in runs.csv; finished runs in the folder are not trained again."""
    from ..paper.sweep import TABLE, grid
    from ..paper.sweep import preset as published_grid
    from ..paper.sweep import sweep as run_sweep

    if (models is None) == (preset is None):
        raise ArgumentError(f"models (={models!r}) or preset (={preset!r}): give one of the two")
    if preset is not None:
        if (widths, samples, seeds) != ("published", "all", "1,2,3"):
            raise ArgumentError(f"preset (={preset!r}) has its own widths, samples and seeds: leave those out")
        configs = published_grid(task, preset, **_settings("set", settings))
    else:
        configs = grid(
            task,
            (models or "").split(","),
            _counts("widths", widths, "published"),
            _counts("samples", samples, "all"),
            _counts("seeds", seeds),
            **_settings("set", settings),
        )
    parsed = _settings("job", parameters)
    runs = run_sweep(configs, folder, cluster=cluster, jobs=jobs, parameters=parsed, progress=sys.stdout.isatty())
    print(f"{len(runs)} runs are finished: {folder / TABLE}")


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUNS...", help="Folders of runs, folders that hold such, or runs.csv files."),
    ],
    folder: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("report"),
    rotations: Annotated[
        int, typer.Option(help="Also test with class probabilities averaged over this many rotations.")
    ] = 1,
) -> None:
    """Compare finished runs with the paper: report.html, report.md, its figures as SVG, and runs.csv."""
    from ..paper.report import write_report

    print(write_report(runs, folder, rotations))


def _counts(option: str, text: str, usual: str | None = None) -> list[Any]:
    try:
        return [None if word == usual else int(word) for word in text.split(",")]
    except ValueError:
        also = "" if usual is None else f" or {usual}"
        raise ArgumentError(f"{option} (={text!r}) must be whole numbers{also}, with commas") from None


def _settings(option: str, pairs: Sequence[str] | None) -> dict[str, Any]:
    settings = {}
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        if not equals:
            raise ArgumentError(f"{option} (={pair!r}) must be NAME=VALUE, such as epochs=5")
        try:
            settings[name] = json.loads(text)
        except ValueError:
            settings[name] = text
    return settings
