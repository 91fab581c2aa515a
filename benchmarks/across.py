"""Training steps of networks that compute different things, taking turns: what a better network costs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from .measure import Job, race
from .models import Case, variants

PAIRS = (
    ("p4cnn", "baseline", "gc-p4cnn", 256),
    ("p4m-resnet44", "baseline", "g-p4m-resnet44", 16),
    ("resnet44", "sepgroupy", "gc-p4m-resnet44", 16),
)
"""A network and the way to compute it, and the network of ours that is held against it, with the batch."""


def jobs(device: torch.device, rounds: int, quick: bool) -> Iterator[Job]:
    """Yield what measures each pair."""
    for against, way, model, batch in PAIRS[:1] if quick else PAIRS:
        label = f"{model} against {against} ({way}), batch {batch} on {torch.get_num_threads()} threads"
        yield label, partial(measure, against, way, model, batch, device, rounds)


def measure(against: str, way: str, model: str, batch: int, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each of the two."""
    (reference,) = (v for v in variants(against, device) if v.name == way)
    (ours,) = (v for v in variants(model, device) if v.name == "sepgroupy")
    x, labels = Case(model, batch).pictures(device)
    named = {f"{against} {way}": reference, model: ours}
    return [{"model": model, "against": against, "batch": batch, **row} for row in race(named, x, labels, rounds)]
