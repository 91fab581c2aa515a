"""The ways of a plan, carried out: PyTorch's own operations, tile by tile or not, and the compiled kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _native
from ._affine import Affine
from ._geometry import Geometry
from ._layout import merge_fiber, split_fiber
from ._pointwise import Bands, fourier_pointwise
from ._tiled import BankBody, FourierBody, TiledConv

if TYPE_CHECKING:
    from ._plan import Plan


@dataclass(frozen=True)
class Filters:
    """Filters ready for use: bands of the pointwise step, and banks of all transformed copies.

    The kernels read parameters as they are: there the banks are the dense filter, or depthwise and pointwise factor.
    """

    banks: tuple[Tensor, ...]
    bands: Bands = ()


def by_kernels(
    plan: Plan,
    x: Tensor,
    filters: Filters,
    bias: Tensor | None,
    norm: Affine | None,
    shortcut: Tensor | None,
    moments: bool,
    fork: bool,
) -> tuple[Tensor, Tensor]:
    """Convolve by the compiled kernels; return x too."""
    *depthwise, weight = filters.banks
    maps = x.unsqueeze(1) if plan.kind == "lifting" else x.transpose(1, 2)
    if plan.geometry.pads_apart:
        maps = _pad(maps.flatten(0, 1), plan.geometry)[0].unflatten(0, maps.shape[:2])
    added = None if shortcut is None else shortcut.transpose(1, 2)
    inputs = _native.Inputs(maps, weight, depthwise[0] if depthwise else None, bias, shortcut=added)
    if norm:
        inputs = inputs._replace(gamma=norm.gamma, beta=norm.beta, mean=norm.mean, var=norm.var)
    eps, batch = (norm.eps, norm.batch) if norm else (0.0, False)
    assert plan.call is not None
    fork = fork and not plan.geometry.pads_apart and plan.kind != "lifting"
    y, again = _native.convolve(inputs, eps, batch, plan.call, moments, fork)
    return y.transpose(1, 2), again.transpose(1, 2) if fork else x


def by_torch(plan: Plan, x: Tensor, filters: Filters, bias: Tensor | None, norm: Affine | None) -> Tensor:
    """Convolve by PyTorch's own operations."""
    order, groups = plan.group.order, plan.geometry.groups
    if bias is not None:
        bias = bias.reshape(groups, 1, -1).expand(-1, order, -1).flatten()
    if filters.bands and not filters.banks:  # 1×1: only the pixels that its stride reaches
        x = _stride_pixels(x, plan.geometry)
    if (filters.bands or norm) and plan.tiles(x):
        return _by_tiles(plan, x, filters, bias, norm)
    if filters.bands:
        u = fourier_pointwise(x.transpose(1, 2), filters.bands).flatten(1, 2)
        if not filters.banks:
            return split_fiber(u if bias is None else u + bias.to(u.dtype).view(-1, 1, 1), order)
        (depthwise,) = filters.banks
        return split_fiber(conv2d(u, depthwise, bias, plan.geometry, depthwise.shape[0]), order)
    maps = x if plan.kind == "lifting" else merge_fiber(x, groups)
    if len(filters.banks) == 1:
        return split_fiber(conv2d(maps, filters.banks[0], bias, plan.geometry), order, groups)
    pointwise, depthwise = filters.banks
    if plan.kind == "gc":
        u = F.conv2d(maps, pointwise, groups=groups)
    else:
        u = _pointwise_apart(maps, pointwise, order, groups)
    return split_fiber(conv2d(u, depthwise, bias, plan.geometry, depthwise.shape[0]), order, groups)


def _by_tiles(plan: Plan, x: Tensor, filters: Filters, bias: Tensor | None, norm: Affine | None) -> Tensor:
    tensors = [t for band in filters.bands for t in band] + [*filters.banks] + ([] if bias is None else [bias])
    body = FourierBody(len(filters.bands), plan.geometry if filters.banks else None)
    affine = (norm.gamma, norm.beta) if norm else (None, None)
    maps = x.transpose(1, 2).contiguous()
    y = TiledConv.apply(body if filters.bands else BankBody(plan.geometry), norm, maps, *affine, *tensors)
    return y.transpose(1, 2)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, groups: int | None = None) -> Tensor:
    """Apply ``torch.nn.functional.conv2d`` under the geometry, whatever its padding."""
    x, padding = _pad(x, geometry)
    groups = geometry.groups if groups is None else groups
    return F.conv2d(x, weight, bias, geometry.stride, padding, geometry.dilation, groups)


def _stride_pixels(x: Tensor, geometry: Geometry) -> Tensor:
    """Pad x and keep the pixels that a 1×1 kernel reads."""
    if any(geometry.padding):
        top, bottom, left, right = geometry.padding
        mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
        x = F.pad(x.flatten(1, 2), (left, right, top, bottom), mode=mode).unflatten(1, x.shape[1:3])
    return x if geometry.stride == (1, 1) else x[..., :: geometry.stride[0], :: geometry.stride[1]]


def _pad(x: Tensor, geometry: Geometry) -> tuple[Tensor, tuple[int, int]]:
    """Pad x where ``conv2d`` itself can not; return it with the padding that is left to do."""
    top, bottom, left, right = geometry.padding
    if not geometry.pads_apart:
        return x, (top, left)
    mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
    return F.pad(x, (left, right, top, bottom), mode=mode), (0, 0)


def _pointwise_apart(
    x: Tensor,  # (B, groups·|H|·I/groups, Y, X)
    bank: Tensor,  # (groups·|H|·O/groups, |H|·I/groups, 1, 1)
    order: int,
    groups: int,
) -> Tensor:  # (B, groups·|H|·O/groups·I/groups, Y, X)
    """Sum over h alone, each input channel by itself: the first step of a g layer."""
    maps = x.unflatten(1, (groups, order, x.shape[1] // (groups * order)))
    matrix = bank.reshape(groups, bank.shape[0] // groups, order, maps.shape[3])
    return torch.einsum("kohi,bkhiyx->bkoiyx", matrix, maps).flatten(1, 3)
