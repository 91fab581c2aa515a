"""Measure layers, networks and their scaling, write CSV files and plots, and print the tables of targets.

python -m benchmarks
python -m benchmarks --device cuda  # one table of the eleven networks on a GPU, in ten minutes
python -m benchmarks compare OLD    # the same rows with an earlier version of the library
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from . import compare, converted, cross_model, gpu, layers, models, modes, scaling
from .arguments import RESULTS, ROOT, add_common, folder, positive
from .hardware import describe
from .measure import DisagreementError
from .plots import draw
from .results import read, write
from .summary import slower, targets

SUITES = {
    "layers": layers.jobs,
    "models": models.jobs,
    "cross_model": cross_model.jobs,
    "converted": converted.jobs,
    "modes": modes.jobs,
    "scaling": scaling.jobs,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suites, or :mod:`.compare`; return 1 if a row was refused because results disagreed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["compare"]:
        return compare.main(arguments[1:])
    options = _parse(arguments)
    device = torch.device(options.device)
    results = folder(options)
    images = ROOT / "docs" / "images" if results == RESULTS else results
    refused: list[str] = []
    before = torch.get_num_threads()
    for suite in options.only:
        if suite == "gpu":
            if lines := gpu.measure(device, options.rounds, options.quick, refused):
                write(results / "gpu.csv", lines)
            continue
        rows: list[dict[str, Any]] = []
        every = device.type == "cpu" and suite in ("layers", "models")
        for threads in options.threads if every else options.threads[-1:]:
            torch.set_num_threads(threads)
            rows += _measure(suite, device, options, refused)
        if rows:
            write(results / f"{suite}{'' if device.type == 'cpu' else '-' + device.type}.csv", rows)
    torch.set_num_threads(before)
    if device.type == "cpu" and options.only != ["gpu"]:
        found = read(results)
        draw(found, images)
        print("", targets(found), "", *(slower(found) or ["no row is slower than the baseline"]), sep="\n")
    print(f"\nresults in {results}")
    for line in refused:
        print(f"REFUSED {line}")
    return 1 if refused else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    most = torch.get_num_threads()
    cuda = "cuda" if torch.cuda.is_available() else "cpu"
    suites = [*SUITES, "gpu"]
    parser.add_argument("--only", nargs="+", choices=suites, help="suites to run (on a GPU gpu, else all others)")
    add_common(parser, rounds=5)
    parser.add_argument("--threads", type=positive, nargs="+", default=sorted({1, most}), help="CPU threads (1, all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=cuda, help="device (%(default)s)")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"argument --device: cuda is not on this machine (torch {torch.__version__}): use cpu")
    options.only = options.only or (["gpu"] if options.device == "cuda" else list(SUITES))
    return options


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
        library = next(row for row in found if row["variant"] in ("sepgroupy", row.get("model")))
        times = [
            f"{what} ×{library[f'{what}_speedup']}" for what in ("inference", "step") if library[f"{what}_speedup"]
        ]
        print(f" {', '.join(times)}  ({time.perf_counter() - begin:.1f} s)", flush=True)
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
