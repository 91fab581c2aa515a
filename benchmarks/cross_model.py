"""Time-interleaved training steps of networks that compute different things: the cost of a better network."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from .cases import NetworkCase
from .measure import Job, time_interleaved
from .models import variants

PAIRS = (
    ("p4cnn", "baseline", "gc-p4cnn", 256),
    ("p4m-resnet44", "baseline", "g-p4m-resnet44", 16),
    *(("resnet44", "sepgroupy", model, 16) for model in ("p4m-resnet44", "g-p4m-resnet44", "gc-p4m-resnet44")),
)
"""A network and its variant, the library's network that is compared with it, and the batch."""


def jobs(device: torch.device, rounds: int, quick: bool) -> Iterator[Job]:
    """Yield the measurement of each pair."""
    for against, variant, model, batch in PAIRS[:1] if quick else PAIRS:
        label = f"{model} against {against} ({variant}) batch {batch}, {torch.get_num_threads()} threads"
        yield label, partial(measure, against, variant, model, batch, device, rounds)


def measure(
    against: str, variant: str, model: str, batch: int, device: torch.device, rounds: int
) -> list[dict[str, Any]]:
    """Return a line for each of the two networks."""
    (reference,) = (v for v in variants(against, device) if v.name == variant)
    (library,) = (v for v in variants(model, device) if v.name == "sepgroupy")
    x, labels = NetworkCase(model, batch).images(device)
    named = {f"{against} {variant}": reference, model: library}
    row = {"row": f"{model} against {against} batch {batch}", "model": model, "against": against, "batch": batch}
    return [{**row, **line} for line in time_interleaved(named, x, labels, rounds)]
