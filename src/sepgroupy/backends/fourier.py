"""The pointwise group convolution in the group's Fourier domain, by PyTorch's matrix products.

``u[o,g] = Σ_i Σ_h p[o,i,g⁻¹h] x[i,h]`` is a convolution over a finite group at each pixel. The orthogonal matrix Q of
:func:`sepgroupy.groups.fourier_basis` block-diagonalises all of them, so ``u = Qᵀ B(p) (Q x)`` with
``Σ_b copies·size²`` multiplications for each pair (o, i) in place of |H|²: 12 of 64 for p4m, 6 of 16 for p4, 64 of 576
for the rotations of a cube, 128 of 2,304 for all its symmetries.

Neighbouring blocks of one size d make a *band*: m blocks, copies counted, which are one batched product. Its rows of
Q are (m·d, |H|), its representations (m, d, d, |H|), its matrices (m, d·O, d·I).

The algorithm has two forms. Called directly, each transform is a product with Q. In a compiled program, each is written
out as sums of feature maps with numbers, which Inductor fuses with the batch norm and ReLU before it: a layer is then
a kernel for both and the transform, one ``bmm`` for each band, a kernel for the inverse transform, and the depthwise
convolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Backend, Filters, convolve, pad_all, repeat_bias
from .constants import band_sizes, fourier_matrices, fourier_rows, spatial_index
from .conv_spec import ConvSpec
from .filter_bank import expand_filter, with_group_axis
from .group_axis import split_group_from_channels
from .tracing import is_exporting

MAX_SUMS = 256
"""Largest |H|² for which a compiled program has transforms written out as sums: the time to compile grows with it."""


class Fourier(Backend):
    """Compute the pointwise step of a gc layer, or a whole 1×1 dense layer, in the group's Fourier domain."""

    name = "fourier"

    def unsupported_reason(self, spec: ConvSpec, x: Tensor | None = None) -> str | None:
        """Return None for gc layers and 1×1 dense layers with groups=1, not transposed."""
        if spec.groups != 1 or spec.transposed:
            return "groups=1, and no transposed convolution"
        if spec.kind == "gc" or (spec.kind == "dense" and spec.pointwise):
            return None
        return "a layer of kind gc, or kernel_size=1 in a layer of kind dense"

    def expand_filters(self, spec: ConvSpec, parameters: Mapping[str, Tensor]) -> Filters:
        """Return the depthwise filter bank or None, then rows and matrices of each band."""
        weight = parameters["weight" if spec.kind == "dense" else "pointwise_weight"]
        constants = fourier_matrices(spec, weight.device, weight.dtype)
        bands: list[Tensor | None] = []
        for index, (blocks, size) in enumerate(band_sizes(spec)):
            bands += [constants[2 * index], band_matrices(weight, constants[2 * index + 1], blocks, size)]
        if spec.kind == "dense":
            return (None, *bands)
        depthwise = with_group_axis(parameters["depthwise_weight"], spec.dimension)
        (table,) = spatial_index(spec, depthwise.device)
        return (expand_filter(depthwise, table), *bands)

    def run(self, spec: ConvSpec, x: Tensor, filters: Filters, bias: Tensor | None) -> Tensor:
        """Convolve."""
        depthwise, *bands = filters
        if depthwise is None:
            x = _pixels_of_stride(x, spec)
        written_out = torch.compiler.is_compiling() and not is_exporting() and spec.group.order**2 <= MAX_SUMS
        u = (pointwise_by_sums if written_out else pointwise)(x.transpose(1, 2), bands, spec)
        if depthwise is None:
            u = u if bias is None else u + bias.to(u.dtype).view(-1, *(1,) * spec.dimension)
            return u.transpose(1, 2)
        y = convolve(u.flatten(1, 2), depthwise, repeat_bias(bias, spec), spec, depthwise.shape[0])
        return split_group_from_channels(y, spec.group.order)


def band_matrices(
    weight: Tensor,  # (O, I, |H|, 1, …)
    irreps: Tensor,  # (m, d, d, |H|)
    blocks: int,  # m
    size: int,  # d
) -> Tensor:  # (m, d·O, d·I)
    """Transform a pointwise filter: ``W_b[(a,o), (c,i)] = Σ_k D_b(k)[a,c] p[o,i,k]`` for each block b of a band."""
    out_channels, in_channels, order = weight.shape[:3]
    product = irreps.reshape(-1, order) @ weight.reshape(-1, order).t()
    matrices = product.reshape(blocks, size, size, out_channels, in_channels).permute(0, 1, 3, 2, 4)
    return matrices.reshape(blocks, size * out_channels, size * in_channels)


def pointwise(
    x: Tensor,  # (B, |H|, I, *spatial)
    bands: Sequence[Tensor | None],  # rows and matrices of each
    spec: ConvSpec,
) -> Tensor:  # (B, |H|, O, *spatial)
    """Compute ``u = Σ_bands Qᵀ (W (Q x))`` by matrix products."""
    total: Tensor | None = None
    channels, pixels = 0, 1
    for size_of_axis in x.shape[3:]:
        pixels = pixels * size_of_axis
    maps = x.flatten(2)
    for index, (blocks, size) in enumerate(band_sizes(spec)):
        rows, matrices = bands[2 * index], bands[2 * index + 1]
        assert rows is not None
        assert matrices is not None
        channels = matrices.shape[1] // size
        x_fourier = torch.bmm(rows.expand(x.shape[0], -1, -1), maps)
        x_fourier = x_fourier.reshape(x.shape[0], blocks, size * x.shape[2], pixels)
        product = matrices @ x_fourier
        product = product.reshape(x.shape[0], blocks * size, channels * pixels)
        inverse = rows.t().to(product.dtype).expand(x.shape[0], -1, -1)
        total = torch.bmm(inverse, product) if total is None else torch.baddbmm(total, inverse, product)
    assert total is not None
    return total.reshape(*x.shape[:2], channels, *x.shape[3:])


def pointwise_by_sums(
    x: Tensor,  # (B, |H|, I, *spatial)
    bands: Sequence[Tensor | None],  # rows and matrices of each
    spec: ConvSpec,
) -> Tensor:  # (B, |H|, O, *spatial)
    """Compute ``u = Qᵀ (W (Q x))``, both transforms as sums, for a compiler.

    The group axis comes first and the pixels of all images last, so that a band is one ``bmm`` of m products.
    """
    batch, order = x.shape[:2]
    rows, maps = fourier_rows(spec), x.flatten(3).transpose(1, 2).unbind(2)  # |H| of (B, I, P)
    products: list[Tensor] = []
    for index, (blocks, size) in enumerate(band_sizes(spec)):
        matrices, start = bands[2 * index + 1], len(products)
        assert matrices is not None
        transformed = [_combine(row, maps).transpose(0, 1) for row in rows[start : start + blocks * size]]
        x_fourier = torch.stack(transformed).reshape(blocks, matrices.shape[2], -1)  # (m, d·I, B·P)
        product = torch.bmm(matrices, x_fourier)
        products += product.reshape(blocks * size, matrices.shape[1] // size, batch, -1).unbind(0)
    inverse = [_combine([row[g] for row in rows], products).transpose(0, 1) for g in range(order)]
    return torch.stack(inverse, 1).unflatten(3, x.shape[3:])


def _combine(numbers: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """Return ``Σ_i numbers[i]·tensors[i]``, without the terms that are zero."""
    terms = [number * tensor for number, tensor in zip(numbers, tensors, strict=True) if number]
    return sum(terms[1:], terms[0])


def _pixels_of_stride(x: Tensor, spec: ConvSpec) -> Tensor:
    """Pad x and select the pixels that a strided kernel of one element reads."""
    if any(spec.padding):
        x = pad_all(x.flatten(1, 2), spec).unflatten(1, x.shape[1:3])
    if max(spec.stride) == 1:
        return x
    pixels: Any = (..., *(slice(None, None, step) for step in spec.stride))
    return x[pixels]  # type: ignore[no-any-return]
