"""How training scales from one process to two, and its limit beyond.

    python -m benchmarks.distributed            # measure, on an idle machine
    python -m benchmarks.distributed --bound    # the calculated limit alone

Each process has one thread. It reads the same number of images per step for any number of processes ("weak scaling"),
or its share of one batch ("strong scaling"). The efficiency is images per second, compared with one process's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import torch

from sepgroupy.models import build_model

RESNETS = ("resnet44", "p4m-resnet44", "g-p4m-resnet44", "gc-p4m-resnet44")
LINKS = {"1 GbE": 0.125e9, "10 GbE": 1.25e9, "100 GbE": 12.5e9, "NVLink 4": 450e9}  # bytes per second, in one direction
SAMPLES, EPOCHS = 1024, 5


def main() -> None:
    """Print both tables, or that of the limit alone."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distributed", description=__doc__)
    parser.add_argument("--bound", action="store_true", help="the calculated limit alone")
    parser.add_argument("--model", default="gc-p4cnn", help="network of the measurement (%(default)s)")
    options = parser.parse_args()
    if not options.bound:
        print("\n".join(measured(options.model)), end="\n\n")
    print("\n".join(bound()))


def measured(model: str) -> list[str]:
    """Return a table of images per second, of the fastest epoch after the first."""
    lines = ["| scaling | processes | batch | images/s | efficiency |", "| --- | --- | --- | --- | --- |"]
    for scaling, batches in (("weak", (64, 128)), ("strong", (128, 128))):
        rates = [_rate(model, processes, batch) for processes, batch in enumerate(batches, start=1)]
        for processes, (batch, rate) in enumerate(zip(batches, rates, strict=True), start=1):
            share = rate / (processes * rates[0])
            lines.append(f"| {scaling} | {processes} | {batch} | {rate:.0f} | {100 * share:.0f} % |")
    return lines


def _rate(model: str, processes: int, batch: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "model": model, "samples": SAMPLES, "epochs": EPOCHS, "batch_size": batch, "devices": processes,
            "device": "cpu", "log_every": EPOCHS, "folder": f"{folder}/run",
        }  # fmt: skip
        script = Path(folder) / "run.py"
        script.write_text(
            "import json, sys\nfrom sepgroupy.paper import RunConfig\nfrom sepgroupy.training import train\n"
            "train(RunConfig.for_task('rotmnist', **json.loads(sys.argv[1])))\n"
        )
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(script), json.dumps(settings)]
        subprocess.run(command, check=True, env=environment, capture_output=True)
        lines = (Path(folder) / "run/metrics.csv").read_text().splitlines()
    seconds = [float(line.rpartition(",")[2]) for line in lines[1:]]
    # The first epoch includes the setup, the last one an evaluation.
    return SAMPLES / min(b - a for a, b in pairwise(seconds))


def bound() -> list[str]:
    """Return a table of the bytes of gradient per step, and of the step below which the network limits the speed.

    A ring of many processes sends and receives each byte of the gradient twice: ``t = 2·bytes/bandwidth``. It can
    hide behind the backward pass, about two thirds of a step, so that a step of ``3·bytes/bandwidth`` is the limit.
    """
    links = " | ".join(f"{name}: shortest step" for name in LINKS)
    lines = [f"| network | gradient | {links} |", "| --- " * (2 + len(LINKS)) + "|"]
    for name in RESNETS:
        with torch.device("meta"):
            size = 4 * sum(parameter.numel() for parameter in build_model(name).parameters())
        steps = " | ".join(f"{3e3 * size / bandwidth:.3g} ms" for bandwidth in LINKS.values())
        lines.append(f"| {name} | {size / 1e6:.2f} MB | {steps} |")
    return lines


if __name__ == "__main__":
    main()
