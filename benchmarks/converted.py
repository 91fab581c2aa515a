"""A converted network of torchvision compared with the plain one: the cost of equivariance for users' networks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import nn

from sepgroupy import convert, fuse
from sepgroupy.nn import cached_filters

from .measure import Job, Variant, time_interleaved

CASES = ((65, 8), (225, 1))
"""Pixels per side, and the batch."""


def jobs(device: torch.device, rounds: int, quick: bool) -> Iterator[Job]:
    """Yield the measurement of each size and kind; the quick list is empty."""
    for (size, batch), kind in () if quick else product(CASES, ("dense", "gc")):
        label = f"ResNet-18, p4m {kind}, {size}x{size} batch {batch}, {torch.get_num_threads()} threads"
        yield label, partial(measure, kind, size, batch, device, rounds)


def measure(kind: str, size: int, batch: int, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Return lines of the plain network and of the converted one with as many parameters, called as it is and fused."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, size, size, generator=generator).to(device)
    labels = torch.randint(1000, (batch,), generator=generator).to(device)
    model = f"p4m-{kind}-resnet18"
    row = {"row": f"{model} {size}x{size} batch {batch}", "model": model, "size": size, "batch": batch}
    named = {
        "resnet18": Variant("plain", _plain()),
        f"{model}, not fused": Variant("converted", _converted(kind, size)),
    }
    named[model] = Variant("fused", fuse(_converted(kind, size)), inference_context=cached_filters)
    for variant in named.values():
        variant.module.to(device)
    return [{**row, **line} for line in time_interleaved(named, x, labels, rounds, inference=True)]


def _plain() -> nn.Module:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    return resnet18()  # type: ignore[no-any-return]


def _converted(kind: str, size: int) -> nn.Module:
    return convert(_plain(), "p4m", kind, in_size=size, match="params")
