"""Kill runs at random times until they are complete, and compare them with a run that was never killed.

python -m tests.stress.kills --kills 200
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch

from sepgroupy.training import CHECKPOINT, train

from .small import few_digits, finished, fork, outcome, read_checkpoint, same, small_run, use_digits

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def survive(kills: int, folder: Path, seed: int = 0) -> Counter[str]:
    """Kill runs ``kills`` times, and count what happened.

    Every second kill is a SIGKILL in the moment in which a checkpoint is being written; the others are a SIGKILL or
    one of the signals that ask to stop, at any moment of a run.

    Raises:
        AssertionError: a run came out otherwise than the one that was never killed.
    """
    chance = random.Random(seed)
    use_digits(pytest.MonkeyPatch(), few_digits(), save_seconds=0.0)
    start = time.monotonic()
    train(small_run(folder / "whole"))
    duration = time.monotonic() - start
    whole = outcome(folder / "whole")
    counts: Counter[str] = Counter()
    while counts["kills"] < kills:
        counts["runs"] += 1
        run = folder / f"run-{counts['runs']}"
        while not (run / "result.json").exists():
            process = fork(partial(train, small_run(run)), folder / "log.txt")
            killed_with = _kill(process, run, duration, chance, writing=bool(counts["kills"] % 2))
            code = finished(process)
            if code == 0:
                continue
            assert code in (130, -killed_with), f"exit code {code} after {killed_with.name}: see {folder / 'log.txt'}"
            counts["kills"] += 1
            counts[killed_with.name] += 1
            counts["while a checkpoint was written"] += bool(list(run.glob(f".{Path(CHECKPOINT).stem}.*")))
            counts["stopped and saved"] += code == 130
            if (run / CHECKPOINT).exists():
                read_checkpoint(run)  # the last good one
        assert same(outcome(run), whole), f"{run} differs from the run that was never killed"
    return counts


def _kill(process: int, run: Path, duration: float, chance: random.Random, writing: bool) -> signal.Signals:
    """Send a signal to a process at a random moment, unless it ends before."""
    number = signal.SIGKILL if writing else chance.choice(SIGNALS)
    time.sleep(chance.uniform(0, duration / 2))  # so that most runs are killed several times
    while writing and _alive(process) and not any(run.glob(f".{Path(CHECKPOINT).stem}.*")):
        time.sleep(0.0002)
    os.kill(process, number)
    return number


def _alive(process: int) -> bool:
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how often to kill (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random times (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts = survive(options.kills, Path(folder), options.seed)
    for what, count in sorted(counts.items()):
        print(f"{count:6d} {what}")
    print(f"all {counts['runs']} runs ended bitwise as the one never killed; {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
