"""Convolutions on a CPU a few images at a time, so that what lies between two steps stays in the cache.

A step that writes a whole map and another that reads it back spend their time on memory, and most of that on the
pages of maps freshly allocated. Here batch norm, ReLU, pointwise and depthwise step follow each other on a tile of a
few MiB, forward and backward; only the input is kept for the backward pass and the rest is made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ._affine import Affine
from ._geometry import Geometry
from ._pointwise import Bands, fourier_pointwise, from_band, to_band

TILE_BYTES = 4 * 2**20

Gradients = tuple[Tensor | None, ...]


class Body(Protocol):
    """One way to convolve a tile, with its gradient."""

    def forward(self, x: Tensor, filters: tuple[Tensor, ...]) -> Tensor:
        """Convolve (n, |H|, I, Y, X) to (n, |H|, O, Y', X'); made of differentiable operations."""

    def backward(self, x: Tensor, filters: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, Gradients]:
        """Return the gradients of x and of each filter."""


@dataclass(frozen=True)
class BankBody:
    """One convolution with the bank of all transformed filters; filters are (bank, bias or nothing)."""

    geometry: Geometry

    def forward(self, x: Tensor, filters: tuple[Tensor, ...]) -> Tensor:
        """Convolve with the bank."""
        y = _conv(x.flatten(1, 2), self.geometry, 1, *filters)
        return y.unflatten(1, (x.shape[1], y.shape[1] // x.shape[1]))

    def backward(self, x: Tensor, filters: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, Gradients]:
        """Return the gradients of x, bank and bias."""
        maps, gradients = _conv_backward(grad.flatten(1, 2), x.flatten(1, 2), self.geometry, 1, filters)
        return maps.view_as(x), gradients


@dataclass(frozen=True)
class FourierBody:
    """The pointwise step in the Fourier domain, and a depthwise one if there is a geometry.

    Filters are rows and matrices of each band, then the depthwise bank, then the bias or nothing.
    """

    bands: int
    geometry: Geometry | None

    def forward(self, x: Tensor, filters: tuple[Tensor, ...]) -> Tensor:
        """Pointwise, then depthwise."""
        bands, rest = self._split(filters)
        return self._depthwise(fourier_pointwise(x, bands), rest)

    def backward(self, x: Tensor, filters: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, Gradients]:
        """Go back through both steps, making the maps between them again."""
        bands, rest = self._split(filters)
        inputs = [to_band(x, rows, matrices.shape[0]) for rows, matrices in bands]
        last: Gradients
        if self.geometry is None:
            last = tuple(grad.sum((0, 3, 4)).flatten() for _ in rest)
        else:
            u: Tensor | None = None
            for (rows, matrices), band in zip(bands, inputs, strict=True):
                u = from_band(matrices @ band, rows, u)
            assert u is not None
            maps = u.reshape(x.shape[0], rest[0].shape[0], *x.shape[3:])
            du, last = _conv_backward(grad.flatten(1, 2), maps, self.geometry, maps.shape[1], rest)
            grad = du.unflatten(1, (x.shape[1], du.shape[1] // x.shape[1]))
        dx: Tensor | None = None
        gradients: list[Tensor | None] = []
        for (rows, matrices), band in zip(bands, inputs, strict=True):
            du = to_band(grad, rows, matrices.shape[0])
            gradients += [None, (du @ band.transpose(-1, -2)).sum(0)]
            dx = from_band(matrices.transpose(-1, -2).contiguous() @ du, rows, dx)
        assert dx is not None
        return dx.view_as(x), (*gradients, *last)

    def _split(self, filters: tuple[Tensor, ...]) -> tuple[Bands, tuple[Tensor, ...]]:
        pairs = iter(filters[: 2 * self.bands])
        return tuple(zip(pairs, pairs, strict=True)), filters[2 * self.bands :]

    def _depthwise(self, u: Tensor, rest: tuple[Tensor, ...]) -> Tensor:
        if self.geometry is None:
            return u + rest[0].view(1, *u.shape[1:3], 1, 1) if rest else u
        y = _conv(u.flatten(1, 2), self.geometry, u.shape[1] * u.shape[2], *rest)
        return y.unflatten(1, u.shape[1:3])


class TiledConv(torch.autograd.Function):
    """``y = body(relu(norm(x)))``, or ``body(x)`` without a norm, tile by tile.

    The maps are in memory order, (B, |H|, C, Y, X). A second derivative is taken through the plain operations.
    """

    @staticmethod
    def forward(
        ctx: Any,
        body: Body,
        norm: Affine | None,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        *filters: Tensor,
    ) -> Tensor:
        """Convolve; gamma and beta are those of the norm, which PyTorch must see by themselves."""
        ctx.body, ctx.norm = body, norm and replace(norm, gamma=None, beta=None)
        ctx.save_for_backward(x, gamma, beta, *filters)
        out: Tensor | None = None
        for part in _tiles(x):
            y = body.forward(_before(norm, x[part]), filters)
            if y.shape[0] == x.shape[0]:
                return torch.ops.aten._unsafe_view(y, y.shape)  # no view, so that a caller may add to it in place
            out = y.new_empty(x.shape[0], *y.shape[1:]) if out is None else out
            out[part] = y
        assert out is not None
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Return the gradients of x, gamma, beta and the filters."""
        x, gamma, beta, *filters = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (None, None, *_differentiable_backward(ctx, x, gamma, beta, filters, grad))
        body, norm, filters = ctx.body, ctx.norm and replace(ctx.norm, gamma=gamma, beta=beta), tuple(filters)
        dx = torch.empty_like(x)
        sums: list[Tensor | None] = [None] * (2 + len(filters))
        for part in _tiles(x):
            maps = _before(norm, x[part])
            dmaps, gradients = body.backward(maps, filters, grad[part])
            if norm:
                dmaps, *affine = _norm_backward(dmaps, maps, x[part], norm)
                gradients = (*affine, *gradients)
            else:
                gradients = (None, None, *gradients)
            dx[part] = dmaps
            sums = [g if s is None else s.add_(g) if g is not None else s for s, g in zip(sums, gradients, strict=True)]
        if norm and norm.batch:
            _through_statistics(dx, x, norm, sums[0], sums[1])
        if gamma is None:
            sums[:2] = None, None
        return (None, None, dx, *sums)


def _tiles(x: Tensor) -> Iterator[slice]:
    images = max(1, TILE_BYTES // max(1, x[:1].numel() * x.element_size()))
    for start in range(0, max(1, x.shape[0]), images):
        yield slice(start, min(start + images, x.shape[0]))


def _conv(x: Tensor, geometry: Geometry, groups: int, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    padding = (geometry.padding[0], geometry.padding[2])
    return F.conv2d(x, weight, bias, geometry.stride, padding, geometry.dilation, groups)


def _conv_backward(
    grad: Tensor, x: Tensor, geometry: Geometry, groups: int, filters: tuple[Tensor, ...]
) -> tuple[Tensor, Gradients]:
    weight, *bias = filters
    padding = [geometry.padding[0], geometry.padding[2]]
    dx, *gradients = torch.ops.aten.convolution_backward(
        grad, x, weight, [weight.shape[0]] if bias else None, geometry.stride, padding, geometry.dilation,
        False, [0, 0], groups, [True, True, bool(bias)],
    )  # fmt: skip
    return dx, tuple(gradients[: len(filters)])


def _before(norm: Affine | None, x: Tensor) -> Tensor:
    return norm.relu(x.flatten(0, 1)).view_as(x) if norm else x


def _norm_backward(grad: Tensor, maps: Tensor, x: Tensor, norm: Affine) -> tuple[Tensor, Tensor, Tensor]:
    """Go back through ReLU and affine map, statistics held fixed: gradients of x, gamma and beta."""
    grad = torch.ops.aten.threshold_backward(grad, maps, 0).flatten(0, 1)
    weight = torch.ones_like(norm.mean) if norm.gamma is None else norm.gamma
    dx, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
        grad, x.flatten(0, 1), weight, norm.mean, norm.var, None, None, False, norm.eps, [True, True, True]
    )
    return dx.view_as(x), dgamma, dbeta


def _through_statistics(dx: Tensor, x: Tensor, norm: Affine, dgamma: Tensor | None, dbeta: Tensor | None) -> None:
    """Add to dx, in place, what passes through mean and variance: ``-γ/σ·(dβ + x̂·dγ)/n`` with x̂ = (x - μ)/σ."""
    assert dgamma is not None
    assert dbeta is not None
    count = x.numel() // x.shape[2]
    scale = (norm.var + norm.eps).rsqrt()
    factor = -scale / count if norm.gamma is None else -scale * norm.gamma / count
    for part in _tiles(x):
        maps = x[part].flatten(0, 1)
        # The affine map that batch norm itself would make of x, with γ' = factor·dγ and β' = factor·dβ.
        dx[part] += F.batch_norm(
            maps, norm.mean, norm.var, factor * dgamma, factor * dbeta, False, 0.0, norm.eps
        ).view_as(x[part])


def _differentiable_backward(
    ctx: Any, x: Tensor, gamma: Tensor | None, beta: Tensor | None, filters: list[Tensor], grad: Tensor
) -> tuple[Any, ...]:
    inputs, needs = [x, gamma, beta, *filters], ctx.needs_input_grad[2:]
    norm = ctx.norm and replace(ctx.norm, gamma=gamma, beta=beta)
    maps = norm.relu(x.flatten(0, 1), derive=True).view_as(x) if norm else x
    y = ctx.body.forward(maps, tuple(filters))
    wanted = [t for t, need in zip(inputs, needs, strict=True) if need and t is not None]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return tuple(next(found) if need else None for need in needs)
