"""Standard modules on merged channels that are equal to a group layer or a batch norm over the group."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._plain_weights import call_on_probe, nearly_equal
from ..backends import ConvSpec, registered_backends, repeat_bias
from ..errors import ArgumentError
from ..nn import GroupConvolution, GroupPool

CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSES: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def expand_convolution(name: str, layer: GroupConvolution) -> dict[str, nn.Module]:
    """Return the standard convolutions whose composition equals a layer, in order, by suffixes of its name.

    A gc layer becomes two convolutions, 1×1 and depthwise, if I·|H|·stride² + k² multiplications for each value of a
    large feature map are fewer than the I·|H|·k² of its expanded filter. A g layer always becomes one, since two steps
    would need I·O·|H| feature maps between them.

    Args:
        name: of the layer, for errors.
        layer: a layer of a copy in inference mode. It is called once on a small input, so that hooks recompute its
            weights. Its output is compared with that of the convolutions.

    Raises:
        ArgumentError: the layer has a hook or a patched forward that changes the result.
    """
    x, expected = call_on_probe(name, layer)
    modules = _expand(layer)
    if not nearly_equal(expected, _apply(layer, modules, x)):
        raise ArgumentError(
            f"{name} ({type(layer).__name__}) computes something else than its weights say, by a hook or its own "
            "forward, which an exported network would not run: remove it before the export"
        )
    return modules


def check_pool(name: str, pool: GroupPool) -> None:
    """Refuse a pool with a hook or a patched forward that changes the result."""
    x = torch.randn(2, 3, 4, *(2,) * pool.dimension, generator=torch.Generator().manual_seed(0))
    expected = x.amax(2) if pool.mode == "max" else x.mean(2)
    if not nearly_equal(pool(x), expected):
        raise ArgumentError(
            f"{name} ({type(pool).__name__}) computes something else than its mode says, by a hook or its own forward, "
            "which an exported network would not run: remove it before the export"
        )


def repeat_norm(norm: _BatchNorm, order: int) -> _BatchNorm:
    """Return the batch norm of (B, |H|·C, *spatial) that applies the given norm to every group element."""
    repeated = copy.deepcopy(norm)
    repeated.num_features *= order
    for name, value in [*norm.named_parameters(), *norm.named_buffers()]:
        if value.ndim:
            values = value.repeat(order)
            setattr(repeated, name, nn.Parameter(values, False) if isinstance(value, nn.Parameter) else values)
    return repeated


def _expand(layer: GroupConvolution) -> dict[str, nn.Module]:
    spec, size = layer.spec, math.prod(layer.kernel_size)
    stride_area, terms = math.prod(spec.stride), layer.in_channels // spec.groups * spec.group.order
    fewer = stride_area < size if spec.transposed else terms * stride_area + size < terms * size
    backends = {backend.name: backend for backend in registered_backends()}
    backend = backends["two_step" if spec.kind == "gc" and fewer else "expanded"]
    filters = backend.expand_filters(spec, {name: getattr(layer, name) for name in layer.filter_names})
    bias = repeat_bias(layer.bias, spec)
    if len(filters) == 1:
        return {"": _convolution(filters[0], bias, spec)}
    pointwise, depthwise = filters
    assert depthwise is not None
    ones, zeros = (1,) * spec.dimension, (0,) * spec.dimension
    point = replace(spec, kernel_size=ones, stride=ones, padding=zeros + zeros, dilation=ones, output_padding=zeros)
    deep = replace(spec, groups=len(depthwise))
    if not spec.transposed:
        return {".pointwise": _convolution(pointwise, None, point), ".depthwise": _convolution(depthwise, bias, deep)}
    return {".depthwise": _convolution(depthwise, None, deep), ".pointwise": _convolution(pointwise, bias, point)}


@torch.no_grad()
def _apply(layer: GroupConvolution, modules: dict[str, nn.Module], x: Tensor) -> Tensor:
    """Return the output of the convolutions for an input of the layer, computed as in the exported graph."""
    order, groups = layer.group.order, layer.groups
    if layer.kind != "lifting":
        x = x.transpose(1, 2).flatten(1, 2)
        x = _exchange(x, (order, groups, layer.in_channels // groups))
    for module in modules.values():
        x = module(x)
    x = _exchange(x, (groups, order, layer.out_channels // groups))
    return x.unflatten(1, (order, layer.out_channels)).transpose(1, 2)


def _exchange(x: Tensor, sizes: tuple[int, int, int]) -> Tensor:
    return x.unflatten(1, sizes).transpose(1, 2).flatten(1, 3)


def _convolution(weight: Tensor | None, bias: Tensor | None, spec: ConvSpec) -> nn.Module:
    """Return a module with expanded filters."""
    assert weight is not None
    before, after = spec.padding[::2], spec.padding[1::2]
    channels = (weight.shape[1] * spec.groups, weight.shape[0])
    options: dict[str, Any] = {
        "stride": spec.stride,
        "dilation": spec.dilation,
        "groups": spec.groups,
        "bias": bias is not None,
        "padding": before if before == after else "same",  # the only case of unequal padding
        "padding_mode": spec.padding_mode,
        "device": "meta",  # nothing is initialized
    }
    convolution: Any
    if spec.transposed:
        options["output_padding"] = spec.output_padding
        convolution = CONV_TRANSPOSES[spec.dimension](*channels[::-1], spec.kernel_size, **options)
    else:
        convolution = CONVS[spec.dimension](*channels, spec.kernel_size, **options)
    convolution.weight = nn.Parameter(weight, requires_grad=False)
    convolution.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return convolution.eval()  # type: ignore[no-any-return]
