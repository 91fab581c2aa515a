"""The ``sepgroupy`` command: it parses arguments, calls the library and prints what comes back."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .. import __version__
from ..errors import ArgumentError, SepgroupyError
from ._experiments import add_commands
from ._images import predict
from ._options import Workers
from ._play import play
from ._train import score_text
from ._train import train as train_app

__all__ = ["app", "exit_code", "main"]

app = typer.Typer(
    help="Separable group-equivariant convolutions: train, evaluate, show.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"sepgroupy {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the stack trace of an error.")] = False,
) -> None:
    pass


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    device: Device = "auto",
    rotations: Annotated[
        int, typer.Option(help="Average the class probabilities over this many rotations, by k·90°/ROTATIONS.")
    ] = 1,
    workers: Workers = None,
) -> None:
    """Test the trained network of a run."""
    from ..training import ImageConfig, evaluate, read_config
    from ._images import report

    if isinstance(read_config(folder), ImageConfig) and rotations == 1:
        report(folder, device, workers)
        return

    score = evaluate(folder, device, rotations, workers)
    print(f"{folder}: {score_text(read_config(folder).task, score.error, score.loss, score.correct, score.images)}")


@app.command()
def audit(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    group: Annotated[
        str | None, typer.Option(help="The group to test.", show_default="the network's own, else p4")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Rows and columns of an image.", show_default="those of the run")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Where to save a plot of the errors.")] = None,
) -> None:
    """Find the layers at which a run's network loses its equivariance, the cause and a fix.

    The exit code is 0 whether or not the network is equivariant.
    """
    from ..analysis import plot_audit
    from ..auditing import audit
    from ..groups import GroupLike
    from ..models import ResNet
    from ..training import ImageConfig, load_model, read_config

    config, model = read_config(folder), load_model(folder)
    own: GroupLike
    if isinstance(config, ImageConfig):
        own, usual = config.point_group, config.read_facts(folder).input_size
    else:
        own, usual = getattr(model, "group", None) or "p4", 32 if isinstance(model, ResNet) else 28
    report = audit(model, own if group is None else group, usual if size is None else size)
    print(report)
    if figure is not None:
        plot_audit(figure, report)
        print(f"error by layer: {figure}")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Folder of the two runs.")] = Path("runs/demo"),
    figure: Annotated[Path | None, typer.Option(help="Where to save the plot instead of in the folder.")] = None,
) -> None:
    """Train Z2CNN and gc-P4CNN on the bundled digits and compare them: a table and a plot, in minutes."""
    from ..paper.demo import demo

    rows, plot = demo(folder, figure, progress=sys.stdout.isatty())
    table = Table("model", title="Rotated digits: 4,000 to train on, 1,000 to test on")
    for heading in ("parameters", "test error", "largest change of a class probability under a 90° rotation"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row.model, f"{row.parameters:,}", f"{row.test_error:.1f} %", f"{row.change:.1e}")
    Console().print(table)
    print(f"test error against the angle: {plot}")


@app.command()
def table(
    models: Annotated[
        list[str] | None, typer.Argument(help="Models of the paper's tables; all, unless --module is given.")
    ] = None,
    module: Annotated[
        list[str] | None, typer.Option(help="A network of yours, package.module:factory; repeatable.")
    ] = None,
    shape: Annotated[str, typer.Option(help="Channels, rows and columns that --module reads.")] = "3,32,32",
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Also time training and inference, against the first of each shape."),
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Images in a step that --measure times.")] = 8,
    csv: Annotated[bool, typer.Option("--csv", help="CSV instead of Markdown.")] = False,
) -> None:
    """Print the cost of models beside the paper's numbers; measured on a GPU if there is one."""
    import torch

    from ..analysis import import_network
    from ..paper import PAPER_RESULTS, cost_table, paper_models, to_csv, to_markdown

    subjects = paper_models(models or ([] if module else list(PAPER_RESULTS)))
    subjects |= {path: (import_network(path), _shape(shape)) for path in module or ()}
    if torch.cuda.is_available():
        for network, _ in subjects.values():
            network.cuda()
    rows = cost_table(subjects, measure, batch_size)
    print((to_csv if csv else to_markdown)(rows), end="")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    file_format: Annotated[str, typer.Option("--format", help="onnx, torch or safetensors.")] = "onnx",
    output: Annotated[
        Path | None, typer.Option(help="The file to write; it must not exist.", show_default="RUN/<model>.<suffix>")
    ] = None,
) -> None:
    """Export the trained network of a run to a file that needs no sepgroupy."""
    from ..training import export_run

    print(export_run(folder, file_format, output))


@app.command()
def weights(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    output: Annotated[
        Path | None, typer.Option(help="The file to write; it must not exist.", show_default="RUN/<model>.npz")
    ] = None,
) -> None:
    """Write the trained parameters of a run, with a card of the training, for build_model(MODEL, weights=FILE)."""
    from ..paper import save_run_weights
    from ..training import read_config

    path = folder / f"{read_config(folder).model}.npz" if output is None else output
    save_run_weights(folder, path)
    print(path)


app.add_typer(train_app, name="train")
app.command()(predict)
add_commands(app)
app.command()(play)


def exit_code(action: Callable[[], object], debug: bool = False) -> int:
    """Call the action and return the exit code of the process: 0, 2 for misuse, 1 for failure, 130 for interruption.

    An error becomes one line on stderr, unless ``debug``.
    """
    # Large maps in large pages, before torch allocates any: the paper's networks train up to twice as fast on a CPU.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("sepgroupy").setLevel(logging.INFO)
    try:
        action()
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:  # which is what Typer makes of a KeyboardInterrupt
            raise
        print("interrupted: run the same command again to resume", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split())
        expected = isinstance(error, (SepgroupyError, OSError))
        print("error:", text if expected else f"{type(error).__name__}: {text} (--debug shows where)", file=sys.stderr)
        return 2 if isinstance(error, ArgumentError) else 1
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the ``sepgroupy`` command with the arguments of the process, or those given, and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.exit(exit_code(lambda: app(arguments), debug="--debug" in arguments))


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ArgumentError(f"shape (={text!r}) must be whole numbers and commas, such as 3,32,32") from None
