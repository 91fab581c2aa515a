"""Compare several ways to compute the same: first that it is the same, then memory, then time, taking turns."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
"""Largest relative difference from the baseline in float64, by the variant's dtype, that rounding explains."""

PRECISIONS = {"cpu": ("float32",), "cuda": ("float32", "tf32", "bfloat16")}
"""What is timed on a device: plain float32, float32 products on tensor cores, autocast to bfloat16."""

_SAMPLE = 0.02  # seconds that one sample takes at least, by repetition


Job = tuple[str, Callable[[], list[dict[str, Any]]]]
"""What a row of the benchmark is called, and what measures it and returns a line for each variant."""


class DisagreementError(Exception):
    """A variant computes something else than the baseline, so that its time means nothing."""


@dataclass(frozen=True)
class Variant:
    """One way to compute a row of the benchmark; the first of a row is what the others are compared with."""

    name: str
    module: nn.Module
    group_outermost: bool = False
    """Whether the input lies in memory as (B, |H|, C, Y, X), which the library's layers return; else as its shape."""
    channels_last: bool = False
    same_parameters: bool = True
    """Whether its parameters are the baseline's, in that order, so that their gradients can be compared."""


class Run:
    """A variant with an input of its own, ready to be called again and again.

    Args:
        variant: what to run.
        x: its input, in any memory order.
        labels: classes, for a network whose loss is the cross-entropy; without them a layer, which receives a fixed
            random gradient and also gives that of its input.
        autocast: whether forward passes run under autocast to bfloat16.
    """

    def __init__(self, variant: Variant, x: Tensor, labels: Tensor | None = None, autocast: bool = False) -> None:
        self.variant, self.module, self.labels, self.autocast = variant, variant.module, labels, autocast
        self.x = _lay(x, variant).detach().clone(memory_format=torch.preserve_format).requires_grad_(labels is None)
        self._gradient: Tensor | None = None

    def forward(self) -> Tensor:
        """Run a forward pass in the mode and with the gradients that are set."""
        with torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.autocast):
            return self.module(self.x)

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """Run what the measure ``evaluation`` times; the module is in evaluation mode."""
        return self.forward()

    def step(self) -> None:
        """Run what the measure ``step`` times: gradients cleared, forward pass, loss, backward pass; no optimiser."""
        self.module.zero_grad()
        self.x.grad = None
        y = self.forward()
        if self.labels is not None:
            F.cross_entropy(y, self.labels).backward()
            return
        if self._gradient is None or self._gradient.dtype != y.dtype:
            generator = torch.Generator().manual_seed(1)
            self._gradient = torch.empty_like(y).copy_(torch.randn(y.shape, generator=generator, dtype=torch.float64))
        y.backward(self._gradient)

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the last step that can be compared."""
        parameters = list(self.module.parameters()) if self.variant.same_parameters else []
        tensors = [self.x, *parameters] if self.labels is None else parameters
        return [t.grad for t in tensors if t.grad is not None]

    def kept_bytes(self) -> int:
        """Return the bytes that a forward pass in training keeps for the backward pass.

        Every storage of which autograd saves a tensor counts once and whole, but for those of the module's parameters
        and buffers and of the input, which are there anyway.
        """
        here = [self.x, *self.module.parameters(), *self.module.buffers()]
        known = {t.untyped_storage().data_ptr() for t in here}
        seen: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:  # the graph holds it, so that no address is used twice
            storage = t.untyped_storage()
            if storage.data_ptr() not in known:
                seen[storage.data_ptr()] = storage.nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = self.forward()
        del y
        return sum(seen.values())


def compare(
    variants: Sequence[Variant],
    x: Tensor,
    labels: Tensor | None = None,
    *,
    rounds: int = 5,
    training: bool = True,
    precision: str = "float32",
) -> list[dict[str, Any]]:
    """Check and measure the variants of one row.

    Agreement is checked in float32, see :func:`check`, whatever the precision of the timing. Then every round times
    each variant once, forwards and backwards through the list by turns. Times are medians over the rounds;
    a speed-up is the median of the ratio to the first variant in the same round.

    Raises:
        DisagreementError: outputs or gradients of a variant are not those of the first.
    """
    with _tf32(x.device, False):
        truth = exact(variants[0], x, labels, training)
        errors = [(None, None), *(check(variant, truth, x, labels) for variant in variants[1:])]
    with _tf32(x.device, precision == "tf32"):
        runs = [Run(variant, x, labels, precision == "bfloat16") for variant in variants]
        for run in runs:
            run.module.train()
        kept = [round(run.kept_bytes() / 2**20, 2) if training else None for run in runs]
        evaluation = _take_turns(runs, False, rounds)
        step = _take_turns(runs, True, rounds) if training else None
    return [
        {
            "variant": variant.name,
            **_summary("evaluation", evaluation, index),
            **_summary("step", step, index),
            "kept_mib": kept[index],
            "output_error": _short(errors[index][0]),
            "gradient_error": _short(errors[index][1]),
            "rounds": rounds,
        }
        for index, variant in enumerate(variants)
    ]


def race(
    named: Mapping[str, Variant], x: Tensor, labels: Tensor | None = None, rounds: int = 5
) -> list[dict[str, Any]]:
    """Measure training steps as :func:`compare` does, of what need not compute the same."""
    runs = [Run(variant, x, labels) for variant in named.values()]
    for run in runs:
        run.module.train()
    step = _take_turns(runs, True, rounds)
    return [
        {"variant": name, **_summary("evaluation", None, n), **_summary("step", step, n), "rounds": rounds}
        for n, name in enumerate(named)
    ]


@dataclass(frozen=True)
class Truth:
    """What the first variant gives in float64: outputs in evaluation, and gradients unless only that is measured."""

    output: Tensor
    gradients: list[Tensor]


def exact(reference: Variant, x: Tensor, labels: Tensor | None = None, training: bool = True) -> Truth:
    """Compute a row in float64."""
    run = Run(_double(reference), x.double(), labels)
    run.module.eval()
    output = run.evaluate()
    return Truth(output, _gradients(_double(reference), x.double(), labels) if training else [])


def check(variant: Variant, truth: Truth, x: Tensor, labels: Tensor | None = None) -> tuple[float, float | None]:
    """Return how far outputs and gradients of a variant are from the baseline's in float64; refuse large differences.

    The baseline is taken in float64 because in float32 it is itself up to 1e-5 away, in the sums over many pixels that
    are the gradients of its depthwise filters. The variant runs in float32, but for the gradients of a network: there
    rounding moves some value across the kink of a ReLU or the tie of a maximum, in the baseline as often as
    elsewhere, and each such event changes gradients by up to 1e-3. So these are compared in float64 on two pictures.

    Raises:
        DisagreementError: a difference exceeds ``TOLERANCE``.
    """
    limits = {"outputs": TOLERANCE[x.dtype], "gradients": TOLERANCE[x.dtype if labels is None else torch.float64]}
    run = Run(variant, x, labels)
    run.module.eval()
    errors = [_difference([run.evaluate()], [truth.output])]
    if truth.gradients:
        found = _gradients(variant, x, None) if labels is None else _gradients(_double(variant), x.double(), labels)
        if found:
            errors.append(_difference(found, truth.gradients[: len(found)]))
    for (what, limit), error in zip(limits.items(), errors, strict=False):
        if not error <= limit:
            raise DisagreementError(
                f"variant {variant.name}: its {what} differ from the baseline's by {error:.1e} of their largest value, "
                f"more than {limit:.0e}"
            )
    return errors[0], errors[1] if len(errors) > 1 else None


def _gradients(variant: Variant, x: Tensor, labels: Tensor | None) -> list[Tensor]:
    """Return the gradients of a step, of a network on two pictures."""
    few = slice(None if labels is None else 2)
    run = Run(variant, x[few], None if labels is None else labels[few])
    run.module.train()
    run.step()
    return [gradient.clone() for gradient in run.gradients()]


def _double(variant: Variant) -> Variant:
    return replace(variant, module=copy.deepcopy(variant.module).double())


def _difference(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the largest difference relative to the largest value, over tensors each by itself.

    A tensor whose values are below 1e-4 of the largest of all is measured against that: the gradient of a bias before
    a batch norm is zero but for rounding.
    """
    if any(f.shape != w.shape for f, w in zip(found, wanted, strict=True)):
        return float("inf")
    scales = torch.stack([w.abs().max() for w in wanted])
    errors = torch.stack([(f - w).abs().max() for f, w in zip(found, wanted, strict=True)])
    return (errors / scales.clamp_min(1e-4 * scales.max())).max().item()  # NaN if there is one


def _lay(x: Tensor, variant: Variant) -> Tensor:
    """Lay x in memory as a variant reads it."""
    layout = torch.channels_last if variant.channels_last else torch.contiguous_format
    if x.ndim == 4:
        return x.contiguous(memory_format=layout)
    maps = x.transpose(1, 2) if variant.group_outermost else x
    maps = maps.flatten(1, 2).contiguous(memory_format=layout).unflatten(1, maps.shape[1:3])
    return maps.transpose(1, 2) if variant.group_outermost else maps


def _take_turns(runs: Sequence[Run], training: bool, rounds: int) -> list[list[float]]:
    """Return the seconds of each run in each round."""
    calls: list[Callable[[], Any]] = [run.step if training else run.evaluate for run in runs]
    repeats = []
    for run, call in zip(runs, calls, strict=True):
        run.module.train(training)
        once = seconds(call, run.x.device)
        if once < 0.1:  # the first call is no measure of a short one
            once = seconds(call, run.x.device)
        repeats.append(max(1, round(_SAMPLE / max(once, 1e-6))))
    times: list[list[float]] = [[] for _ in runs]
    order = list(range(len(runs)))
    for _ in range(rounds):
        for index in order:
            times[index].append(seconds(calls[index], runs[index].x.device, repeats[index]))
        order.reverse()
    return times


def seconds(call: Callable[[], Any], device: torch.device, repeats: int = 1) -> float:
    """Return the mean duration of a call, on a GPU between two events of its stream."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


def _short(error: float | None) -> str | None:
    return None if error is None else f"{error:.1e}"


def _summary(measure: str, times: list[list[float]] | None, index: int) -> dict[str, Any]:
    if times is None:
        return {f"{measure}_ms": None, f"{measure}_speedup": None}
    ratios = [first / this for first, this in zip(times[0], times[index], strict=True)]
    return {f"{measure}_ms": round(1e3 * median(times[index]), 4), f"{measure}_speedup": round(median(ratios), 3)}


@contextmanager
def _tf32(device: torch.device, allowed: bool) -> Iterator[None]:
    """Allow or forbid the products of float32 to be rounded to TF32; only a GPU knows it."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
