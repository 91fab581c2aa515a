"""The Fourier basis of a finite point group: a real orthogonal matrix that makes its convolutions block-diagonal."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ._finite import PointGroup

Array = NDArray[np.float64]

_TOLERANCE = 1e-9  # numbers that differ at all differ by far more, and rounding errors are far smaller


@dataclass(frozen=True, eq=False)
class Block:
    """One real irreducible representation D of the group, and the rows of the basis that belong to it.

    Copy j of D occupies the rows ``start + j·size`` to ``start + (j + 1)·size``. There are as many copies as
    D has dimensions if it is of real type, half as many if complex, a quarter if quaternionic.
    """

    start: int
    size: int
    copies: int
    irrep: Array
    """``irrep[:, :, k]`` is the orthogonal matrix D(k); shape (size, size, \\|H\\|)."""


@dataclass(frozen=True, eq=False)
class FourierBasis:
    """An orthogonal matrix Q that makes every convolution over the group block-diagonal.

    The convolution ``u[g] = Σ_h p[g⁻¹h] x[h]`` is the matrix ``M(p) = Σ_k p[k] ρ(k)`` with ``(ρ(k) x)[g] = x[gk]``.
    The diagonal of ``Q M(p) Qᵀ`` has, for each block and each of its copies, the matrix
    ``Σ_k p[k] D(k) = irrep @ p``; all other entries are zero.
    """

    matrix: Array
    """Q, shape (\\|H\\|, \\|H\\|); the first row is 1/√\\|H\\| throughout."""
    blocks: tuple[Block, ...]
    """In the order of the rows: the trivial irrep, then by size."""

    @property
    def multiplications(self) -> int:
        """The multiplications of all blocks together; M(p) takes \\|H\\|²."""
        return sum(block.copies * block.size**2 for block in self.blocks)


@lru_cache(maxsize=256)
def fourier_basis(group: PointGroup) -> FourierBasis:
    """Return the real Fourier basis of a point group, computed from its Cayley table.

    The shifts ``(L(a) x)[g] = x[a⁻¹g]`` and their sums are all that commutes with every M(p), so eigenspaces of
    symmetric sums are invariant under every M(p). The smallest such spaces carry the irreps, and the entries
    ``D(g)[i, j]`` of an irrep, as functions of g, are its rows of the basis: j counts within copy i.

    >>> basis = fourier_basis(PointGroup.generate([[[0, -1], [1, 0]]]))
    >>> (basis.matrix * 2**0.5).round(3).tolist()[2:]
    [[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, -1.0]]
    >>> [(block.start, block.size, block.copies) for block in basis.blocks], basis.multiplications
    ([(0, 1, 1), (1, 1, 1), (2, 2, 1)], 6)

    Source: J.-P. Serre, Linear Representations of Finite Groups, sections 2.2 (orthogonality of the entries), 2.4
    (the regular representation) and 13.2 (irreps over the real numbers and their three types).
    """
    rows = np.zeros((0, group.order))
    parts: list[tuple[Array, Array]] = []
    while len(rows) < group.order:
        remainder = np.linalg.qr(rows.T, mode="complete")[0].T[len(rows) :]
        space = _irreducible_subspace(remainder, group)
        projections = space.T @ space  # of the standard basis vectors: a basis of these has many zeros
        basis = _orthonormal(projections[:, None])[:, 0]
        # An error in the space enters these matrices squared, so they are exact to rounding.
        irrep = np.tensordot(basis, basis[:, group.cayley_table], axes=(1, 1))
        copies = _orthonormal(irrep)
        parts.append((irrep, copies))
        rows = np.concatenate([rows, *copies])
    parts.sort(key=lambda part: len(part[0]))
    blocks, start = [], 0
    for irrep, copies in parts:
        blocks.append(Block(start, len(irrep), len(copies), _frozen(irrep)))
        start += len(irrep) * len(copies)
    return FourierBasis(_frozen(np.concatenate([copy for _, copies in parts for copy in copies])), tuple(blocks))


def _irreducible_subspace(space: Array, group: PointGroup) -> Array:
    # A space that no symmetric sum of shifts divides is irreducible. A shift that does not divide it does not
    # divide its subspaces either, so one pass over all of them is enough.
    for shift in group.left_quotients:
        half = space[:, shift] @ space.T
        compressed = half + half.T
        if np.abs(compressed - compressed[0, 0] * np.eye(len(space))).max() > _TOLERANCE:
            values, vectors = np.linalg.eigh(compressed)
            space = vectors[:, values > values[-1] - _TOLERANCE].T @ space
    return space


def _orthonormal(candidates: Array) -> Array:
    # Gram-Schmidt on candidates of shape (r, |H|), each a copy of one irrep of dimension r (or r = 1, any row).
    # Products of two copies commute with the irrep; so the remainder of a copy is a multiple of an orthonormal one.
    found: list[Array] = []
    while (norms := np.linalg.norm(candidates, axis=(1, 2))).max() > _TOLERANCE:
        first = np.argmax(norms > norms.max() / 2)  # the first that is well clear of rounding
        found.append(candidates[first] * (candidates.shape[1] ** 0.5 / norms[first]))
        candidates = candidates - (candidates @ found[-1].T) @ found[-1]
    return np.stack(found)


def _frozen(array: Array) -> Array:
    array[np.abs(array) < _TOLERANCE] = 0  # rounding errors in place of a zero
    array.setflags(write=False)
    return array
