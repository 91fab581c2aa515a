"""Direct convolutions by the kernels and by PyTorch: layers with blocks of channels, strided lifting layers.

OMP_NUM_THREADS=1 python -m benchmarks.blocks    # results/blocks.csv

The thresholds DIRECT_MAX_PLANES and DIRECT_MAX_ENTRIES of sepgroupy/backends/dispatch.py rest on these rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from sepgroupy import nn

from .arguments import positive
from .hardware import describe
from .measure import Variant, time_interleaved
from .results import write

RESULTS = Path(__file__).parent / "results"
# Group, dimension, blocks, input channels of each, pixels, kernel, stride; batch 4, of volumes 1.
BLOCKS = (
    ("p4", 2, 96, 1, 33, 3, 1), ("p4", 2, 96, 1, 33, 3, 2), ("p4", 2, 96, 1, 24, 7, 1), ("p4", 2, 384, 1, 7, 7, 1),
    ("p4m", 2, 96, 1, 33, 3, 1), ("p4m", 2, 96, 1, 24, 7, 1), ("p4", 2, 16, 2, 17, 3, 1), ("p4", 2, 16, 8, 17, 3, 1),
    ("p4m", 2, 16, 4, 17, 3, 1), ("O", 3, 32, 1, 12, 3, 1),
)  # fmt: skip
# Group, input and output channels, pixels, kernel, stride; batch 4.
LIFTING = (
    ("p4", 3, 32, 97, 3, 2), ("p4", 3, 16, 129, 3, 2), ("p4", 1, 16, 65, 5, 2), ("p4", 3, 32, 97, 7, 2),
    ("p4m", 3, 24, 65, 7, 2),
)  # fmt: skip


def cases() -> list[tuple[str, Any, torch.Tensor]]:
    """Return the name of each row, its layer as a function of the backend, and its input."""
    found: list[tuple[str, Any, torch.Tensor]] = []
    for kind in ("dense", "gc"):
        for group, dimension, blocks, each, size, kernel, stride in BLOCKS:
            name = f"{group} {kind}, {blocks} blocks of {each}, {size} pixels, kernel {kernel}, stride {stride}"
            options = {"padding": kernel // 2, "stride": stride, "groups": blocks, "group": group, "kind": kind}
            found.append((name, *_case(f"GroupConv{dimension}d", blocks * each, blocks * each, kernel, size, options)))
    for group, inputs, outputs, size, kernel, stride in LIFTING:
        name = f"{group} lifting, {inputs}-{outputs} channels, {size} pixels, kernel {kernel}, stride {stride}"
        options = {"padding": kernel // 2, "stride": stride, "group": group}
        found.append((name, *_case("LiftingConv2d", inputs, outputs, kernel, size, options)))
    return found


def _case(layer: str, inputs: int, outputs: int, kernel: int, size: int, options: dict[str, Any]) -> tuple[Any, Any]:
    def build(backend: str) -> Any:
        return getattr(nn, layer)(inputs, outputs, kernel, bias=False, backend=backend, **options)

    built = build("torch")
    axes = () if layer.startswith("Lifting") else (built.group.order,)
    batch = 1 if built.spec.dimension == 3 else 4
    return build, torch.randn(batch, inputs, *axes, *(size,) * built.spec.dimension)


def main() -> None:
    """Measure every row, print the quotients, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=5, help="rounds, whose median counts (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "blocks.csv")
    options, lines = parser.parse_args(), []
    machine = {"threads": torch.get_num_threads(), **describe(torch.device("cpu"))}
    for row, build, x in cases():
        named = {name: Variant(name, build(name), group_outermost=True) for name in ("torch", "native")}
        found = time_interleaved(named, x, rounds=options.rounds, inference=True)
        print(f"{row}: inference x{found[1]['inference_speedup']}, step x{found[1]['step_speedup']}", flush=True)
        lines += [{"row": row, **line, **machine} for line in found]
    write(options.output, lines)


if __name__ == "__main__":
    main()
