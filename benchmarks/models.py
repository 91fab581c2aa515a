"""The eleven published networks, the library's against the straightforward way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from sepgroupy.models import build_model, model_names

from .baseline import BaselineConv, baseline
from .layers import ReadyConv
from .measure import PRECISIONS, Job, Variant, compare, seconds


@dataclass(frozen=True)
class Case:
    """A network and its pictures."""

    model: str
    batch: int
    training: bool = True

    def pictures(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Draw pictures, (B, 1, 28, 28) or (B, 3, 32, 32), and classes, (B)."""
        shape = (3, 32, 32) if "resnet" in self.model else (1, 28, 28)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, *shape, generator=generator)
        return x.to(device), torch.randint(10, (self.batch,), generator=generator).to(device)


def cases(device: torch.device, quick: bool) -> list[Case]:
    """List networks and batches; on one thread, and for large batches of the deep ones, only what time allows."""
    if quick:
        return [Case("z2cnn", 8), Case("gc-p4cnn", 8)]
    deep = [name for name in model_names() if "resnet" in name]
    flat = [name for name in model_names() if name not in deep]
    if device.type == "cuda":
        return [Case(name, batch) for name in model_names() for batch in (1, 16, 256)]
    if torch.get_num_threads() == 1:
        return [
            *(Case(name, 256) for name in ("z2cnn", "p4cnn", "gc-p4cnn")),
            *(Case(name, 16) for name in ("resnet44", "gc-p4m-resnet44")),
        ]
    return [
        *(Case(name, 256) for name in flat),
        # Batch norm cannot learn from one value a channel, which is what plain networks leave of one picture.
        *(Case(name, 1, training="p4" in name) for name in flat),
        *(Case(name, batch) for name in deep for batch in (1, 16)),
        *(Case(name, 64, training=False) for name in ("resnet44", "gc-p4m-resnet44")),
    ]


def variants(name: str, device: torch.device) -> list[Variant]:
    """Return the ways to compute a network, the baseline first; a plain network has one way."""
    torch.manual_seed(0)
    model = build_model(name).to(device)
    plain = getattr(model, "group", None) is None
    found = [] if plain else [Variant("baseline", baseline(model))]
    if name == "p4m-resnet44":
        found.append(Variant("ready bank", with_ready_banks(baseline(model)), same_parameters=False))
    if not plain:
        torch_alone = build_model(name, algorithm="torch").to(device)
        torch_alone.load_state_dict(model.state_dict())
        found.append(Variant("sepgroupy torch", torch_alone))
    found.append(Variant("sepgroupy", model))
    if device.type == "cuda":
        found += [replace(v, name=f"{v.name} channels_last", channels_last=True) for v in found]
    return found


def with_ready_banks(model: nn.Module) -> nn.Module:
    """Give the convolutions of a baseline network, lifting or dense, ready filter banks, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BaselineConv):
                setattr(parent, name, ReadyConv(child))
    return model


def jobs(device: torch.device, rounds: int, quick: bool) -> Iterator[Job]:
    """Yield what measures each network."""
    for case, precision in product(cases(device, quick), PRECISIONS[device.type]):
        label = f"{case.model}, batch {case.batch} on {torch.get_num_threads()} threads, {precision}"
        yield label, partial(measure, case, device, rounds, precision)


def measure(case: Case, device: torch.device, rounds: int, precision: str) -> list[dict[str, Any]]:
    """Return a row for each way to compute a network."""
    x, labels = case.pictures(device)
    ways = variants(case.model, device)
    rows = compare(ways, x, labels, rounds=rounds, training=case.training, precision=precision)
    construction = construction_ms(case.model, rounds)
    return [
        {
            "model": case.model,
            "batch": case.batch,
            "precision": precision,
            **row,
            "construction_ms": construction if row["variant"] == "sepgroupy" else None,
        }
        for row in rows
    ]


def construction_ms(name: str, rounds: int) -> float:
    """Return the median time of ``build_model(name)``."""
    cpu = torch.device("cpu")
    return round(1e3 * median(seconds(lambda: build_model(name), cpu) for _ in range(rounds)), 2)
