"""The commands ``sepgroupy train TASK``: one for each kind of data, with the options of its configuration."""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any

import typer

from ..errors import ArgumentError
from ..paper import PAPER, RECIPES, RunConfig
from ..training import IMAGE_RECIPES, ImageConfig, TrainingConfig
from ._options import Workers, takes_run_options

__all__ = ["run", "score_text", "train"]

train = typer.Typer(
    help="Train a network. Run the command again to resume an interrupted run.\n\n"
    "With --devices or --nodes it starts its processes itself, or is started by torchrun or Slurm's srun.",
    no_args_is_help=True,
)

TimeLimit = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Stop and save after this time, such as 90s, 30m or 2h; the same command continues."
    ),
]


@train.command()
@takes_run_options(ImageConfig, tuple(IMAGE_RECIPES["modern"]))
def images(
    task: Annotated[str, typer.Option(metavar="|".join(IMAGE_RECIPES["modern"]))] = "classification",
    recipe: Annotated[
        str, typer.Option(metavar="|".join(IMAGE_RECIPES), help="Where the values of all options are from.")
    ] = "modern",
    workers: Workers = None,
    time_limit: TimeLimit = None,
    **values: Any,
) -> None:
    """Train on your images: a folder of class folders, images and masks, a CSV file, or a MedMNIST archive."""
    config = ImageConfig.for_task(task, recipe, **values)
    run(config, workers, None if time_limit is None else seconds_of(time_limit))
    from ._images import report

    report(config.run_folder, config.device, workers)


def _add_paper_command(task: str) -> None:
    @train.command(task, help=f"Train on {task}, with the values of the paper (or of --recipe) for all options.")
    @takes_run_options(RunConfig, (task,))
    def command(
        recipe: Annotated[
            str, typer.Option(metavar="|".join(RECIPES), help="Where the values of all options are from.")
        ] = "paper",
        augment: Annotated[bool, typer.Option("--augment", help="Short for --crop 4 --hflip: CIFAR10+.")] = False,
        time_limit: TimeLimit = None,
        **values: Any,
    ) -> None:
        if augment:
            values |= {"crop": values["crop"] or 4, "hflip": True}
        config = RunConfig.for_task(task, recipe, **values)
        run(config, None, None if time_limit is None else seconds_of(time_limit))


for _task in PAPER:
    _add_paper_command(_task)


def run(config: TrainingConfig, workers: int | None = None, time_limit: float | None = None) -> None:
    """Train as the configuration says and print what came out."""
    from ..training import is_first, train

    if not is_first():
        train(config, workers=workers, time_limit=time_limit)
        return
    print(f"{config.model} on {getattr(config, 'data', config.data_path)}, run directory {config.run_folder}")
    result = train(config, sys.stdout.isatty(), workers=workers, time_limit=time_limit)
    if result.validation_error is not None:
        print(
            f"validation {_error(config.task, result.validation_error)}, validation loss {result.validation_loss:.4f}"
        )
    text = score_text(config.task, result.test_error, result.test_loss, result.test_correct, result.test_images)
    print(f"{text}, {result.parameters:,} parameters, {result.seconds:.0f} s")


def score_text(task: str, error: float, loss: float, correct: int, images: int) -> str:
    """Write the score of a network on the test images."""
    counted = images and task not in ("regression", "segmentation")
    accuracy = f", test accuracy {correct}/{images} ({100 * correct / images:.2f} %)" if counted else ""
    return f"test {_error(task, error)}, test loss {loss:.4f}{accuracy}"


def _error(task: str, error: float) -> str:
    if task == "regression":
        return f"mean absolute error {error:.4g}"
    return f"{'pixel error' if task == 'segmentation' else 'error'} {error:.2f} %"


def seconds_of(text: str) -> float:
    """Read a time such as 90s, 30m, 2h or 1.5h; a number alone is in seconds.

    Raises:
        ArgumentError: the text is not a time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if match is None or not float(match[1]):
        raise ArgumentError(f"time_limit (={text!r}) must be a time such as 90s, 30m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
