"""The use of a plain network's convolutions and linear layers, found by one pass on the meta device."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from .._nested import map_leaves
from .._plain_weights import nearly_equal
from ..errors import ArgumentError
from ..groups import axis_names

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.PReLU)
"""Layers with one or two parameters for each channel: only their width changes."""

BATCH = 2
"""Images in the passes that inspect and build a network."""

CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class LayerUse:
    """The use of a layer that becomes a group convolution."""

    layout: str
    """The layout of :class:`MergedGroupConv`."""
    kernel_size: tuple[int, ...] = ()
    """Of a linear layer, which is a convolution of that size, of one element if it is empty."""
    lifts: bool = False
    """Whether it reads the image."""


@dataclass(frozen=True)
class Inspection:
    """All uses by name in the order of the calls, the final linear layers, and the input."""

    uses: Mapping[str, LayerUse]
    head: tuple[str, ...]
    outputs: frozenset[str]
    """The layers whose channels are channels of the network's outputs."""
    in_channels: int
    in_size: tuple[int, ...]

    def images(self, net: nn.Module, batch: int = BATCH) -> Tensor:
        """Draw images of the inspected size."""
        shape = (batch, self.in_channels, *self.in_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(next(net.parameters()))


def inspect_model(model: nn.Module, in_size: tuple[int, ...]) -> Inspection:
    """Send images through a copy on the meta device and record the calls.

    Args:
        model: the plain network, in inference mode, without reparametrizations.
        in_size: spatial sizes of the images.

    Raises:
        ArgumentError: a layer cannot be converted, or the network does not take images of this size.
    """
    conv = CONVS[len(in_size)]
    replaced = (conv, nn.Linear)
    channels = next((m.in_channels for m in model.modules() if isinstance(m, conv)), 0)
    if not channels:
        raise ArgumentError(f"model (={type(model).__name__}) has no {conv.__name__}")
    plain = copy.deepcopy(model).to("meta")
    names = {module: name for name, module in plain.named_modules()}
    calls: list[tuple[nn.Module, Tensor, tuple[int, ...]]] = []
    results: dict[Any, str] = {}  # layers by the autograd node of their result
    last_map: tuple[int, ...] = ()

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal last_map
        if isinstance(module, replaced):
            calls.append((module, args[0], last_map))
            results[output.grad_fn] = names[module]
        if isinstance(output, Tensor) and output.ndim == 2 + len(in_size):
            last_map = tuple(output.shape[1:])

    for module, name in names.items():
        _check_type(name, module, replaced)
        module.register_forward_hook(note)
    dtype = next(plain.parameters()).dtype
    x = torch.empty(BATCH, channels, *in_size, device="meta", dtype=dtype, requires_grad=True).clone()
    with torch.enable_grad():
        output = run(plain, x)
    called = {module for module, *_ in calls}
    if idle := [names[m] for m in names if isinstance(m, replaced) and m not in called]:
        raise ArgumentError(f"model never calls {', '.join(idle)} in inference mode: remove what it does not use")
    if not isinstance(calls[0][0], conv):
        raise ArgumentError(
            f"model begins with {names[calls[0][0]]}; a {conv.__name__} must be the first to read the image"
        )
    uses = {
        names[module]: _find_use(names[module], module, x, x is calls[0][1], seen, len(in_size))
        for module, x, seen in calls
    }
    for module, x, _ in calls:
        _check_computation(names[module], model.get_submodule(names[module]), tuple(x.shape), replaced)
    head: list[str] = []
    for name in (names[module] for module, *_ in reversed(calls)):
        if uses.get(name) != LayerUse("values"):
            break
        head.insert(0, name)
        del uses[name]
    outputs = frozenset(_find_outputs(output, results)) or {names[calls[-1][0]]}
    return Inspection(uses, tuple(head), frozenset(outputs), channels, in_size)


def run(net: nn.Module, x: Tensor) -> Any:
    """Call a network; convert any error to ArgumentError."""
    try:
        return net(x)
    except ArgumentError:
        raise
    except Exception as error:
        name, shape = type(net).__name__, tuple(x.shape)
        raise ArgumentError(f"model (={name}) fails on images of shape {shape}: {error}") from error


def _find_outputs(output: Any, results: Mapping[Any, str]) -> Iterable[str]:
    """Yield the last layers before the outputs."""
    nodes: list[Any] = []
    map_leaves(lambda _, leaf: nodes.append(getattr(leaf, "grad_fn", None)), output, "output")
    seen = set()
    for node in nodes:  # grows while it is read
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in results:
            yield results[node]
        else:
            nodes += [following for following, _ in node.next_functions]


def _check_type(name: str, module: nn.Module, replaced: tuple[Any, ...]) -> None:
    """Refuse a layer of torch with parameters that treats pixels or channels in an unknown way."""
    known = isinstance(module, (*replaced, *NORMS))
    has_parameters = next(module.parameters(recurse=False), None) is not None
    if type(module).__module__.startswith("torch.nn.") and not known and has_parameters:
        raise ArgumentError(
            f"{name or 'model'} ({type(module).__name__}) cannot be converted: in its place use "
            f"{replaced[0].__name__}, Linear on channels, norms, pooling, nn.Upsample and activations"
        )


def _check_computation(name: str, module: nn.Module, shape: tuple[int, ...], replaced: tuple[Any, ...]) -> None:
    """Refuse a layer whose result is not that of its torch class with its weight and bias.

    A subclass, a hook or a patched forward can do anything; the layer is called and the results are compared.
    """
    base = next(kind for kind in replaced if isinstance(module, kind))
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    if type(module) is base and not any(hooks) and "forward" not in vars(module):
        return
    what = f"{name or 'model'} ({type(module).__name__}) cannot be converted:"
    extra = [key for key, _ in module.named_parameters() if key not in ("weight", "bias")]
    if extra:
        raise ArgumentError(f"{what} beside weight and bias it has the parameters {', '.join(extra)}")
    larger = (*shape[:2], *(n + 1 for n in shape[2:])) if base is not nn.Linear else shape
    for training in (False, True):
        for size in (shape, larger):
            layer = copy.deepcopy(module).train(training)
            if not _computes_as(base, layer, size):
                mode = "training" if training else "inference"
                raise ArgumentError(
                    f"{what} in {mode} it computes something else than nn.{base.__name__} with its weight and bias: "
                    f"use nn.{base.__name__}, or a subclass or hook that computes the same"
                )


@torch.no_grad()
def _computes_as(base: Any, layer: Any, shape: tuple[int, ...]) -> bool:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(layer.weight)
    try:
        found = layer(x.clone())
    except Exception:  # the user's code can raise anything
        return False
    if base is nn.Linear:
        expected = F.linear(x, layer.weight, layer.bias)
    else:
        expected = base._conv_forward(layer, x, layer.weight, layer.bias)
    return nearly_equal(found, expected)


def _find_use(
    name: str, module: nn.Module, x: Tensor, lifts: bool, last_map: tuple[int, ...], dimension: int
) -> LayerUse:
    linear = isinstance(module, nn.Linear)
    if x.ndim == 2 + dimension:
        return LayerUse("pixels") if linear else LayerUse("maps", lifts=lifts)
    if linear and x.ndim == 2:
        flat = last_map and x.shape[1] == math.prod(last_map) and math.prod(last_map[1:]) > 1
        return LayerUse("values", last_map[1:] if flat else ())
    axes = ", ".join(axis_names(dimension))
    raise ArgumentError(
        f"{name} ({module}) reads {x.ndim} axes, which do not say where {_PLACES[dimension]} are: convert networks "
        f"whose feature maps are (B, C, {axes}) or (B, {axes}, C)"
    )


_PLACES = {1: "positions", 2: "rows and columns", 3: "slices, rows and columns"}
