"""The result of a finished run, with the version of the code that computed it."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from .. import __version__
from ._history import best_epoch
from ._loop import Loop
from ._run_directory import Result


def result_of(loop: Loop) -> Result:
    """Return the result of a run whose last epoch is done."""
    from ._fabric import VERSION

    last, images = loop.history[-1], loop.data.test_images
    chosen = loop.history[best_epoch(loop.history) - 1] if loop.best is not None else last
    return Result(
        test_error=last["test_error"],
        test_loss=last["test_loss"],
        train_error=last["train_error"],
        train_loss=last["train_loss"],
        seconds=last["seconds"],
        parameters=sum(parameter.numel() for parameter in loop.model.parameters()),
        data=loop.data.name,
        fingerprint=loop.data.fingerprint,
        versions={
            "sepgroupy": __version__,
            "torch": torch.__version__,
            "lightning": VERSION,
            "python": platform.python_version(),
        },
        command=shlex.join([*(Path(program).name for program in sys.argv[:1]), *sys.argv[1:]]),
        revision=revision_of(Path(__file__).parent),
        test_correct=images - round(last["test_error"] * images / 100) if loop.data.counts_right_answers else 0,
        test_images=images,
        validation_error=chosen.get("validation_error"),
        validation_loss=chosen.get("validation_loss"),
    )


def revision_of(folder: Path) -> str:
    """Return the git commit of a folder of source files; empty if git does not track them."""
    try:
        git = ["git", "-C", str(folder)]
        subprocess.run([*git, "ls-files", "--error-unmatch", "."], check=True, capture_output=True)
        described = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(described, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
