"""The pointwise group convolution in the group's Fourier domain.

``u[o,g] = Σ_i Σ_h p[o,i,g⁻¹h] x[i,h]`` is a convolution over a finite group at each pixel. The orthogonal matrix Q of
:func:`sepgroupy.groups.fourier_basis` block-diagonalises all of them, so ``u = Qᵀ B(p) (Q x)`` with
``Σ_b copies·size²`` multiplications for each pair (o, i) in place of |H|²: 12 of 64 for p4m, 6 of 16 for p4.

Neighbouring blocks of one size d make a *band*: m blocks, copies counted, which are one batched product. Its rows of
Q are (m·d, |H|), its representations (m, d, d, |H|), its matrices (m, d·O, d·I).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import groupby
from operator import attrgetter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..groups import PointGroup, fourier_basis

Bands = tuple[tuple[Tensor, Tensor], ...]  # (rows, matrices) of each


@lru_cache(maxsize=64)
def _split_basis(group: PointGroup) -> tuple[tuple[NDArray[np.float64], NDArray[np.float64]], ...]:
    basis = fourier_basis(group)
    bands: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for size, members in groupby(basis.blocks, key=attrgetter("size")):
        irreps = [block.irrep for block in members for _ in range(block.copies)]
        start = sum(len(rows) for rows, _ in bands)
        bands.append((basis.matrix[start : start + size * len(irreps)], np.stack(irreps)))
    return tuple(bands)


def fourier_tables(group: PointGroup) -> dict[str, Tensor]:
    """Return the rows and the representations of each band, exact in float64, under names of their own."""
    tables = {}
    for index, (rows, irreps) in enumerate(_split_basis(group)):
        tables[f"rows{index}"], tables[f"irreps{index}"] = (
            torch.tensor(rows, device="cpu"),
            torch.tensor(irreps, device="cpu"),
        )
    return tables


def fourier_bands(
    weight: Tensor,  # (O, I, |H|, 1, 1)
    tables: Mapping[str, Tensor],
) -> Bands:
    """Transform a pointwise filter: ``W_b[(a,o), (c,i)] = Σ_k D_b(k)[a,c] p[o,i,k]`` for each block b."""
    out_channels, in_channels, order = weight.shape[:3]
    flat = weight.reshape(-1, order).t()  # (|H|, O·I)
    bands: list[tuple[Tensor, Tensor]] = []
    while f"rows{len(bands)}" in tables:
        rows, irreps = (tables[f"{name}{len(bands)}"].to(flat) for name in ("rows", "irreps"))
        blocks, size = irreps.shape[:2]
        product = (irreps.reshape(-1, order) @ flat).reshape(blocks, size, size, out_channels, in_channels)
        matrices = product.permute(0, 1, 3, 2, 4).reshape(blocks, size * out_channels, size * in_channels)
        bands.append((rows, matrices))
    return tuple(bands)


def fourier_pointwise(
    x: Tensor,  # (B, |H|, I, Y, X)
    bands: Bands,
) -> Tensor:  # (B, |H|, O, Y, X)
    """Compute ``u = Σ_bands Qᵀ (W (Q x))``."""
    u: Tensor | None = None
    for rows, matrices in bands:
        u = from_band(matrices @ to_band(x, rows, matrices.shape[0]), rows, u)
    assert u is not None
    channels = bands[0][1].shape[1] * bands[0][1].shape[0] // bands[0][0].shape[0]
    return u.reshape(*x.shape[:2], channels, *x.shape[3:])


def to_band(x: Tensor, rows: Tensor, blocks: int) -> Tensor:
    """Transform maps (B, |H|, C, Y, X) to the blocks of one band, (B, m, d·C, Y·X)."""
    size = rows.shape[0] // blocks
    transformed = torch.bmm(rows.expand(x.shape[0], -1, -1), x.flatten(2))
    return transformed.reshape(x.shape[0], blocks, size * x.shape[2], x.shape[3] * x.shape[4])


def from_band(product: Tensor, rows: Tensor, total: Tensor | None) -> Tensor:
    """Transform one band (B, m, d·C, Y·X) back and add it, in place, to the total (B, |H|, C·Y·X)."""
    batch, blocks, width, pixels = product.shape
    flat = product.reshape(batch, rows.shape[0], blocks * width // rows.shape[0] * pixels)
    back = rows.t().to(flat.dtype).expand(batch, -1, -1)  # autocast does not see to operations in place
    return torch.bmm(back, flat) if total is None else total.baddbmm_(back, flat)
