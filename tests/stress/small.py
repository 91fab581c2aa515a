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
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sepgroupy.cli import exit_code
from sepgroupy.data import ImageData
from sepgroupy.paper import RunConfig, _data, load_digits
from sepgroupy.paper.report import _rotation_curve, _run_groups
from sepgroupy.training import CHECKPOINT, RunData, _loop, generator, load_model

ORDER, AFFINE = 0, 2
"""What the random numbers of a run are for, as stored runs rely on it."""


@lru_cache
def few_digits(train: int = 48, test: int = 30, rotated: bool = True) -> ImageData:
    """Return few enough digits that a run of them takes a second."""
    data = load_digits(rotated)
    return ImageData("a few digits", data.train.first(train), data.test.first(test), 10)


def small_run(folder: Path, **settings: Any) -> RunConfig:
    """Six epochs of five steps, with all state that a run restores: optimizer, learning rate, augmentation, average."""
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


def use_digits(patch: pytest.MonkeyPatch, digits: ImageData | None, save_seconds: float | None = None) -> None:
    """Let every run read these images in place of those that it names, and save as often as given."""
    patch.setattr(_data, "load_rotmnist", lambda source, path: digits)
    if save_seconds is not None:
        patch.setattr(_loop, "SAVE_SECONDS", save_seconds)


def use_digits_in_reports(patch: pytest.MonkeyPatch, rotated: ImageData, upright: ImageData) -> None:
    """Let runs and reports on them read these images; no report remembers those of another test."""
    use_digits(patch, rotated)
    patch.setattr(_rotation_curve, "load_digits", lambda rotated: upright)
    _run_groups.load.cache_clear()


def before_step(
    patch: pytest.MonkeyPatch, action: Callable[[], object], step: int | None = None, rank: int | None = None
) -> None:
    """Let something happen when a training step, or each of them, asks for its batch, in one process or in all."""

    def with_action(batches: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def acting(self: RunData, epoch: int, first: int, fabric: Any) -> Iterator[Any]:
            found = batches(self, epoch, first, fabric)
            for position in range(first, self.steps):
                if step in (None, epoch * self.steps + position) and rank in (None, fabric.global_rank):
                    action()
                yield next(found)

        return acting

    for data in RunData.__subclasses__():
        patch.setattr(data, "batches", with_action(data.batches))


def interrupt() -> None:
    """Do what Ctrl-C does."""
    raise KeyboardInterrupt


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the order of the training images in an epoch: what stored runs rely on."""
    return torch.randperm(count, generator=generator(seed, ORDER, epoch))


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Read the checkpoint of a run."""
    found: dict[str, Any] = torch.load(folder / CHECKPOINT, weights_only=True)
    return found


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
    """Assert that what is done inside takes less than ten seconds of a processor and 300 MiB."""

    def __enter__(self) -> None:
        self.start, self.before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def __exit__(self, *_: object) -> None:
        assert time.process_time() - self.start < 10
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before < 300 * 2**10
