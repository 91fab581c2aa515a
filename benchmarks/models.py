"""The eleven published networks, the library's compared with the baseline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import nn

from sepgroupy import fuse
from sepgroupy.models import build_model, published_model_names
from sepgroupy.nn import cached_filters

from .baseline import BaselineConv, baseline
from .cases import NetworkCase, is_deep, training_batch
from .layers import PrecomputedConv
from .measure import PRECISIONS, Job, Variant, measure_variants, seconds


def cases(device: torch.device, quick: bool) -> list[NetworkCase]:
    """List networks and batches; on one thread, and for large batches of the deep ones, only as many as time allows."""
    names = published_model_names()
    if quick:
        return [NetworkCase("z2cnn", 8), NetworkCase("gc-p4cnn", 8)]
    if device.type == "cuda":
        return [NetworkCase(name, batch) for name in names for batch in (1, 16, 256)]
    if torch.get_num_threads() == 1:
        few = ("z2cnn", "p4cnn", "gc-p4cnn", "resnet44", "gc-p4m-resnet44")
        return [NetworkCase(name, training_batch(name)) for name in few]
    return [
        *(NetworkCase(name, training_batch(name)) for name in names),
        # Batch norm cannot be trained with one value per channel, as plain networks have of one image.
        *(NetworkCase(name, 1, training=is_deep(name) or is_on_group(name)) for name in names),
        *(NetworkCase(name, 64, training=False) for name in ("resnet44", "gc-p4m-resnet44")),
    ]


def is_on_group(model: str) -> bool:
    """Whether a network has group convolutions."""
    return "p4" in model


def variants(name: str, device: torch.device) -> list[Variant]:
    """Return the variants of a network, the baseline first; a plain network has one."""
    torch.manual_seed(0)
    model = build_model(name).to(device)
    found = []
    if is_on_group(name):
        found.append(Variant("baseline", baseline(model)))
        if name == "p4m-resnet44":
            found.append(Variant("precomputed", with_precomputed_filters(baseline(model)), same_parameters=False))
        pytorch = build_model(name, backend="torch").to(device)  # not fused: its pooling would take the kernels
        pytorch.load_state_dict(model.state_dict())
        found.append(Variant("sepgroupy torch", pytorch, inference_context=cached_filters))
    found.append(Variant("sepgroupy", fuse(model), inference_context=cached_filters))
    if device.type == "cuda":
        found += [replace(v, name=f"{v.name} channels_last", channels_last=True) for v in found]
    return found


def with_precomputed_filters(model: nn.Module) -> nn.Module:
    """Give the convolutions of a baseline network, lifting or dense, precomputed filters, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BaselineConv):
                setattr(parent, name, PrecomputedConv(child))
    return model


def jobs(device: torch.device, rounds: int, quick: bool) -> Iterator[Job]:
    """Yield the measurement of each network."""
    for case, precision in product(cases(device, quick), PRECISIONS[device.type]):
        label = f"{case}, {torch.get_num_threads()} threads, {precision}"
        yield label, partial(measure, case, device, rounds, precision)


def measure(case: NetworkCase, device: torch.device, rounds: int, precision: str) -> list[dict[str, Any]]:
    """Return a line for each variant of a network."""
    x, labels = case.images(device)
    found = variants(case.model, device)
    lines = measure_variants(found, x, labels, rounds=rounds, training=case.training, precision=precision)
    construction = construction_ms(case.model, rounds)
    return [
        {
            "row": str(case),
            "model": case.model,
            "batch": case.batch,
            "precision": precision,
            **line,
            "construction_ms": construction if line["variant"] == "sepgroupy" else None,
        }
        for line in lines
    ]


def construction_ms(name: str, rounds: int) -> float:
    """Return the median time of ``build_model(name)``."""
    cpu = torch.device("cpu")
    return round(1e3 * median(seconds(lambda: build_model(name), cpu) for _ in range(rounds)), 2)
