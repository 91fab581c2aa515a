"""Layers for volumes on the symmetries of a cube, compared with PyTorch's convolution and precomputed filters.

python -m benchmarks.volumes

A dense layer is compared with ``F.conv3d`` and the expanded filters, a gc layer with two of them: the pointwise step
with its expanded matrix, then the depthwise step. Expanded filters are parameters of the baseline: it spends no time to
expand them, and its steps compute their gradient. Writes ``benchmarks/results/volumes.csv`` and the table of
docs/volumes.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from sepgroupy.backends.expanded import Expanded
from sepgroupy.backends.two_step import TwoStep
from sepgroupy.nn import cached_filters

from .arguments import RESULTS, add_common, folder
from .cases import VolumeCase
from .hardware import Rates, describe
from .layers import limit
from .measure import Variant, measure_variants
from .results import write
from .tables import rewrite_page

SIZES = (("O", 4, 16), ("O", 8, 16), ("O", 4, 32), ("O", 8, 32), ("Oh", 4, 16))
"""Group, channels and voxels per side."""
TARGETS = {("dense", "O"): (4, 3), ("dense", "Oh"): (7, 5), ("gc", "O"): (5, 4), ("gc", "Oh"): (8, 6)}
"""How many times as fast inference and step should be."""
CONSTRUCT = """
import time, sepgroupy, sys
group, kind, channels = sys.argv[1:]
for _ in range(2):
    begin = time.perf_counter()
    sepgroupy.GroupConv3d(int(channels), int(channels), 3, padding=1, group=group, kind=kind)
    print(1e3 * (time.perf_counter() - begin))
"""


class PrecomputedFilters(nn.Module):
    """A layer by PyTorch's convolutions, whose parameters are the expanded filters."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.spec, self.backend = layer.spec, TwoStep() if layer.spec.kind == "gc" else Expanded()
        expanded = self.backend.expand_filters(layer.spec, dict(layer.named_parameters()))
        self.filters = nn.ParameterList(nn.Parameter(f.detach().clone()) for f in expanded if f is not None)
        self.bias = nn.Parameter(layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return self.backend.run(self.spec, x, tuple(self.filters), self.bias)


def cases(quick: bool) -> list[VolumeCase]:
    """List the layers; the quick list has one of each kind, at 8³."""
    if quick:
        return [VolumeCase("O", kind, 3, 1, 2, 8, 1) for kind in ("dense", "gc")]
    return [VolumeCase(group, kind, 3, 1, c, n, 2) for kind, (group, c, n) in product(("dense", "gc"), SIZES)]


def construction_ms(case: VolumeCase) -> tuple[float, float]:
    """Return the time to build the first layer of a process, and a second one."""
    command = [sys.executable, "-c", CONSTRUCT, case.group, case.kind, str(case.channels)]
    first, second = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return round(float(first), 1), round(float(second), 1)


def measure(case: VolumeCase, rounds: int) -> list[dict[str, Any]]:
    """Return a line for PyTorch with precomputed filters and one for the library."""
    torch.manual_seed(0)
    layer = case.layer()
    ready = Variant("precomputed filters", PrecomputedFilters(layer), group_outermost=True, same_parameters=False)
    ours = Variant("sepgroupy", layer, group_outermost=True, same_parameters=False, inference_context=cached_filters)
    limits = limit(case, Rates.measure(torch.device("cpu")))
    first, second = construction_ms(case)
    lines = []
    for line in measure_variants([ready, ours], case.input(torch.device("cpu")), rounds=rounds):
        row: dict[str, Any] = {"row": str(case), **asdict(case), **line, **limits}
        row |= {"first_construction_ms": first, "construction_ms": second} if line["variant"] == "sepgroupy" else {}
        for what in ("inference", "step"):
            bound = max(limits[f"{what}_products_ms"], limits[f"{what}_moves_ms"])
            row[f"{what}_over_limit"] = round(line[f"{what}_ms"] / bound, 2)
        lines.append(row | describe(torch.device("cpu")))
    return lines


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Return the table in Markdown, with a star where a target is met."""
    lines = [
        "| layer, batch 2 | PyTorch, precomputed filters: inference, step, ms | sepgroupy: ms | times as fast | target "
        "| × limit | saved, MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    ready: dict[str, Any] = {}
    for row in rows:
        if row["variant"] != "sepgroupy":
            ready = row
            continue
        targets = TARGETS[row["kind"], row["group"]]
        speedups = [
            f"{row[f'{what}_speedup']:.1f}" + ("*" if row[f"{what}_speedup"] >= target else "")
            for what, target in zip(("inference", "step"), targets, strict=True)
        ]
        name = f"{row['group']} {row['kind']}, {row['channels']} channels, {row['size']}³"
        lines.append(
            f"| {name} | {_times(ready)} | {_times(row)} | {', '.join(speedups)} | {targets[0]}, {targets[1]} "
            f"| {row['inference_over_limit']:.1f}, {row['step_over_limit']:.1f} "
            f"| {row['saved_mib']:.1f} (PyTorch {ready['saved_mib']:.1f}) |"
        )
    return "\n".join(lines)


def _times(row: dict[str, Any]) -> str:
    return ", ".join(f"{row[f'{what}_ms']:.{0 if row[f'{what}_ms'] >= 100 else 1}f}" for what in ("inference", "step"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all layers and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.volumes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common(parser, rounds=5)
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for case in cases(options.quick):
        rows += measure(case, options.rounds)
        print(f"{case}: inference ×{rows[-1]['inference_speedup']}, step ×{rows[-1]['step_speedup']}", flush=True)
    write(folder(options) / "volumes.csv", rows)
    print(table(rows))
    if folder(options) == RESULTS:
        rewrite_page("volumes.md", {"volumes": table(rows)})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
