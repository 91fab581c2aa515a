"""What the command prints of runs on user images."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from .._files import refuse_existing
from ._options import Workers

__all__ = ["predict", "report"]


def report(folder: Path, device: str = "auto", workers: int | None = None) -> None:
    """Evaluate a run on images, print its scores, and say where its page is."""
    from ..training import METRIC_NAMES, evaluate_images, is_first

    if not is_first():
        return
    found = evaluate_images(folder, device, workers, progress=sys.stdout.isatty())
    table = Table(*found.scores.head, title=f"{found.images:,} test images")
    for row in found.scores.rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in row))
    Console().print(table)
    for name, value in found.scores.metrics.items():
        print(f"{METRIC_NAMES[name]}: {value:.4g}")
    print(f"largest change of a prediction under {found.config.point_group.name}: {found.largest_change:.1e}")
    print(f"page: {found.page}")


def predict(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run on images.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Files, folders, patterns such as '*.png'.")],
    csv: Annotated[
        Path | None, typer.Option("--csv", help="The CSV file to write; it must not exist.", show_default="stdout")
    ] = None,
    jsonl: Annotated[
        Path | None, typer.Option("--jsonl", help="The file of JSON lines to write; it must not exist.")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="The folder for predicted masks, of a segmentation; new or empty.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images that are computed at a time.")] = 64,
    workers: Workers = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Predict on image files: a row each. Files that cannot be read are named, and it exits 1."""
    from ..training import ImagePredictor, PredictionWriter, require_readable

    for name, path in (("csv", csv), ("jsonl", jsonl)):
        if path is not None:
            refuse_existing(name, path)
    predictor = ImagePredictor(folder, device)
    files = predictor.open(images)
    writer = PredictionWriter(predictor, files, masks)
    problems: list[tuple[str, str]] = []
    with ExitStack() as stack:
        table = None
        if csv is not None or jsonl is None:
            table = sys.stdout if csv is None else stack.enter_context(csv.open("x", newline="", encoding="utf-8"))
            table.write(",".join(map(_quoted, writer.head)) + "\n")
        lines = None if jsonl is None else stack.enter_context(jsonl.open("x", encoding="utf-8"))
        bar = stack.enter_context(Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()))
        task = bar.add_task("images", total=len(files))
        for batch in predictor.predict(files, batch_size, workers):
            if masks is not None:
                writer.write_masks(batch)
            if table is not None:
                writer.write_csv(table, batch)
            if lines is not None:
                writer.write_json(lines, batch)
            problems += [(one.path, one.problem) for one in batch if one.problem]
            bar.update(task, advance=len(batch))
    require_readable(problems, len(files))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if set(name) & set(',"\r\n') else name
