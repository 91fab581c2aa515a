"""A layer and a fused network, called as they are, by ``torch.compile``, and under autocast to bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sepgroupy import fuse
from sepgroupy.models import build_model

from .cases import LayerCase, NetworkCase
from .measure import Job, Variant, time_interleaved

LAYERS = (
    LayerCase("p4m", "lifting", 3, 1, 28, 32, 16, in_channels=3),
    LayerCase("p4m", "gc", 3, 1, 28, 32, 16),
    LayerCase("p4m", "dense", 3, 1, 11, 32, 16),
)
NETWORKS = (NetworkCase("gc-p4cnn", 64), NetworkCase("z2cnn", 64))
NORM = (256, 30, 26, 26)
"""Feature maps of a plain batch norm and ReLU, as large as those of gc-p4cnn for 64 images. This row and the plain
network z2cnn show the costs of PyTorch's own compiler and autocast."""


class Autocast(nn.Module):
    """A module under autocast to bfloat16; its input is what a layer before it would have written, in bfloat16."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.module, self.x = module, x.detach().bfloat16().requires_grad_(x.ndim >= 5)  # as in measure.Run

    def forward(self, x: Tensor) -> Tensor:
        """Call the module."""
        self.x.grad = None
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.module(self.x)  # type: ignore[no-any-return]


def jobs(device: torch.device, rounds: int, quick: bool) -> Iterator[Job]:
    """Yield the measurement of each layer and network; the quick list is empty, as compilation takes long."""
    for layer in () if quick else LAYERS:
        yield f"{layer}, modes", partial(measure, str(layer), layer.layer, device, rounds, layer.input(device))
    if not quick:
        x = torch.randn(NORM, device=device, requires_grad=True)
        yield "batch norm, ReLU, modes", partial(measure, f"batch norm and ReLU {NORM}", _norm_relu, device, rounds, x)
    for network in () if quick else NETWORKS:
        yield (
            f"{network}, modes",
            partial(measure, str(network), partial(_fused, network), device, rounds, *network.images(device)),
        )


def _fused(network: NetworkCase) -> nn.Module:
    return fuse(build_model(network.model))


def _norm_relu() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(NORM[1]), nn.ReLU())


def measure(
    row: str,
    build: Callable[[], nn.Module],
    device: torch.device,
    rounds: int,
    x: Tensor,
    labels: Tensor | None = None,
) -> list[dict[str, Any]]:
    """Return a line for each way to call the module."""
    modules: dict[str, Any] = {
        "eager": build(),
        "compiled": torch.compile(build()),
        "bfloat16": Autocast(build(), x),
    }
    named = {name: Variant(name, module.to(device), group_outermost=True) for name, module in modules.items()}
    return [{"row": row, "model": "compiled", **line} for line in time_interleaved(named, x, labels, rounds, True)]
