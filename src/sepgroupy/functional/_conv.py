"""Lifting and group convolutions as pure functions of maps, parameters and a group."""

from __future__ import annotations

from torch import Tensor

from ..errors import ArgumentError
from ..groups import PointGroup, as_group
from ._geometry import Geometry, Pair
from ._plan import Plan


def lifting_conv2d(
    x: Tensor,  # (B, I, Y, X)
    weight: Tensor,  # (O, I/groups, 1, k, k)
    bias: Tensor | None = None,  # (O,)
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    *,
    group: PointGroup | str,
) -> Tensor:  # (B, O, |H|, Y', X')
    """Lift a planar map to the group: ``y[o, g] = Σ_i (g·w[o,i]) ⋆ x[i] + b[o]``.

    Source: Cohen & Welling (2016), section 6.1. Arguments as ``torch.nn.functional.conv2d``.

    Raises:
        ArgumentError: shapes do not fit, or the geometry breaks the group's symmetry.
    """
    geometry = (stride, padding, dilation, groups, padding_mode)
    return _run(x, {"weight": weight}, bias, geometry, group, "lifting", "auto")


def group_conv2d(
    x: Tensor,  # (B, I, |H|, Y, X)
    weight: Tensor,  # (O, I/groups, |H|, k, k)
    bias: Tensor | None = None,  # (O,)
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    *,
    group: PointGroup | str,
    algorithm: str = "auto",
) -> Tensor:  # (B, O, |H|, Y', X')
    """Convolve over the group: ``y[o, g] = Σ_i Σ_h (g·w[o,i])[h] ⋆ x[i, h] + b[o]``.

    Source: Cohen & Welling (2016), section 6.1. Arguments as ``torch.nn.functional.conv2d``; ``algorithm`` as
    :class:`sepgroupy.nn.GroupConv2d`.

    Raises:
        ArgumentError: shapes do not fit, or the geometry breaks the group's symmetry.
    """
    geometry = (stride, padding, dilation, groups, padding_mode)
    return _run(x, {"weight": weight}, bias, geometry, group, "dense", algorithm)


def separable_group_conv2d(
    x: Tensor,  # (B, I, |H|, Y, X)
    depthwise_weight: Tensor,  # g: (O, I/groups, k, k); gc: (O, 1, 1, k, k)
    pointwise_weight: Tensor,  # (O, I/groups, |H|, 1, 1)
    bias: Tensor | None = None,  # (O,)
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    *,
    group: PointGroup | str,
    algorithm: str = "auto",
) -> Tensor:  # (B, O, |H|, Y', X')
    """Convolve over the group with the filter ``w[o,i,h] = pw[o,i,h]·dw[o,i]`` (g) or ``pw[o,i,h]·dw[o]`` (gc).

    In two steps: ``u[o, i, g] = Σ_h pw[o,i,g⁻¹h] x[i, h]``, then ``y[o, g] = Σ_i (g·dw[o,i]) ⋆ u[o, i, g] + b[o]``;
    for gc the sum over i is part of the first step. Source: Lengyel & van Gemert (2021), section 3.2.
    Arguments as ``torch.nn.functional.conv2d``; ``algorithm`` as :class:`sepgroupy.nn.GroupConv2d`.

    Raises:
        ArgumentError: shapes do not fit, or the geometry breaks the group's symmetry.
    """
    parameters = {"depthwise_weight": depthwise_weight, "pointwise_weight": pointwise_weight}
    geometry = (stride, padding, dilation, groups, padding_mode)
    return _run(x, parameters, bias, geometry, group, "g" if depthwise_weight.ndim == 4 else "gc", algorithm)


def _run(
    x: Tensor,
    parameters: dict[str, Tensor],
    bias: Tensor | None,
    geometry: tuple[Pair, Pair | str, Pair, int, str],
    group: PointGroup | str,
    kind: str,
    algorithm: str,
) -> Tensor:
    group = as_group(group)
    channelwise = parameters.get("pointwise_weight", next(iter(parameters.values())))  # it has all the channels
    spatial = parameters.get("depthwise_weight", channelwise)
    fiber = 1 if kind == "lifting" else group.order
    if channelwise.ndim != 5 or channelwise.shape[2] != fiber:
        raise ArgumentError(f"weight has shape {tuple(channelwise.shape)}; here it must be (O, I, {fiber}, k, k)")
    parsed = Geometry.parse(group, tuple(spatial.shape[-2:]), *geometry)
    plan = Plan.make(group, kind, algorithm, parsed).settle(x)
    plan.check_input(x, channelwise.shape[1] * parsed.groups)
    tables = {name: table.to(x.device) for name, table in plan.tables().items()}
    return plan.apply(x, plan.filters(parameters, tables), bias)
