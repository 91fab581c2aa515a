"""Ordinary modules that compute what a layer of ours, or a norm over the group, computes on merged channels."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..backends import ConvSpec
from ..backends.base import repeat_bias
from ..backends.expanded import Expanded
from ..backends.two_step import TwoStep
from ..nn import GroupConvolution


def plain_convolutions(layer: GroupConvolution) -> dict[str, nn.Module]:
    """Return the ordinary convolutions that a layer is, one after the other, by names that say which.

    A gc layer is two, 1×1 and depthwise, if I·|H|·stride² + k² multiplications for each value of a large map are fewer
    than the I·|H|·k² of its multiplied-out filter. One of kind g, whose two steps would keep I·O·|H| maps between
    them, is always one.
    """
    spec = layer.spec
    elements, stride_area = math.prod(spec.kernel_size), math.prod(spec.stride)
    terms = layer.in_channels // spec.groups * spec.group.order
    fewer = stride_area < elements if spec.transposed else terms * stride_area + elements < terms * elements
    backend = TwoStep() if spec.kind == "gc" and fewer else Expanded()
    banks = backend.expand_filters(spec, {name: getattr(layer, name) for name in layer.filter_names})
    bias = repeat_bias(layer.bias, spec)
    if len(banks) == 1:
        return {"": _convolution(banks[0], bias, spec)}
    pointwise, depthwise = banks
    assert depthwise is not None
    point = replace(
        spec, kernel_size=(1, 1), stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), output_padding=(0, 0)
    )
    deep = replace(spec, groups=len(depthwise))
    if not spec.transposed:
        return {".pointwise": _convolution(pointwise, None, point), ".depthwise": _convolution(depthwise, bias, deep)}
    return {".depthwise": _convolution(depthwise, None, deep), ".pointwise": _convolution(pointwise, bias, point)}


def repeat_norm(norm: nn.BatchNorm2d, order: int) -> nn.BatchNorm2d:
    """Return the norm of (B, |H|·C, Y, X) that treats every element of the group as the given one does."""
    repeated = copy.deepcopy(norm)
    repeated.num_features *= order
    for name, value in [*norm.named_parameters(), *norm.named_buffers()]:
        if value.ndim:
            many = value.repeat(order)
            setattr(repeated, name, nn.Parameter(many, False) if isinstance(value, nn.Parameter) else many)
    return repeated


def _convolution(bank: Tensor | None, bias: Tensor | None, spec: ConvSpec) -> nn.Conv2d | nn.ConvTranspose2d:
    """Put a filter bank into a module."""
    assert bank is not None
    top, bottom, left, right = spec.padding
    channels = (bank.shape[1] * spec.groups, bank.shape[0])
    options: dict[str, Any] = {
        "stride": spec.stride,
        "dilation": spec.dilation,
        "groups": spec.groups,
        "bias": bias is not None,
        "padding": (top, left) if (top, left) == (bottom, right) else "same",  # the only one with unequal sides
        "padding_mode": spec.padding_mode,
        "device": "meta",  # nothing is drawn
    }
    convolution: nn.Conv2d | nn.ConvTranspose2d
    if spec.transposed:
        convolution = nn.ConvTranspose2d(
            *channels[::-1], spec.kernel_size, output_padding=spec.output_padding, **options
        )
    else:
        convolution = nn.Conv2d(*channels, spec.kernel_size, **options)
    convolution.weight = nn.Parameter(bank, requires_grad=False)
    convolution.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return convolution.eval()
