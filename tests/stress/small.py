"""A run of seconds, and processes that begin at once because they are forked from one that has imported everything."""

from __future__ import annotations

import csv
import logging
import os
import resource
import socket
import sys
import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sepgroupy.cli import exit_code
from sepgroupy.data import ImageData
from sepgroupy.paper import RunConfig, _data, load_digits
from sepgroupy.training import _loop, load_model
from sepgroupy.training._loop import Loop


@lru_cache
def few_digits(train: int = 48, test: int = 30, rotated: bool = True) -> ImageData:
    """Return few enough digits that a run of them takes a second."""
    data = load_digits(rotated)
    return ImageData("a few digits", data.train.first(train), data.test.first(test), 10)


def small_run(folder: Path, **settings: Any) -> RunConfig:
    """Six epochs of five steps, with all that a run has to remember: moments, rate, augmentation, average."""
    usual: dict[str, Any] = {
        "model": "gc-p4cnn-small", "width": 3, "epochs": 6, "batch_size": 10, "milestones": (2, 4), "log_every": 2,
        "crop": 4, "hflip": True, "rotation": 180.0, "shift": 0.1, "ema": 0.9, "device": "cpu",
    }  # fmt: skip
    return RunConfig.for_task("rotmnist", **(usual | settings), folder=str(folder))


def fork(action: Callable[[], object], log: Path, environment: dict[str, str] | None = None) -> int:
    """Start a process that does the action as a command would, and return its number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: torch's threads sleep
        process = os.fork()
    if process:
        return process
    code = 70  # the action never came to its end
    try:
        os.environ.update(environment or {})
        sys.stdout = sys.stderr = log.open("a", buffering=1)
        os.dup2(sys.stderr.fileno(), 2)  # what is not Python's
        logging.getLogger().handlers.clear()  # pytest's
        torch.set_num_threads(1)  # the threads of an earlier test were not forked, and would be waited for
        code = exit_code(action)
    except KeyboardInterrupt:  # before the action began
        code = 130
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os._exit(code)  # nothing of the parent's is to be tidied up


def finished(process: int) -> int:
    """Wait for a process and return its exit code, negative if a signal has ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def together(count: int, action: Callable[[], object], log: Path) -> list[int]:
    """Run the action in ``count`` processes as torchrun starts them; return their exit codes in order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    usual = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "small", "GROUP_RANK": "0"}
    sizes = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    return [finished(process) for process in [fork(action, log, usual | sizes | place) for place in places]]


def use_digits(patch: pytest.MonkeyPatch, digits: ImageData, save_seconds: float | None = None) -> None:
    """Let every run read these images in place of those that it names, and save as often as given."""
    patch.setattr(_data, "load_rotmnist", lambda source, path: digits)
    if save_seconds is not None:
        patch.setattr(_loop, "SAVE_SECONDS", save_seconds)


def before_step(
    patch: pytest.MonkeyPatch, action: Callable[[], object], step: int | None = None, rank: int | None = None
) -> None:
    """Let something happen before a training step, or before each of them, in one process or in all."""
    do_step = Loop._do_step

    def with_action(self: Loop, stop: Any) -> None:
        if step in (None, self.step) and rank in (None, self.fabric.global_rank):
            action()
        do_step(self, stop)

    patch.setattr(Loop, "_do_step", with_action)


def interrupt() -> None:
    """Do what Ctrl-C does."""
    raise KeyboardInterrupt


def outcome(folder: Path) -> tuple[dict[str, Tensor], list[dict[str, str]]]:
    """Read what a run has left that does not depend on the clock: parameters and table."""
    with (folder / "metrics.csv").open(newline="") as file:
        table = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    return load_model(folder).state_dict(), table


def same(first: tuple[dict[str, Tensor], Any], second: tuple[dict[str, Tensor], Any]) -> bool:
    """Whether two outcomes are bitwise the same."""
    (state, table), (other, other_table) = first, second
    return (
        table == other_table and state.keys() == other.keys() and all(map(torch.equal, state.values(), other.values()))
    )


class little_memory:  # noqa: N801 - used as a function
    """Hold that what is done inside takes less than ten seconds and 300 MiB."""

    def __enter__(self) -> None:
        self.start, self.before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def __exit__(self, *_: object) -> None:
        assert time.monotonic() - self.start < 10
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before < 300 * 2**10
