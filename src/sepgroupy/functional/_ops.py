"""Lifting and group convolutions as pure functions of feature maps, parameters and a group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends import ConvSpec, Sizes, constant_to_dynamo, name_for_tracing, select_backend, traced_value
from ..errors import ArgumentError
from ..groups import GroupLike, as_group


def lifting_conv(
    x: Tensor,  # (B, I, *spatial)
    weight: Tensor,  # (O, I/groups, 1, k, …)
    bias: Tensor | None = None,  # (O,)
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    *,
    group: GroupLike,
) -> Tensor:  # (B, O, |H|, *spatial')
    """Lift images, signals or volumes to the group: ``y[o, g] = Σ_i (g·w[o,i]) ⋆ x[i] + b[o]``.

    Source: Cohen & Welling (2016), section 6.1. The arguments are those of ``torch.nn.functional.conv2d``,
    or of conv1d or conv3d; the weight determines the number of spatial axes.

    Shape:
        x (B, I, *spatial), weight (O, I/groups, 1, k, …) and bias (O,) to (B, O, |H|, *spatial').

    Raises:
        ArgumentError: shapes do not fit, or the geometry breaks the group's symmetry.
    """
    geometry = (stride, padding, dilation, groups, padding_mode)
    return _convolve(x, {"weight": weight}, bias, geometry, group, "lifting", "auto")


def group_conv(
    x: Tensor,  # (B, I, |H|, *spatial)
    weight: Tensor,  # (O, I/groups, |H|, k, …)
    bias: Tensor | None = None,  # (O,)
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    *,
    group: GroupLike,
    backend: str = "auto",
) -> Tensor:  # (B, O, |H|, *spatial')
    """Convolve over the group: ``y[o, g] = Σ_i Σ_h (g·w[o,i])[h] ⋆ x[i, h] + b[o]``.

    Source: Cohen & Welling (2016), section 6.1. The arguments are those of
    ``torch.nn.functional.conv2d``, or of conv1d or conv3d; the weight determines the number of spatial axes.
    ``backend`` is that of :class:`sepgroupy.nn.GroupConv2d`.

    Shape:
        x (B, I, |H|, *spatial), weight (O, I/groups, |H|, k, …) and bias (O,) to (B, O, |H|, *spatial').

    Raises:
        ArgumentError: shapes do not fit, or the geometry breaks the group's symmetry.
    """
    geometry = (stride, padding, dilation, groups, padding_mode)
    return _convolve(x, {"weight": weight}, bias, geometry, group, "dense", backend)


def separable_group_conv(
    x: Tensor,  # (B, I, |H|, *spatial)
    depthwise_weight: Tensor,  # g: (O, I/groups, k, …); gc: (O, 1, 1, k, …)
    pointwise_weight: Tensor,  # (O, I/groups, |H|, 1, …)
    bias: Tensor | None = None,  # (O,)
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    *,
    group: GroupLike,
    backend: str = "auto",
) -> Tensor:  # (B, O, |H|, *spatial')
    """Convolve over the group with the filter ``w[o,i,h] = pw[o,i,h]·dw[o,i]`` (g) or ``pw[o,i,h]·dw[o]`` (gc).

    It has two steps: ``u[o, i, g] = Σ_h pw[o,i,g⁻¹h] x[i, h]``, then ``y[o, g] = Σ_i (g·dw[o,i]) ⋆ u[o, i, g] + b[o]``;
    for gc the sum over i is part of the first step. Source: Lengyel & van Gemert (2021), section 3.2.
    The arguments are those of ``torch.nn.functional.conv2d``, or of conv1d or conv3d; the weight determines the number
    of spatial axes. ``backend`` is that of :class:`sepgroupy.nn.GroupConv2d`.

    Shape:
        x (B, I, |H|, *spatial), depthwise_weight (O, I/groups, k, …) (g) or (O, 1, 1, k, …) (gc), pointwise_weight
        (O, I/groups, |H|, 1, …) and bias (O,) to (B, O, |H|, *spatial').

    Raises:
        ArgumentError: shapes do not fit, or the geometry breaks the group's symmetry.
    """
    parameters = {"depthwise_weight": depthwise_weight, "pointwise_weight": pointwise_weight}
    geometry = (stride, padding, dilation, groups, padding_mode)
    kind = "g" if depthwise_weight.ndim < pointwise_weight.ndim else "gc"
    return _convolve(x, parameters, bias, geometry, group, kind, backend)


def _convolve(
    x: Tensor,
    parameters: dict[str, Tensor],
    bias: Tensor | None,
    geometry: tuple[Sizes, Sizes | str, Sizes, int, str],
    group: GroupLike,
    kind: str,
    backend: str,
) -> Tensor:
    channelwise = parameters.get("pointwise_weight", next(iter(parameters.values())))  # it has all the channels
    spatial = parameters.get("depthwise_weight", channelwise)
    spec = _parse(group, channelwise.ndim - 3, kind, tuple(spatial.shape), *geometry)
    _check_shapes(channelwise, spatial, bias, spec)
    spec.check_input(x, channelwise.shape[1] * spec.groups, channelwise)
    chosen = select_backend(spec, x, backend)
    return chosen.run(spec, x, chosen.expand_filters(spec, parameters), bias)


def _parse(group: GroupLike, dimension: int, kind: str, filter_shape: tuple[int, ...], *geometry: Any) -> ConvSpec:
    if torch.compiler.is_dynamo_compiling():
        return traced_value(_name_of_parsed(group, dimension, kind, filter_shape, *geometry))  # type: ignore[no-any-return]
    try:
        group = as_group(group, dimension)
    except ArgumentError:  # another number of axes: the shapes are refused later
        group = as_group(group)
    return ConvSpec.parse(group, kind, filter_shape[-group.dimension :], *geometry)


@constant_to_dynamo
def _name_of_parsed(*arguments: Any) -> str:
    spec = _parse(*arguments)
    return name_for_tracing("spec", spec, spec)


def _check_shapes(weight: Tensor, depthwise: Tensor, bias: Tensor | None, spec: ConvSpec) -> None:
    elements = 1 if spec.kind == "lifting" else spec.group.order
    kernel = spec.kernel_size if depthwise is weight else (1,) * spec.dimension
    if weight.ndim != 3 + spec.dimension or tuple(weight.shape[2:]) != (elements, *kernel):
        name = "weight" if depthwise is weight else "pointwise_weight"
        axes = ", ".join(map(str, (elements, *kernel)))
        raise ArgumentError(f"{name} has shape {tuple(weight.shape)}; here it must be (O, I, {axes})")
    out_channels, in_channels = weight.shape[:2]
    if out_channels % spec.groups:
        raise ArgumentError(f"weight has {out_channels} output channels, not divisible by groups (={spec.groups})")
    expected = {"g": (out_channels, in_channels), "gc": (out_channels, 1, 1)}.get(spec.kind)
    if expected and tuple(depthwise.shape[: -spec.dimension]) != expected:
        raise ArgumentError(
            f"depthwise_weight has shape {tuple(depthwise.shape)}; for pointwise_weight {tuple(weight.shape)} it must "
            f"be ({', '.join(map(str, (*expected, *'k' * spec.dimension)))})"
        )
    if bias is not None and tuple(bias.shape) != (out_channels,):
        raise ArgumentError(f"bias has shape {tuple(bias.shape)}; here it must be ({out_channels},)")


lifting_conv2d, group_conv2d, separable_group_conv2d = lifting_conv, group_conv, separable_group_conv
"""The same functions under their names for images."""
