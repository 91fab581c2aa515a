"""The exchange of a plain network's layers for layers on a group."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..groups import PointGroup
from ..nn import GroupConv2d, LiftingConv2d
from ._inspect_model import NORMS, Anatomy, Use, run
from ._modules import FoldedConvolution, FoldedPool

Widths = Callable[[int], int]


class _Pending(nn.Module):
    """A layer that is made when it is first called, for as many channels as it then reads."""

    def __init__(self, plain: nn.Module, make: Callable[[Tensor], nn.Module]) -> None:
        super().__init__()
        self.layer, self.make, self.made = plain, make, False

    def forward(self, x: Tensor) -> Tensor:
        if not self.made:
            self.layer, self.made = self.make(x), True
        return self.layer(x)


@dataclass(frozen=True)
class Surgery:
    """Exchanges layers: the same operation for every width of one network."""

    group: PointGroup
    kind: str
    lift: bool
    pool: str
    anatomy: Anatomy

    def operate(self, net: nn.Module, factor: float) -> nn.Module:
        """Return the network on the group, all widths times a factor; the plain one is used up.

        Widths are rounded, so that those of concatenated maps would not add up to what the next layer expects:
        each layer is made during one pass and reads what arrives.
        """
        unit = math.lcm(*(blocks for m in net.modules() if (blocks := _blocks(m))))

        def width(channels: int) -> int:
            return channels if factor == 1 else max(1, round(factor * channels / unit)) * unit

        names = {module: name for name, module in net.named_modules()}
        new: dict[nn.Module, nn.Module] = {}
        for module, name in names.items():
            if make := self._maker(name, module, width):
                new[module] = _Pending(module, make)
            elif factor != 1:  # parameters of the network's own, such as the scales of residual branches
                for key, value in module.named_parameters(recurse=False):
                    _resize(module, key, tuple(n if n == 1 else width(n) for n in value.shape))
        pictures = self.anatomy.pictures(net)
        net = _replace(net, new)
        run(net, pictures)
        net = _replace(net, {m: m.layer for m in net.modules() if isinstance(m, _Pending)})
        return net if self.anatomy.head else nn.Sequential(net, FoldedPool(self.group.order, self.pool))

    def _maker(self, name: str, module: nn.Module, width: Widths) -> Callable[[Tensor], nn.Module] | None:
        widths = width if name != self.anatomy.last else int
        if name in self.anatomy.uses:
            return lambda x: self._convolution(name, module, x, widths)
        if name in self.anatomy.head:
            return lambda x: self._linear(name, module, x, widths)
        return (lambda x: self._norm(module, x)) if isinstance(module, NORMS) else None

    def _convolution(self, name: str, plain: Any, x: Tensor, width: Widths) -> nn.Module:
        use = self.anatomy.uses[name]
        try:
            if isinstance(plain, nn.Linear):
                pixels = math.prod(use.kernel_size)
                channels = x.shape[-1] if use.layout == "pixels" else x.shape[1] // pixels
                layer = self._layer(use, plain, channels, width(plain.out_features), use.kernel_size)
            else:
                options = {key: getattr(plain, key) for key in ("stride", "padding", "dilation", "padding_mode")}
                channels, out_channels, groups = x.shape[1], width(plain.out_channels), plain.groups
                if 1 < plain.groups == plain.in_channels:  # depthwise
                    groups, out_channels = channels, channels * plain.out_channels // plain.in_channels
                layer = self._layer(use, plain, channels, out_channels, plain.kernel_size, groups=groups, **options)
            if self.lift:
                _lift(layer, plain)
        except ArgumentError as error:
            raise ArgumentError(f"{name} ({plain}) cannot be put on {self.group}: {error}") from None
        return FoldedConvolution(layer, use.layout)

    def _layer(self, use: Use, plain: Any, *shape: Any, **options: Any) -> LiftingConv2d | GroupConv2d:
        options |= {"bias": plain.bias is not None, "device": plain.weight.device, "dtype": plain.weight.dtype}
        if use.lifts:
            return LiftingConv2d(*shape, group=self.group, **options)
        kind = "dense" if math.prod(shape[-1]) == 1 else self.kind
        return GroupConv2d(*shape, group=self.group, kind=kind, **options)

    def _linear(self, name: str, plain: Any, x: Tensor, width: Widths) -> nn.Module:
        if not self.lift:
            plain = nn.Linear(x.shape[1], width(plain.out_features), plain.bias is not None).to(plain.weight)
        return nn.Sequential(FoldedPool(self.group.order, self.pool), plain) if name == self.anatomy.head[0] else plain

    def _norm(self, module: Any, x: Tensor) -> nn.Module:
        channels = x.shape[_channel_axis(module)]
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


def _blocks(module: nn.Module) -> int:
    """Return the blocks into which a layer divides its channels; as many as arrive if it is depthwise, so none."""
    if isinstance(module, nn.Conv2d) and module.groups < module.in_channels:
        return module.groups
    return module.num_groups if isinstance(module, nn.GroupNorm) and module.num_groups < module.num_channels else 0


def _channel_axis(norm: nn.Module) -> int:
    """Find out on which axis a norm's channels are: a layer norm's are last, but for those that take maps."""
    if not isinstance(norm, nn.LayerNorm):
        return 1
    channels = norm.normalized_shape[0]
    maps = torch.empty(1, channels, channels + 1, channels + 1)
    try:
        norm(maps if norm.weight is None else maps.to(norm.weight))
    except RuntimeError:
        return -1
    return 1


def _resize(module: nn.Module, key: str, shape: tuple[int, ...]) -> None:
    """Give a parameter or buffer another shape, filled with the mean of what it was."""
    value = getattr(module, key)
    if tuple(value.shape) != shape:
        filled = value.detach().mean().expand(shape).clone()
        setattr(module, key, nn.Parameter(filled) if isinstance(value, nn.Parameter) else filled)


def _replace(net: nn.Module, new: dict[nn.Module, nn.Module]) -> nn.Module:
    """Put new modules in the place of old ones, wherever they occur."""
    for module in list(net.modules()):
        for key, child in list(module._modules.items()):  # unlike named_children, with those that occur twice
            if child in new:
                setattr(module, key, new[child])
    return new.get(net, net)


@torch.no_grad()
def _lift(layer: LiftingConv2d | GroupConv2d, plain: Any) -> None:
    """Put the plain filters at the identity, a group's first element, and zeros at the others."""
    kind, parameters = layer.kind, dict(layer.named_parameters())
    weight = plain.weight.reshape(layer.out_channels, -1, *layer.kernel_size)
    if kind == "gc" and weight.shape[1] > 1:
        raise ArgumentError(
            "a layer of kind 'gc' has one kernel for all its input channels, which cannot hold the plain filters that "
            "weights='lift' asks for: use kind 'g' or 'dense', or weights='fresh'"
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
