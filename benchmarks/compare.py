"""Time the rows with an earlier version of the library and with this one, by turns.

python -m benchmarks compare OLD

Two processes stay alive, one with each version; one of them works at a time: old, new, old, new, …
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sepgroupy.models import published_model_names

from . import layers
from .arguments import ROOT, add_common, folder, positive
from .cases import LayerCase, NetworkCase, training_batch
from .hardware import cpu_name, describe
from .measure import DisagreementError, repeats_for
from .models import is_on_group
from .results import write

SAMPLE = 0.05
"""Seconds that one turn takes at least, by repetition."""
TOLERANCE = 1e-4
"""Largest difference of the two versions' outputs, relative to the largest value, that rounding explains."""
WORST = 12
"""Rows that are printed."""


@dataclass(frozen=True)
class Subject:
    """What both processes build, and what is measured of it: "inference" and "step" in ms, "saved" in MiB."""

    name: str  # of worker.SUBJECTS
    case: LayerCase | NetworkCase
    measures: tuple[str, ...] = ("inference", "step", "saved")

    def __str__(self) -> str:
        return f"{self.name}: {self.case}"


def subjects(quick: bool) -> list[Subject]:
    """List layers, the same after batch norm and ReLU, networks, batch-1 inference, and small inputs for overheads."""
    some = slice(2 if quick else None)
    cases, names = layers.cases(quick)[some], ("gc-p4cnn",) if quick else published_model_names()
    small = [LayerCase("p4m", kind, 3, 1, 4, 5, 1) for kind in ("lifting", "dense", "g", "gc")[some]]
    return [
        *(Subject("layer", case) for case in cases),
        *(Subject("norm-relu-layer", case) for case in cases if case.kind != "lifting"),
        *(Subject("network", NetworkCase(name, 8 if quick else training_batch(name))) for name in names),
        *(
            Subject(name, NetworkCase(model, 1), ("inference",))
            for name in ("network", "network without cache")
            for model in names
            if is_on_group(model)
        ),
        *(Subject(name, case, ("inference", "step")) for name in ("function", "small layer") for case in small),
    ]


class Worker:
    """A process that measures with the version of the library in a folder ``src``."""

    def __init__(self, src: Path, threads: int) -> None:
        self.environment = environment(src, threads)
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from benchmarks.worker import serve; serve()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=self.environment,
        )  # fmt: skip
        version = self._read()
        if not Path(version["file"]).is_relative_to(src):
            raise SystemExit(f"{sys.executable} imports {version['file']}, not {src}")
        self.kernels = version["kernels"]

    def ask(self, name: str, *arguments: Any) -> Any:
        """Call a method of the process's session.

        Raises:
            DisagreementError: it raised.
        """
        assert self.process.stdin is not None
        print(json.dumps([name, arguments]), file=self.process.stdin, flush=True)
        answer = self._read()
        if "error" in answer:
            raise DisagreementError(answer["error"])
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process with {self.environment['PYTHONPATH']} ended with {self.process.wait()}")
        return dict(json.loads(line))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def environment(src: Path, threads: int) -> dict[str, str]:
    """Return the environment of a process that imports the version in ``src``."""
    count = str(threads)
    return os.environ | {"PYTHONPATH": str(src), "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}


def main(arguments: Sequence[str]) -> int:
    """Compare the versions; return 1 if a row was refused or this version saves more for the backward pass."""
    options = _parse(arguments)
    begin, lines, refused = time.perf_counter(), [], []
    with ExitStack() as stack:
        old, new = (stack.enter_context(Worker(path / "src", options.threads)) for path in (options.old, ROOT))
        print(f"{cpu_name()}, {options.threads} threads\nold: {options.old}, {old.kernels}\nnew: {ROOT}, {new.kernels}")
        found = [subject for subject in subjects(options.quick) if options.rows in str(subject)]
        for number, subject in enumerate(found, start=1):
            print(f"{number}/{len(found)}  {subject}", end="", flush=True)
            try:
                measured = list(measure(subject, old, new, options.rounds))
            except DisagreementError as error:
                refused.append(f"{subject}: {error}")
                print("  REFUSED", flush=True)
                continue
            lines += measured
            ratios = (f"{line['row'].rpartition(', ')[2]} ×{line['ratio']:.3f}" for line in measured)
            print(f"  {', '.join(ratios)}", flush=True)
        lines.append(import_time(old.environment, new.environment, options.rounds))
    path = folder(options) / "compare.csv"
    write(path, [line | describe(torch.device("cpu")) | {"threads": options.threads} for line in lines])
    larger = [line for line in lines if line["unit"] == "MiB" and line["new"] > line["old"]]
    print("", *summarize(lines), f"\n{time.perf_counter() - begin:.0f} s; results in {path}", sep="\n")
    for line in larger:
        print(f"LARGER {line['row']}: {line['old']} MiB before, {line['new']} MiB now")
    for text in refused:
        print(f"REFUSED {text}")
    return 1 if refused or larger else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=Path, metavar="OLD", help="checkout of an earlier version, its kernels compiled")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads of each process (%(default)s)")
    parser.add_argument("--rows", default="", metavar="TEXT", help="rows whose name contains a text (all)")
    add_common(parser, rounds=9)
    options = parser.parse_args(arguments)
    options.old = options.old.resolve()
    if not (options.old / "src" / "sepgroupy" / "__init__.py").exists():
        parser.error(f"OLD (={options.old}) must be a checkout of the repository, with src/sepgroupy")
    return options


def measure(subject: Subject, old: Worker, new: Worker, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield a line for each measure of a subject.

    Raises:
        DisagreementError: a version cannot compute it, or the outputs differ.
    """
    first = [worker.ask("prepare", subject.name, asdict(subject.case), subject.measures) for worker in (old, new)]
    _check(*(answer["outputs"] for answer in first))
    for name in subject.measures:
        before, after = (answer["first"][name] for answer in first)
        row = f"{subject}, {name}"
        if name == "saved":
            yield _line(row, "MiB", [(before / 2**20, after / 2**20)])
            continue
        repeats = repeats_for(max(before, after), SAMPLE)

        def turn(worker: Worker, name: str = name, repeats: int = repeats) -> float:
            return 1e3 * float(worker.ask("time", name, repeats))

        yield _line(row, "ms", [(turn(old), turn(new)) for _ in range(rounds)])


def import_time(old: Mapping[str, str], new: Mapping[str, str], rounds: int) -> dict[str, Any]:
    """Return the line of ``import sepgroupy`` in new processes that have imported torch; from byte code."""
    code = "import time, torch; begin = time.perf_counter(); import sepgroupy; print(time.perf_counter() - begin)"
    with TemporaryDirectory() as folder:
        cached = {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}

        def turn(env: Mapping[str, str]) -> float:
            command, environment = [sys.executable, "-c", code], {**env, **cached}
            run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            return 1e3 * float(run.stdout)

        turn(old), turn(new)  # write the byte code
        return _line("import sepgroupy", "ms", [(turn(old), turn(new)) for _ in range(rounds)])


def _check(old: Sequence[float], new: Sequence[float]) -> None:
    """Refuse outputs that differ."""
    scale = max(map(abs, old)) or 1.0
    errors = [abs(a - b) / scale for a, b in zip(old, new, strict=True)]
    if not all(error <= TOLERANCE for error in errors):  # max would ignore NaN
        raise DisagreementError(f"outputs differ by {max(errors):.1e} of their largest value, or are NaN")


def _line(row: str, unit: str, pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    ratios = [1.0 if old == new else old / new if new else math.inf for old, new in pairs]
    return {
        "row": row,
        "unit": unit,
        "old": round(median(old for old, _ in pairs), 4),
        "new": round(median(new for _, new in pairs), 4),
        "ratio": round(median(ratios), 4),
        "rounds": len(pairs),
    }


def summarize(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the geometric means of old/new times, by kind of row and of all, and the rows with the smallest ratios."""
    times = [line for line in lines if line["unit"] == "ms"]
    logs: dict[str, list[float]] = {}
    for line in times:
        logs.setdefault(_kind(line["row"]), []).append(math.log(line["ratio"]))
    logs["all"] = [log for found in logs.values() for log in found]
    worst = sorted(times, key=lambda line: line["ratio"])[:WORST]
    return [
        "time before / time now, geometric means:",
        *(f"{math.exp(fmean(found)):7.3f}  {kind} ({len(found)} rows)" for kind, found in logs.items()),
        "worst rows:",
        *(f"{line['ratio']:7.3f}  {line['row']}: {line['old']} ms before, {line['new']} ms now" for line in worst),
    ]


def _kind(row: str) -> str:
    subject, _, measured = row.partition(": ")
    return f"{subject}, {measured.rpartition(', ')[2]}" if measured else subject
