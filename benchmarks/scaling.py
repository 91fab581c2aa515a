"""How the time of a gc layer grows with channels, pixels and batch, and where one backend overtakes another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from sepgroupy.nn import GroupConv2d, LiftingConv2d, cached_filters

from .baseline import BaselineConv
from .cases import LayerCase
from .measure import Job, Variant, measure_variants

MIDDLE = LayerCase("p4m", "gc", 3, 1, channels=32, size=16, batch=16)

SWEEPS = {
    "channels": [replace(MIDDLE, channels=n) for n in (8, 16, 24, 32, 48, 64, 96, 128)],
    "size": [replace(MIDDLE, size=n) for n in (2, 4, 6, 8, 12, 16, 24, 32)],
    "batch": [replace(MIDDLE, batch=n) for n in (1, 4, 16, 64, 256)],
}
"""The layers of each sweep: one property takes several values, the others stay those of the middle."""

BACKENDS = {"sepgroupy torch": "torch", "sepgroupy": "auto", "two_step": "two_step", "fourier": "fourier"}
"""``backend=`` of each variant: both rules, and the two backends between which "torch" chooses."""


def variants(case: LayerCase, device: torch.device) -> list[Variant]:
    """Return the baseline and a variant for each of ``BACKENDS``."""
    torch.manual_seed(0)
    layer = case.layer().to(device)
    return [
        Variant("baseline", BaselineConv(layer)),
        *(
            Variant(name, with_backend(layer, case, backend), group_outermost=True, inference_context=cached_filters)
            for name, backend in BACKENDS.items()
        ),
    ]


def with_backend(layer: LiftingConv2d | GroupConv2d, case: LayerCase, backend: str) -> LiftingConv2d | GroupConv2d:
    """Return a layer with the same parameters and another backend."""
    other = case.layer(backend).to(next(layer.parameters()).device)
    other.load_state_dict(layer.state_dict())
    return other


def jobs(device: torch.device, rounds: int, quick: bool) -> Iterator[Job]:
    """Yield the measurement of each step of each sweep."""
    for sweep, cases in SWEEPS.items():
        for case in cases[:1] if quick else cases:
            yield f"{sweep}: {case}, {torch.get_num_threads()} threads", partial(measure, sweep, case, device, rounds)


def measure(sweep: str, case: LayerCase, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Return a line for each variant of the layer."""
    lines = measure_variants(variants(case, device), case.input(device), rounds=rounds)
    return [{"row": f"{sweep}: {case}", "sweep": sweep, **asdict(case), **line} for line in lines]
