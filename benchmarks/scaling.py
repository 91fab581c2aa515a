"""How the time of a gc layer grows with channels, pixels and batch, and where one algorithm overtakes the other."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from sepgroupy.nn import GroupConv2d

from .baseline import BaselineConv
from .layers import Case
from .measure import Job, Variant, compare

MIDDLE = Case("p4m", "gc", 3, 1, channels=32, size=16, batch=16)

SWEEPS = {
    "channels": [replace(MIDDLE, channels=n) for n in (8, 16, 24, 32, 48, 64, 96, 128)],
    "size": [replace(MIDDLE, size=n) for n in (2, 4, 6, 8, 12, 16, 24, 32)],
    "batch": [replace(MIDDLE, batch=n) for n in (1, 4, 16, 64, 256)],
}
"""The layers of each sweep: one property takes several values, the others stay those of the middle."""


def variants(case: Case, device: torch.device) -> list[Variant]:
    """Return the baseline, the library's choices, and both algorithms between which it chooses without kernels."""
    torch.manual_seed(0)
    layer = case.layer().to(device)
    return [
        Variant("baseline", BaselineConv(layer)),
        Variant("sepgroupy torch", forced(layer, "torch"), group_outermost=True),
        Variant("sepgroupy", layer, group_outermost=True),
        *(Variant(name, forced(layer, name), group_outermost=True) for name in ("dense", "fourier")),
    ]


def forced(layer: GroupConv2d, algorithm: str) -> GroupConv2d:
    """Copy a layer so that its rule always takes one algorithm, which is then tiled as the rule would."""
    layer = copy.deepcopy(layer)
    layer.plan = replace(layer.plan, algorithm=algorithm, automatic=True, native=False)
    return layer


def jobs(device: torch.device, rounds: int, quick: bool) -> Iterator[Job]:
    """Yield what measures each step of each sweep."""
    for sweep, cases in SWEEPS.items():
        for case in cases[:1] if quick else cases:
            yield f"{sweep}: {case} on {torch.get_num_threads()} threads", partial(measure, sweep, case, device, rounds)


def measure(sweep: str, case: Case, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each way to compute the layer."""
    rows = compare(variants(case, device), case.input(device), rounds=rounds)
    return [{"sweep": sweep, **asdict(case), **row} for row in rows]
