"""Measure layers, networks and their scaling, write CSV files and pictures, and print the table of targets.

python -m benchmarks
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sepgroupy._files import atomic

from . import across, layers, models, scaling
from .machine import describe
from .measure import DisagreementError
from .pictures import draw
from .summary import read, slower, targets

ROOT = Path(__file__).parents[1]
SUITES = {"layers": layers.jobs, "models": models.jobs, "across": across.jobs, "scaling": scaling.jobs}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suites; return 1 if a row was refused because a variant disagreed with the baseline."""
    options = _parse(arguments)
    device = torch.device(options.device)
    results = options.out or (ROOT / "runs" / "benchmarks" if options.quick else ROOT / "benchmarks" / "results")
    images = ROOT / "docs" / "images" if results == ROOT / "benchmarks" / "results" else results
    refused: list[str] = []
    before = torch.get_num_threads()
    for suite in options.only:
        rows: list[dict[str, Any]] = []
        every = device.type == "cpu" and suite in ("layers", "models")
        for threads in options.threads if every else options.threads[-1:]:
            torch.set_num_threads(threads)
            rows += _measure(suite, device, options, refused)
        if rows:
            _write(results / f"{suite}{'' if device.type == 'cpu' else '-' + device.type}.csv", rows)
    torch.set_num_threads(before)
    if device.type == "cpu":
        found = read(results)
        draw(found, images)
        print("", targets(found), "", *(slower(found) or ["no row is slower than the baseline"]), sep="\n")
    print(f"\nresults in {results}, pictures in {images}" if device.type == "cpu" else f"\nresults in {results}")
    for line in refused:
        print(f"REFUSED {line}")
    return 1 if refused else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    most = torch.get_num_threads()
    cuda = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--only", nargs="+", choices=SUITES, default=list(SUITES), help="suites to run (all)")
    parser.add_argument("--rounds", type=_positive, default=5, help="rounds of which the median counts (%(default)s)")
    parser.add_argument("--threads", type=_positive, nargs="+", default=sorted({1, most}), help="CPU threads (1, all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=cuda, help="device (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few small rows, into runs/benchmarks")
    parser.add_argument("--out", type=Path, help="folder of results and pictures (benchmarks/results, docs/images)")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least 1")
    return int(text)


def _measure(suite: str, device: torch.device, options: argparse.Namespace, refused: list[str]) -> list[dict[str, Any]]:
    """Measure the rows of a suite on the threads that are set; add to ``refused`` those that disagree."""
    rows: list[dict[str, Any]] = []
    jobs = list(SUITES[suite](device, options.rounds, options.quick))
    for number, (label, measure) in enumerate(jobs, start=1):
        begin = time.perf_counter()
        print(f"{suite} {number}/{len(jobs)}  {label}", end=" ", flush=True)
        try:
            found = measure()
        except DisagreementError as error:
            refused.append(f"{label}: {error}")
            print("REFUSED", flush=True)
            continue
        rows += [row | describe(device) for row in found]
        ours = next(row for row in found if row["variant"] in ("sepgroupy", row.get("model")))
        times = [f"{what} ×{ours[f'{what}_speedup']}" for what in ("evaluation", "step") if ours[f"{what}_speedup"]]
        print(f" {', '.join(times)}  ({time.perf_counter() - begin:.1f} s)", flush=True)
    return rows


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows, whole or not at all."""
    names = dict.fromkeys(n for row in rows for n in row)
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    raise SystemExit(main())
