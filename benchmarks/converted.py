"""Converted networks of torchvision compared with the plain ones: the cost of equivariance for users' networks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from sepgroupy import convert, fuse
from sepgroupy.nn import cached_filters

from .measure import Job, Variant, time_interleaved


class Case(NamedTuple):
    """A network of torchvision, what it is converted to, and its input: pixels per side, and the batch."""

    network: str
    group: str
    kind: str
    match: str
    size: int
    batch: int


KINDS = ("dense", "gc")
CASES = (
    *(Case("resnet18", "p4m", kind, "params", *sizes) for sizes in ((65, 8), (225, 1)) for kind in KINDS),
    *(Case("mobilenet_v2", "p4", kind, "params", 129, 4) for kind in KINDS),
    *(Case("convnext_tiny", "p4", kind, "width", 96, 2) for kind in KINDS),
)


def jobs(device: torch.device, rounds: int, quick: bool) -> Iterator[Job]:
    """Yield the measurement of each case; the quick list is empty."""
    for case in () if quick else CASES:
        network, group, kind, match, size, batch = case
        label = f"{network}, {group} {kind}, same {match}, {size}x{size} batch {batch}"
        yield f"{label}, {torch.get_num_threads()} threads", partial(measure, case, device, rounds)


def measure(case: Case, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Return lines of the plain network and of the converted one, called as it is and fused."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(case.batch, 3, case.size, case.size, generator=generator).to(device)
    labels = torch.randint(1000, (case.batch,), generator=generator).to(device)
    model = f"{case.group}-{case.kind}-{case.network.replace('_', '-')}"
    name = f"{model} {case.size}x{case.size} batch {case.batch}"
    row = {"row": name, "model": model, "match": case.match, "size": case.size, "batch": case.batch}
    named = {
        case.network.replace("_", "-"): Variant("plain", _plain(case)),
        f"{model}, not fused": Variant("converted", build(case)),
    }
    named[model] = Variant("fused", fuse(build(case)), inference_context=cached_filters)
    for variant in named.values():
        variant.module.to(device)
    return [{**row, **line} for line in time_interleaved(named, x, labels, rounds, inference=True)]


def _plain(case: Case) -> nn.Module:
    import torchvision

    torch.manual_seed(0)
    return getattr(torchvision.models, case.network)()  # type: ignore[no-any-return]


def build(case: Case) -> nn.Module:
    """Convert the network of a case."""
    return convert(_plain(case), case.group, case.kind, in_size=case.size, match=case.match)
