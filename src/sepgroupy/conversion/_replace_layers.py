"""The replacement of plain layers by group layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._nested import map_leaves
from ..errors import ArgumentError
from ..groups import PointGroup
from ..nn import GROUP_CONVS, LIFTING_CONVS, GroupConv, LiftingConv
from ._inspect_model import BATCH, CONVS, NORMS, Inspection, LayerUse, run
from ._modules import MergedGroupConv, MergedGroupPool

Widths = Callable[[int], int]
"""A function from the channels of a plain layer to those of the new one."""


class IndivisibleError(ArgumentError):
    """The channels that a layer reads are not a multiple of its number of blocks."""

    def __init__(self, name: str, channels: int, blocks: int) -> None:
        super().__init__(f"{name} divides {channels} channels into {blocks} blocks")
        self.name, self.blocks = name, blocks


class _Pending(nn.Module):
    """A layer that is built at its first call, for the channels of the input."""

    def __init__(self, plain: nn.Module, build: Callable[[Tensor], nn.Module]) -> None:
        super().__init__()
        self.layer, self.build, self.built = plain, build, False

    def forward(self, x: Tensor) -> Tensor:
        if not self.built:
            self.layer, self.built = self.build(x), True
        return self.layer(x)


@dataclass(frozen=True)
class LayerReplacer:
    """Replaces the layers of a network, for any widths."""

    group: PointGroup
    kind: str
    lift: bool
    init: str
    pool: str
    inspection: Inspection

    def replace(self, net: nn.Module, width: Widths | None = None) -> nn.Module:
        """Return the equivariant network. The given network is modified.

        Each layer is built during one pass, for the channels of its input: the sum of rounded widths of concatenated
        feature maps can differ from the rounded width of the sum.

        Args:
            net: a copy of the plain network.
            width: the width of each new layer; by default that of the plain one.

        Raises:
            IndivisibleError: a layer divides its channels into more blocks than fit the given widths.
        """
        names = {module: name for name, module in net.named_modules()}
        new: dict[nn.Module, nn.Module] = {}
        for module, name in names.items():
            if build := self._builder(name, module, width or int):
                new[module] = _Pending(module, build)
            elif width:  # parameters outside of layers, such as the scales of residual branches
                for key, value in module.named_parameters(recurse=False):
                    _resize(module, key, tuple(n if n == 1 else width(n) for n in value.shape))
        images = self.inspection.images(net)
        net = _replace(net, new)
        with torch.no_grad():
            output = run(net, images)
        net = _replace(net, {m: m.layer for m in net.modules() if isinstance(m, _Pending)})
        return self._pool_outputs(net, output)

    def _pool_outputs(self, net: nn.Module, output: Any) -> nn.Module:
        """Pool those outputs that still have the group axis, merged into the batch."""
        merged: dict[str, bool] = {}
        map_leaves(
            lambda name, leaf: merged.update({name: self._is_merged(leaf)} if isinstance(leaf, Tensor) else {}),
            output,
            "output",
        )
        if not any(merged.values()):
            return net
        names = None if all(merged.values()) else [name for name in merged if merged[name]]
        return nn.Sequential(net, MergedGroupPool(self.group.order, self.pool, names))

    def _is_merged(self, x: Tensor) -> bool:
        return self.group.order > 1 and x.ndim > 1 and len(x) == BATCH * self.group.order

    def _builder(self, name: str, module: nn.Module, width: Widths) -> Callable[[Tensor], nn.Module] | None:
        widths = int if name in self.inspection.outputs else width
        if name in self.inspection.uses:
            return lambda x: self._convolution(name, module, x, widths)
        if name in self.inspection.head:
            return lambda x: self._linear(module, x, widths)
        return (lambda x: self._norm(name, module, x)) if isinstance(module, NORMS) else None

    def _convolution(self, name: str, plain: Any, x: Tensor, width: Widths) -> nn.Module:
        use = self.inspection.uses[name]
        try:
            if isinstance(plain, nn.Linear):
                kernel = use.kernel_size or (1,) * self.group.dimension
                pixels = math.prod(kernel)
                channels = x.shape[-1] if use.layout == "pixels" else x.shape[1] // pixels
                layer = self._layer(use, plain, channels, width(plain.out_features), kernel)
            else:
                options = {key: getattr(plain, key) for key in ("stride", "padding", "dilation", "padding_mode")}
                channels, out_channels, groups = x.shape[1], width(plain.out_channels), plain.groups
                if 1 < plain.groups == plain.in_channels:  # depthwise
                    groups, out_channels = channels, channels * plain.out_channels // plain.in_channels
                if channels % groups or out_channels % groups:
                    raise IndivisibleError(name, channels, groups)
                layer = self._layer(use, plain, channels, out_channels, plain.kernel_size, groups=groups, **options)
            if self.lift:
                _lift(layer, plain)
        except IndivisibleError:
            raise
        except ArgumentError as error:
            raise ArgumentError(f"{name} ({plain}) cannot be converted to {self.group}: {error}") from None
        return MergedGroupConv(layer, use.layout)

    def _layer(self, use: LayerUse, plain: Any, *shape: Any, **options: Any) -> LiftingConv | GroupConv:
        options |= {"bias": plain.bias is not None, "device": plain.weight.device, "dtype": plain.weight.dtype}
        options |= {"group": self.group, "init": self.init}
        if use.lifts:
            return LIFTING_CONVS[self.group.dimension](*shape, **options)
        kind = "dense" if math.prod(shape[-1]) == 1 else self.kind
        return GROUP_CONVS[self.group.dimension](*shape, kind=kind, **options)

    def _linear(self, plain: Any, x: Tensor, width: Widths) -> nn.Module:
        if not self.lift:
            plain = nn.Linear(x.shape[1], width(plain.out_features), plain.bias is not None).to(plain.weight)
        if self._is_merged(x):
            return nn.Sequential(MergedGroupPool(self.group.order, self.pool), plain)
        return plain

    def _norm(self, name: str, module: Any, x: Tensor) -> nn.Module:
        channels = x.shape[_channel_axis(module, x.ndim)]
        if isinstance(module, nn.GroupNorm):
            if module.num_groups == module.num_channels:  # as an instance norm
                module.num_groups = channels
            if channels % module.num_groups:
                raise IndivisibleError(name, channels, module.num_groups)
        for key in ("num_features", "num_channels", "num_parameters"):
            if getattr(module, key, 1) > 1:
                setattr(module, key, channels)
        if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
            module.normalized_shape = (channels,)
        for key, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if value.ndim == 1 and len(value) > 1:
                _resize(module, key, (channels,))
        if not self.lift:
            module.reset_parameters()
        return module


def channel_blocks(net: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Yield, for each layer that divides its channels into blocks, its name, and its numbers of channels and blocks.

    Depthwise convolutions are left out: their number of blocks is that of their channels.
    """
    modules: Iterator[tuple[str, Any]] = net.named_modules()
    for name, module in modules:
        if _is_convolution(module) and 1 < module.groups < module.in_channels:
            yield name, module.in_channels, module.groups
            yield name, module.out_channels, module.groups
        if isinstance(module, nn.GroupNorm) and 1 < module.num_groups < module.num_channels:
            yield name, module.num_channels, module.num_groups


def _is_convolution(module: object) -> bool:
    return isinstance(module, tuple(CONVS.values()))


def _channel_axis(norm: nn.Module, axes: int) -> int:
    """Find the axis of a norm's channels: the last one of a layer norm, except in subclasses for (B, C, *spatial)."""
    if not isinstance(norm, nn.LayerNorm):
        return 1
    channels = norm.normalized_shape[0]
    maps = torch.empty(1, channels, *(channels + 1,) * (axes - 2))
    try:
        norm(maps if norm.weight is None else maps.to(norm.weight))
    except RuntimeError:
        return -1
    return 1


def _resize(module: nn.Module, key: str, shape: tuple[int, ...]) -> None:
    """Give a parameter or buffer another shape, filled with its mean."""
    value = getattr(module, key)
    if tuple(value.shape) != shape:
        filled = value.detach().mean().expand(shape).clone()
        setattr(module, key, nn.Parameter(filled) if isinstance(value, nn.Parameter) else filled)


def _replace(net: nn.Module, new: dict[nn.Module, nn.Module]) -> nn.Module:
    """Replace old modules by new ones, wherever they occur."""
    for module in list(net.modules()):
        for key, child in list(module._modules.items()):  # unlike named_children, includes modules that occur twice
            if child in new:
                setattr(module, key, new[child])
    return new.get(net, net)


@torch.no_grad()
def _lift(layer: LiftingConv | GroupConv, plain: Any) -> None:
    """Copy the plain filters to the identity, the first group element, and set the others to zero."""
    kind, parameters = layer.kind, dict(layer.named_parameters())
    weight = plain.weight.reshape(layer.out_channels, -1, *layer.kernel_size)
    if kind == "gc" and weight.shape[1] > 1:
        raise ArgumentError(
            "a layer of kind 'gc' has one kernel for all its input channels, which cannot represent the plain filters "
            "that weights='lift' asks for: use kind 'g' or 'dense', or weights='fresh'"
        )
    for parameter in parameters.values():
        parameter.zero_()
    if kind in ("g", "gc"):
        parameters["pointwise_weight"][:, :, 0] = 1
        parameters["depthwise_weight"].copy_(weight.reshape(parameters["depthwise_weight"].shape))
    else:
        parameters["weight"][:, :, 0] = weight
    if plain.bias is not None:
        parameters["bias"].copy_(plain.bias)
