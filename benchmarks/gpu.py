"""The eleven networks on a GPU, in one table: throughput and memory by precision, memory format and compilation.

Rows come in the order of their importance. Those that do not fit into :data:`SECONDS` are named, not measured: a
compiled network takes up to a minute before its first step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import nn

from sepgroupy.analysis import peak_memory
from sepgroupy.models import build_model, published_model_names
from sepgroupy.nn import cached_filters
from sepgroupy.paper import PAPER_RESULTS

from .baseline import baseline
from .cases import NetworkCase
from .hardware import describe
from .measure import (
    PRECISIONS,
    DisagreementError,
    Run,
    Variant,
    check,
    compute_reference,
    repeats_for,
    seconds,
    tf32,
    warm_seconds,
)
from .models import is_on_group

SECONDS = 540.0
"""Time for all rows: with the start of the program and the last row, less than ten minutes."""

MAIN = ("gc-p4m-resnet44", "p4m-resnet44", "g-p4m-resnet44", "resnet44", "gc-p4cnn", "p4cnn", "g-p4cnn")
"""The networks that are compiled first."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    model: str
    variant: str
    batch: int
    precision: str
    memory_format: str
    mode: str

    def __str__(self) -> str:
        return f"{self.model} {self.variant} batch {self.batch}, {self.precision}, {self.memory_format}, {self.mode}"


def rows(device: torch.device, quick: bool) -> list[Row]:
    """List the lines: every network eagerly, then compiled at batch 128, bfloat16 first."""
    names = ("z2cnn", "gc-p4cnn") if quick else published_model_names()
    batches = (4,) if quick else (128, 512)
    precisions = PRECISIONS[device.type]
    found = [
        Row(name, variant, batch, precision, memory_format, "eager")
        for name, batch in product(names, batches)
        for variant in (("baseline", "sepgroupy") if is_on_group(name) else ("sepgroupy",))
        for precision, memory_format in product(precisions, ("contiguous", "channels_last"))
    ]
    first = [name for name in MAIN if name in names]
    order = [*first, *(name for name in names if name not in first)]
    for precision, memory_format in product(reversed(precisions), ("contiguous", "channels_last")):
        found += [Row(name, "sepgroupy", batches[0], precision, memory_format, "compiled") for name in order]
    return found


def measure(device: torch.device, rounds: int, quick: bool, refused: list[str]) -> list[dict[str, Any]]:
    """Return a line for each row that fits into the time; print the others, and add disagreements to ``refused``."""
    begin, longest = time.perf_counter(), 0.0
    lines: list[dict[str, Any]] = []
    left_out: list[Row] = []
    networks = _Networks(device, refused)
    for row in rows(device, quick):
        start = time.perf_counter()
        if start - begin + (longest if row.mode == "compiled" else 0.0) > SECONDS:
            left_out.append(row)
            continue
        if (module := networks.get(row.model, row.variant)) is None:
            continue
        try:
            line = _line(row, module, device, rounds)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            line = {"note": "out of memory"}
        lines.append({**asdict(row), **line, **networks.memory_of_two(row.model, row.variant), **describe(device)})
        longest = max(longest, time.perf_counter() - start)
        print(f"gpu  {row}  {line.get('step_images_per_s', line.get('note'))} images/s in a step", flush=True)
    if left_out:
        print(f"not measured, beyond {SECONDS:.0f} s: {'; '.join(map(str, left_out))}")
    return lines


class _Networks:
    """The networks of the table, each compared with the baseline before it is measured."""

    def __init__(self, device: torch.device, refused: list[str]) -> None:
        self.device, self.refused = device, refused
        self.modules: dict[str, dict[str, nn.Module]] = {}
        self.memory: dict[tuple[str, str], dict[str, Any]] = {}

    def get(self, model: str, variant: str) -> nn.Module | None:
        """Return a network, or None if its results differ from the baseline's."""
        if model not in self.modules:
            self.modules[model] = dict(self._build(model))
        return self.modules[model].get(variant)

    def memory_of_two(self, model: str, variant: str) -> dict[str, Any]:
        """Return the peak memory of two images in float32, as the paper measures it, and the paper's figure."""
        if (model, variant) not in self.memory:
            x, _ = NetworkCase(model, 2).images(self.device)
            with tf32(self.device, False):
                peak = peak_memory(self.modules[model][variant].train(), x)
            paper = PAPER_RESULTS[model].memory
            self.memory[model, variant] = {
                "peak_mib_2_images": round(peak / 2**20, 2),
                "paper_mib_2_images": round(paper / 2**20, 2),
            }
        return self.memory[model, variant]

    def _build(self, model: str) -> Iterator[tuple[str, nn.Module]]:
        torch.manual_seed(0)
        if not is_on_group(model):
            yield "sepgroupy", build_model(model).to(self.device)
            return
        module = build_model(model, backend="torch").to(self.device)
        published = baseline(module)
        yield "baseline", published
        x, labels = NetworkCase(model, 2).images(self.device)
        try:
            with tf32(self.device, False):
                check(Variant("sepgroupy", module), compute_reference(Variant("", published), x, labels), x, labels)
        except DisagreementError as error:
            self.refused.append(f"{model}: {error}")
        else:
            yield "sepgroupy", module


def _line(row: Row, module: nn.Module, device: torch.device, rounds: int) -> dict[str, Any]:
    x, labels = NetworkCase(row.model, row.batch).images(device)
    layout = torch.channels_last if row.memory_format == "channels_last" else torch.contiguous_format
    _arrange(module, layout)
    if row.mode == "compiled":
        torch._dynamo.reset()
        module = torch.compile(module, dynamic=False)  # type: ignore[assignment]
    variant = Variant(row.variant, module, channels_last=row.memory_format == "channels_last")
    with tf32(device, row.precision == "tf32"):
        run = Run(variant, x, labels, row.precision == "bfloat16")
        run.module.train()
        first = time.perf_counter()
        run.step()
        _wait(device)
        first = time.perf_counter() - first
        line: dict[str, Any] = {
            "step_images_per_s": _images_per_second(run, True, rounds),
            "inference_images_per_s": None,
            "peak_mib": round(_peak_bytes(run) / 2**20, 1) if device.type == "cuda" else None,
            "first_step_s": round(first, 2),
            "note": "",
        }
        if row.mode == "eager":  # compiled, inference would be another program to compile
            run.module.eval()
            with cached_filters(run.module) if row.variant == "sepgroupy" else nullcontext():
                line["inference_images_per_s"] = _images_per_second(run, False, rounds)
    return line


def _arrange(module: nn.Module, layout: torch.memory_format) -> None:
    """Give the filters of plain convolutions a memory format; those of group convolutions have more axes."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)


def _images_per_second(run: Run, training: bool, rounds: int) -> float:
    call, device = (run.step if training else run.infer), run.x.device
    repeats = repeats_for(warm_seconds(call, device))
    return round(len(run.x) / median(seconds(call, device, repeats) for _ in range(rounds)), 1)


def _peak_bytes(run: Run) -> int:
    """Return the peak bytes of a step on a GPU above those that were allocated before."""
    run.module.zero_grad(set_to_none=True)
    before = torch.cuda.memory_allocated(run.x.device)
    torch.cuda.reset_peak_memory_stats(run.x.device)
    run.step()
    return torch.cuda.max_memory_allocated(run.x.device) - before


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
