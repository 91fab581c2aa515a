"""What a plain network does with its convolutions and linear layers, seen in one pass without numbers."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..errors import ArgumentError

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.PReLU)
"""Layers with one or two numbers for each channel, which serve rows as they are."""

_COMPUTE = {nn.Conv2d: ("forward", "_conv_forward"), nn.Linear: ("forward",)}


@dataclass(frozen=True)
class Use:
    """How the plain network uses a layer that becomes a convolution on the group."""

    layout: str
    """As :class:`FoldedConvolution` has it."""
    kernel_size: tuple[int, int] = (1, 1)
    """Of a linear layer, which is a convolution of that size."""
    lifts: bool = False
    """Whether it reads the picture."""


@dataclass(frozen=True)
class Anatomy:
    """All uses by name, in the order of the calls, the linear layers that end the network, and what it reads."""

    uses: Mapping[str, Use]
    head: tuple[str, ...]
    in_channels: int
    in_size: int

    @property
    def last(self) -> str:
        """The layer whose channels are the network's output."""
        return self.head[-1] if self.head else list(self.uses)[-1]

    def pictures(self, net: nn.Module, batch: int = 2) -> Tensor:
        """Draw pictures as the network reads them."""
        shape = (batch, self.in_channels, self.in_size, self.in_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(next(net.parameters()))


def read_anatomy(model: nn.Module, in_size: int) -> Anatomy:
    """Send pictures through a copy on the meta device and note the calls.

    Raises:
        ArgumentError: a layer cannot be treated, or the network does not take pictures of this size.
    """
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 0)
    if not channels:
        raise ArgumentError(f"model (={type(model).__name__}) has no Conv2d")
    plain = copy.deepcopy(model).to("meta").eval()
    names = {module: name for name, module in plain.named_modules()}
    calls: list[tuple[nn.Module, Tensor, tuple[int, ...]]] = []
    last_map: tuple[int, ...] = ()

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal last_map
        if isinstance(module, tuple(_COMPUTE)):
            calls.append((module, args[0], last_map))
        if isinstance(output, Tensor) and output.ndim == 4:
            last_map = tuple(output.shape[1:])

    for module, name in names.items():
        _check_type(name, module)
        module.register_forward_hook(note)
    run(plain, torch.empty(2, channels, in_size, in_size, device="meta", dtype=next(plain.parameters()).dtype))
    called = {module for module, *_ in calls}
    if idle := [names[m] for m in names if isinstance(m, tuple(_COMPUTE)) and m not in called]:
        raise ArgumentError(f"model never calls {', '.join(idle)} in evaluation mode: remove what it does not use")
    if not isinstance(calls[0][0], nn.Conv2d):
        raise ArgumentError(f"model begins with {names[calls[0][0]]}; a Conv2d must be the first to read the picture")
    uses = {names[module]: _read_use(names[module], module, x, x is calls[0][1], seen) for module, x, seen in calls}
    head: list[str] = []
    for name in (names[module] for module, *_ in reversed(calls)):
        if uses.get(name) != Use("values"):
            break
        head.insert(0, name)
        del uses[name]
    return Anatomy(uses, tuple(head), channels, in_size)


def run(net: nn.Module, x: Tensor) -> None:
    """Send pictures through a network whose own code can fail in any way."""
    try:
        with torch.no_grad():
            net(x)
    except ArgumentError:
        raise
    except Exception as error:
        name, shape = type(net).__name__, tuple(x.shape)
        raise ArgumentError(f"model (={name}) fails on pictures of shape {shape}: {error}") from error


def _check_type(name: str, module: nn.Module) -> None:
    """Refuse a layer with parameters that uses the plane or the channels in a way of its own."""
    known = (*_COMPUTE, *NORMS)
    foreign = type(module).__module__.startswith("torch.nn.") and not isinstance(module, known)
    changed = any(
        isinstance(module, base) and any(getattr(type(module), key) is not getattr(base, key) for key in keys)
        for base, keys in _COMPUTE.items()
    )
    if changed or (foreign and next(module.parameters(recurse=False), None) is not None):
        raise ArgumentError(
            f"{name or 'model'} ({type(module).__name__}) cannot be put on a group: in its place use Conv2d, Linear on "
            "channels, norms, pooling, nn.Upsample and activations"
        )


def _read_use(name: str, module: nn.Module, x: Tensor, lifts: bool, last_map: tuple[int, ...]) -> Use:
    if isinstance(module, nn.Conv2d) and x.ndim == 4:
        return Use("maps", lifts=lifts)
    if isinstance(module, nn.Linear) and x.ndim == 4:
        return Use("pixels")
    if isinstance(module, nn.Linear) and x.ndim == 2:
        flat = last_map and x.shape[1] == math.prod(last_map)
        return Use("values", (last_map[1], last_map[2]) if flat else (1, 1))
    raise ArgumentError(
        f"{name} ({module}) reads {x.ndim} axes, of which nobody knows which are rows and columns: convert networks "
        "that keep maps as (B, C, Y, X) or (B, Y, X, C)"
    )
