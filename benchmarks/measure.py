"""Compare variants of one computation: first that they agree, then memory, then time, interleaved.

Nothing here depends on the version of the library.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
"""Largest relative difference from the baseline in float64, by the variant's dtype, that rounding explains."""

PRECISIONS = {"cpu": ("float32",), "cuda": ("float32", "tf32", "bfloat16")}
"""Precisions timed on a device: plain float32, float32 products on tensor cores, autocast to bfloat16."""

SAMPLE = 0.02
"""Seconds that one sample takes at least, by repetition."""

Job = tuple[str, Callable[[], list[dict[str, Any]]]]
"""A label, and a function that measures the row and returns a line for each variant."""


class DisagreementError(Exception):
    """A variant does not compute the same as the baseline, so that its time means nothing."""


@dataclass(frozen=True)
class Variant:
    """One implementation of a row; the others of the row are compared with the first."""

    name: str
    module: nn.Module
    group_outermost: bool = False
    """Whether the input lies in memory as (B, |H|, C, Y, X), which the library's layers return; else as its shape."""
    channels_last: bool = False
    same_parameters: bool = True
    """Whether its parameters are the baseline's, in that order, so that their gradients can be compared."""
    inference_context: Callable[[nn.Module], AbstractContextManager[Any]] = nullcontext
    """The context of the module's inference rows."""


class Run:
    """A variant with its input, ready to be called repeatedly.

    Args:
        variant: the implementation.
        x: its input, in any memory order.
        labels: classes, for a network whose loss is the cross-entropy; without them a layer, which receives a fixed
            random gradient and also computes the gradient of its input, unless that is of images.
        autocast: whether forward passes run under autocast to bfloat16.
    """

    def __init__(self, variant: Variant, x: Tensor, labels: Tensor | None = None, autocast: bool = False) -> None:
        self.variant, self.module, self.labels, self.autocast = variant, variant.module, labels, autocast
        self.x = _in_layout_of(variant, x).detach().clone(memory_format=torch.preserve_format)
        self.x.requires_grad_(labels is None and x.ndim >= 5)
        self._gradient: Tensor | None = None

    def forward(self) -> Tensor:
        """Run a forward pass in the mode and with the gradients that are set."""
        with torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.autocast):
            return self.module(self.x)

    @torch.no_grad()
    def infer(self) -> Tensor:
        """Run a forward pass without gradients."""
        return self.forward()

    def step(self) -> None:
        """Clear gradients, then run forward pass, loss and backward pass; no optimiser."""
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
        """Return the gradients of the last step that are comparable between variants."""
        parameters = list(self.module.parameters()) if self.variant.same_parameters else []
        tensors = [self.x, *parameters] if self.labels is None else parameters
        return [t.grad for t in tensors if t.grad is not None]

    def saved_activation_bytes(self) -> int:
        """Return the bytes that a forward pass in training saves for the backward pass.

        Every storage of which autograd saves a tensor counts once and whole, except those of the module's parameters
        and buffers and of the input, which exist anyway.
        """
        existing = [self.x, *self.module.parameters(), *self.module.buffers()]
        known = {t.untyped_storage().data_ptr() for t in existing}
        seen: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:  # the graph holds it, so that no address is reused
            storage = t.untyped_storage()
            if storage.data_ptr() not in known:
                seen[storage.data_ptr()] = storage.nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = self.forward()
        del y
        return sum(seen.values())


def measure_variants(
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
    each variant once, in opposite order in every other round. Times are medians over the rounds; a speed-up is the
    median of the ratio to the first variant in the same round.

    Raises:
        DisagreementError: outputs or gradients of a variant differ from those of the first.
    """
    with tf32(x.device, False):
        reference = compute_reference(variants[0], x, labels, training)
        errors = [(None, None), *(check(variant, reference, x, labels) for variant in variants[1:])]
    with tf32(x.device, precision == "tf32"):
        runs = [Run(variant, x, labels, precision == "bfloat16") for variant in variants]
        for run in runs:
            run.module.train()
        saved = [round(run.saved_activation_bytes() / 2**20, 2) if training else None for run in runs]
        inference = _seconds_by_round(runs, False, rounds)
        step = _seconds_by_round(runs, True, rounds) if training else None
    return [
        {
            "variant": variant.name,
            **_summary("inference", inference, index),
            **_summary("step", step, index),
            "saved_mib": saved[index],
            "output_error": _short(errors[index][0]),
            "gradient_error": _short(errors[index][1]),
            "rounds": rounds,
        }
        for index, variant in enumerate(variants)
    ]


def time_interleaved(
    named: Mapping[str, Variant], x: Tensor, labels: Tensor | None = None, rounds: int = 5, inference: bool = False
) -> list[dict[str, Any]]:
    """Time training steps as :func:`measure_variants` does, of variants that may compute different things.

    ``inference`` asks for the times of inference too.
    """
    runs = [Run(variant, x, labels) for variant in named.values()]
    infer = _seconds_by_round(runs, False, rounds) if inference else None
    step = _seconds_by_round(runs, True, rounds)
    return [
        {"variant": name, **_summary("inference", infer, n), **_summary("step", step, n), "rounds": rounds}
        for n, name in enumerate(named)
    ]


@dataclass(frozen=True)
class Reference:
    """Results of the first variant in float64: outputs in inference, and gradients if training is measured."""

    output: Tensor
    gradients: list[Tensor]


def compute_reference(variant: Variant, x: Tensor, labels: Tensor | None = None, training: bool = True) -> Reference:
    """Compute a row in float64."""
    run = Run(_double(variant), x.double(), labels)
    output = _output(run)
    return Reference(output, _gradients(_double(variant), x.double(), labels) if training else [])


def check(
    variant: Variant, reference: Reference, x: Tensor, labels: Tensor | None = None
) -> tuple[float, float | None]:
    """Return how far outputs and gradients of a variant are from the reference; refuse large differences.

    The reference is the baseline in float64. In float32 the baseline itself has an error of up to 1e-5, in the sums
    over many pixels that are the gradients of its depthwise filters. The variant runs in float32, except for the
    gradients of a network: there rounding moves some value across the kink of a ReLU or the tie of a maximum, in the
    baseline as often as in a variant, and each such event changes gradients by up to 1e-3. So the gradients of networks
    are compared in float64 on two images.

    Raises:
        DisagreementError: a difference exceeds ``TOLERANCE``.
    """
    limits = {"outputs": TOLERANCE[x.dtype], "gradients": TOLERANCE[x.dtype if labels is None else torch.float64]}
    errors = [_difference([_output(Run(variant, x, labels))], [reference.output])]
    if reference.gradients:
        found = _gradients(variant, x, None) if labels is None else _gradients(_double(variant), x.double(), labels)
        if found:
            errors.append(_difference(found, reference.gradients[: len(found)]))
    for (what, limit), error in zip(limits.items(), errors, strict=False):
        if not error <= limit:
            raise DisagreementError(
                f"variant {variant.name}: its {what} differ from the baseline's by {error:.1e} of their largest value, "
                f"more than {limit:.0e}"
            )
    return errors[0], errors[1] if len(errors) > 1 else None


def _output(run: Run) -> Tensor:
    run.module.eval()
    with run.variant.inference_context(run.module):
        return run.infer()


def _gradients(variant: Variant, x: Tensor, labels: Tensor | None) -> list[Tensor]:
    """Return the gradients of a step, of a network on two images."""
    few = slice(None if labels is None else 2)
    run = Run(variant, x[few], None if labels is None else labels[few])
    run.module.train()
    run.step()
    return [gradient.clone() for gradient in run.gradients()]


def _double(variant: Variant) -> Variant:
    return replace(variant, module=copy.deepcopy(variant.module).double())


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference relative to the largest value of the same tensor, over all tensors.

    A tensor whose values are below 1e-4 of the largest of all is compared with that: the gradient of a bias before a
    batch norm is zero except for rounding.
    """
    if any(f.shape != w.shape for f, w in zip(found, expected, strict=True)):
        return float("inf")
    scales = torch.stack([w.abs().max() for w in expected])
    errors = torch.stack([(f - w).abs().max() for f, w in zip(found, expected, strict=True)])
    return (errors / scales.clamp_min(1e-4 * scales.max())).max().item()  # NaN if there is one


def _in_layout_of(variant: Variant, x: Tensor) -> Tensor:
    """Return x in the memory layout that a variant reads."""
    layout = torch.channels_last if variant.channels_last else torch.contiguous_format
    if x.ndim == 4:
        return x.contiguous(memory_format=layout)
    y = x.transpose(1, 2) if variant.group_outermost else x
    y = y.flatten(1, 2).contiguous(memory_format=layout).unflatten(1, y.shape[1:3])
    return y.transpose(1, 2) if variant.group_outermost else y


def _seconds_by_round(runs: Sequence[Run], training: bool, rounds: int) -> list[list[float]]:
    """Return the seconds of each run in each round."""
    calls: list[Callable[[], Any]] = [run.step if training else run.infer for run in runs]
    times: list[list[float]] = [[] for _ in runs]
    with ExitStack() as contexts:
        for run in runs:
            run.module.train(training)
            if not training:
                contexts.enter_context(run.variant.inference_context(run.module))
        repeats = [repeats_for(warm_seconds(call, run.x.device)) for run, call in zip(runs, calls, strict=True)]
        order = list(range(len(runs)))
        for _ in range(rounds):
            for index in order:
                times[index].append(seconds(calls[index], runs[index].x.device, repeats[index]))
            order.reverse()
    return times


def warm_seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Return the duration of a call after a first one, which is no measure of a short call."""
    once = seconds(call, device)
    return seconds(call, device) if once < 0.1 else once


def repeats_for(once: float, sample: float = SAMPLE) -> int:
    """Return how many calls of a duration fill a sample."""
    return max(1, round(sample / max(once, 1e-6)))


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
def tf32(device: torch.device, allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in the products of float32, on a GPU."""
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
