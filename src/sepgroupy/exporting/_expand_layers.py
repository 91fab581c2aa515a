"""Ordinary modules that compute what a layer of ours, or a norm over the group, computes on merged channels."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..functional._geometry import Geometry
from ..nn import GroupConvTranspose2d
from ..nn._base import GroupConvolution


def plain_convolutions(layer: GroupConvolution) -> dict[str, nn.Module]:
    """Return the ordinary convolutions that a layer is, one after the other, by names that say which.

    A gc layer is two, 1×1 and depthwise, if I·|H|·stride² + k² multiplications for each value of a large map are fewer
    than the I·|H|·k² of its multiplied-out filter. One of kind g, whose two steps would keep I·O·|H| maps between
    them, is always one.
    """
    plan, geometry = layer.plan, layer.plan.geometry
    added = layer.output_padding if isinstance(layer, GroupConvTranspose2d) else None
    if added is None:  # a transposed one has an algorithm already
        taps, terms = math.prod(geometry.kernel_size), layer.in_channels // geometry.groups * plan.group.order
        apart = plan.kind == "gc" and terms * math.prod(geometry.stride) + taps < terms * taps
        plan = replace(plan, algorithm="full" if plan.kind in ("g", "gc") and not apart else "dense")
    parameters = {name: getattr(layer, name) for name in layer._filter_names}
    tables = {name: table.to(next(layer.parameters()).device) for name, table in plan.tables().items()}
    banks = plan.filters(parameters, tables).banks
    bias: Tensor | None = layer.bias
    if bias is not None:
        bias = bias.reshape(geometry.groups, 1, -1).expand(-1, plan.group.order, -1).flatten()
    if len(banks) == 1:
        return {"": _convolution(banks[0], bias, geometry, added)}
    pointwise, depthwise = banks
    point, deep = Geometry((1, 1), groups=geometry.groups), replace(geometry, groups=len(depthwise))
    if added is None:
        return {".pointwise": _convolution(pointwise, None, point), ".depthwise": _convolution(depthwise, bias, deep)}
    return {
        ".depthwise": _convolution(depthwise, None, deep, added),
        ".pointwise": _convolution(pointwise, bias, point, (0, 0)),
    }


def repeat_norm(norm: nn.BatchNorm2d, order: int) -> nn.BatchNorm2d:
    """Return the norm of (B, |H|·C, Y, X) that treats every element of the group as the given one does."""
    repeated = copy.deepcopy(norm)
    repeated.num_features *= order
    for name, value in [*norm.named_parameters(), *norm.named_buffers()]:
        if value.ndim:
            many = value.repeat(order)
            setattr(repeated, name, nn.Parameter(many, False) if isinstance(value, nn.Parameter) else many)
    return repeated


def _convolution(
    bank: Tensor, bias: Tensor | None, geometry: Geometry, output_padding: tuple[int, int] | None = None
) -> nn.Conv2d | nn.ConvTranspose2d:
    """Put a bank into a module; with an output_padding into the transposed one."""
    top, bottom, left, right = geometry.padding
    channels = (bank.shape[1] * geometry.groups, bank.shape[0])
    options: dict[str, Any] = {
        "stride": geometry.stride,
        "dilation": geometry.dilation,
        "groups": geometry.groups,
        "bias": bias is not None,
        "padding": (top, left) if (top, left) == (bottom, right) else "same",  # the only one that is uneven
        "padding_mode": geometry.padding_mode,
        "device": "meta",  # nothing is drawn
    }
    convolution: nn.Conv2d | nn.ConvTranspose2d
    if output_padding is None:
        convolution = nn.Conv2d(*channels, geometry.kernel_size, **options)
    else:
        convolution = nn.ConvTranspose2d(
            *channels[::-1], geometry.kernel_size, output_padding=output_padding, **options
        )
    convolution.weight = nn.Parameter(bank, requires_grad=False)
    convolution.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return convolution.eval()
