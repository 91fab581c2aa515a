"""Layers for volumes on the symmetries of a cube, dense and gc, compared with escnn's of the same group and width.

python -m benchmarks.escnn

Needs escnn (``pip install escnn==1.0.11``, which needs a Fortran compiler for one of its dependencies). The layers map
four regular fields to four by 3×3×3 kernels. They compute different functions: escnn's filters are combinations of
fewer basis filters. So times are compared, and not outputs. The construction of escnn's layer and of the dense one is
that of the first layer of the group in this process. Inference expands no filters: escnn's layer is in evaluation mode,
ours within ``cached_filters``. Writes ``benchmarks/results/escnn.csv`` and the table of docs/volumes.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from sepgroupy import GroupConv3d, as_group
from sepgroupy.nn import cached_filters

from .arguments import RESULTS, add_common, folder
from .hardware import describe
from .measure import Variant, time_interleaved
from .results import write
from .tables import rewrite_page

SPACES = {"O": "octaOnR3", "Oh": "fullOctaOnR3"}
"""The groups, and escnn's names of them."""


class EscnnLayer(nn.Module):
    """escnn's convolution between regular fields, of group feature maps (B, C, |H|, Z, Y, X)."""

    def __init__(self, channels: int, group: str) -> None:
        super().__init__()
        from escnn import gspaces
        from escnn import nn as escnn_nn

        space = getattr(gspaces, SPACES[group])()
        self.fields = escnn_nn.FieldType(space, channels * [space.regular_repr])
        self.conv = escnn_nn.R3Conv(self.fields, self.fields, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        from escnn.nn import GeometricTensor

        y = self.conv(GeometricTensor(x.flatten(1, 2), self.fields)).tensor
        return y.unflatten(1, x.shape[1:3])


def measure(group: str, channels: int, size: int, rounds: int) -> list[dict[str, Any]]:
    """Return a line for escnn and one for each kind of layer of the library."""
    layer, seconds = constructed(lambda: EscnnLayer(channels, group))
    variants, construction = {f"escnn {version('escnn')}": Variant("escnn", layer)}, [seconds]
    for kind in ("dense", "gc"):
        layer, seconds = constructed(partial(GroupConv3d, channels, channels, 3, padding=1, group=group, kind=kind))
        variants[f"sepgroupy {kind}"] = Variant(kind, layer, group_outermost=True, inference_context=cached_filters)
        construction.append(seconds)
    x = torch.randn(2, channels, as_group(group).order, size, size, size)
    lines = time_interleaved(variants, x, rounds=rounds, inference=True)
    for line, variant, seconds in zip(lines, variants.values(), construction, strict=True):
        line["construction_s"] = round(seconds, 3)
        line["parameters"] = sum(p.numel() for p in variant.module.parameters())
    case = {"row": f"{group} {channels} channels {size}³", "group": group, "channels": channels, "size": size}
    return [{**case, **line, **describe(torch.device("cpu"))} for line in lines]


def constructed(build: Callable[[], Any]) -> tuple[Any, float]:
    """Build a layer and return it with the seconds that this took."""
    begin = time.perf_counter()
    layer = build()
    return layer, time.perf_counter() - begin


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Return the table in Markdown."""
    lines = [
        "| group | elements | library | construction, s | inference, ms | step, ms | times as fast: inference, step |",
        "| --- | --: | --- | --: | --: | --: | --: |",
    ]
    for row in rows:
        times = f"{row['construction_s']:.2f} | {row['inference_ms']:.0f} | {row['step_ms']:.0f}"
        speedups = f"{row['inference_speedup']:.1f}, {row['step_speedup']:.1f}"
        order = as_group(row["group"]).order
        lines.append(f"| {row['group']} | {order} | {row['variant']} | {times} | {speedups} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both groups and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.escnn", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common(parser, rounds=5)
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("escnn") is None:
        parser.error("escnn is not installed: pip install escnn==1.0.11")
    channels, size = (1, 5) if options.quick else (4, 16)
    rows: list[dict[str, Any]] = []
    for group in list(SPACES)[: 1 if options.quick else None]:
        rows += measure(group, channels, size, options.rounds)
        print(f"{rows[-1]['row']}: inference ×{rows[-1]['inference_speedup']}, step ×{rows[-1]['step_speedup']}")
        write(folder(options) / "escnn.csv", rows)
    print(table(rows))
    if folder(options) == RESULTS:
        rewrite_page("volumes.md", {"escnn": table(rows)})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
