from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepgroupy.groups import C1, C2, C4, D1, D2, D4, PointGroup, as_group, fourier_basis

X_TURN = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
Z_TURN = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
INVERSION = [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]
CYCLE = [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
I_UNIT = [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]]  # left factors in the quaternions
J_UNIT = [[0, 0, -1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, -1, 0, 0]]

# For each group: (size, copies) of its real irreps, as the character tables of the literature have them.
CASES = {
    "C1": (C1, [(1, 1)]),
    "C2": (C2, [(1, 1)] * 2),
    "C4": (C4, [(1, 1)] * 2 + [(2, 1)]),
    "D1": (D1, [(1, 1)] * 2),
    "D2": (D2, [(1, 1)] * 4),
    "D4": (D4, [(1, 1)] * 4 + [(2, 2)]),
    "O": (PointGroup.generate([X_TURN, Z_TURN]), [(1, 1)] * 2 + [(2, 2)] + [(3, 3)] * 2),
    "Oh": (PointGroup.generate([X_TURN, Z_TURN, INVERSION]), [(1, 1)] * 4 + [(2, 2)] * 2 + [(3, 3)] * 4),
    "C3": (PointGroup.generate([CYCLE]), [(1, 1), (2, 1)]),  # complex type
    "C6": (PointGroup.generate([CYCLE, INVERSION]), [(1, 1)] * 2 + [(2, 1)] * 2),
    "Q8": (PointGroup.generate([I_UNIT, J_UNIT]), [(1, 1)] * 4 + [(4, 1)]),  # quaternionic type
}
GROUPS = pytest.mark.parametrize("group", [g for g, _ in CASES.values()], ids=list(CASES))


def convolution_matrix(group: PointGroup, p: np.ndarray) -> np.ndarray:
    """M[g, h] = p[g⁻¹h], written out: h = gk has the weight p[k]."""
    matrix = np.zeros((group.order, group.order))
    for g in range(group.order):
        for k in range(group.order):
            matrix[g, group.cayley_table[g, k]] = p[k]
    return matrix


def assert_block_diagonal(group: PointGroup, seed: int = 0) -> None:
    """Q is orthogonal, and Q M(p) Qᵀ consists of the blocks ``irrep @ p``, equal in all copies, and zeros."""
    basis = fourier_basis(group)
    q = basis.matrix
    np.testing.assert_allclose(q @ q.T, np.eye(group.order), rtol=0, atol=1e-14)
    p = np.random.default_rng(seed).standard_normal(group.order)
    expected = np.zeros_like(q)
    row = 0
    for block in basis.blocks:
        assert block.start == row
        assert block.irrep.shape == (block.size, block.size, group.order)
        for _ in range(block.copies):
            span = slice(row, row + block.size)
            expected[span, span] = block.irrep @ p
            row += block.size
    assert row == group.order
    np.testing.assert_allclose(q @ convolution_matrix(group, p) @ q.T, expected, rtol=0, atol=1e-13)


@GROUPS
def test_every_convolution_becomes_block_diagonal_with_equal_copies(group: PointGroup) -> None:
    for seed in range(3):
        assert_block_diagonal(group, seed)


@GROUPS
def test_the_blocks_are_orthogonal_representations_of_the_group(group: PointGroup) -> None:
    for block in fourier_basis(group).blocks:
        matrices = np.moveaxis(block.irrep, -1, 0)
        products = matrices[:, None] @ matrices[None]
        np.testing.assert_allclose(matrices[group.cayley_table], products, rtol=0, atol=1e-14)
        np.testing.assert_allclose(matrices[group.inverses], matrices.swapaxes(1, 2), rtol=0, atol=1e-14)


@GROUPS
def test_the_blocks_have_as_many_free_parameters_as_the_filter(group: PointGroup) -> None:
    blocks = fourier_basis(group).blocks
    ranks = [int(np.linalg.matrix_rank(block.irrep.reshape(-1, group.order))) for block in blocks]
    assert ranks == [block.size * block.copies for block in blocks]
    assert sum(ranks) == group.order
    characters = np.array([np.trace(block.irrep) for block in blocks])  # of inequivalent irreps: orthogonal
    gram = characters @ characters.T / group.order
    np.testing.assert_allclose(gram, np.diag([b.size / b.copies for b in blocks]), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("group", "irreps"), CASES.values(), ids=list(CASES))
def test_irreps_and_their_copies_are_those_of_the_literature(group: PointGroup, irreps: list[tuple[int, int]]) -> None:
    basis = fourier_basis(group)
    assert [(block.size, block.copies) for block in basis.blocks] == irreps
    np.testing.assert_allclose(basis.matrix[0], group.order**-0.5, rtol=1e-14)
    np.testing.assert_allclose(basis.blocks[0].irrep, 1, rtol=1e-14)


def test_multiplications_saved() -> None:
    counts = {name: fourier_basis(group).multiplications for name, (group, _) in CASES.items()}
    assert (counts["C4"], counts["D4"], counts["O"], counts["Oh"]) == (6, 12, 64, 128)
    assert counts["O"] * 9 == 24**2
    assert counts["Oh"] * 18 == 48**2


def test_the_bases_of_p4_and_p4m_are_sparse() -> None:
    p4 = [[1, 1, 1, 1], [1, -1, 1, -1], [1, 0, -1, 0], [0, 1, 0, -1]] / np.sqrt([[4], [4], [2], [2]])
    np.testing.assert_allclose(fourier_basis(C4).matrix, p4, rtol=0, atol=1e-15)
    p4m = fourier_basis(D4).matrix
    np.testing.assert_allclose(np.abs(p4m[:4]), 8**-0.5, rtol=1e-14)
    assert (p4m[4:] == 0).sum() == 16  # exactly zero
    np.testing.assert_allclose(np.abs(p4m[4:][p4m[4:] != 0]), 0.5, rtol=1e-14)


signed_permutations = st.permutations(range(3)).flatmap(
    lambda order: st.lists(st.sampled_from([-1, 1]), min_size=3, max_size=3).map(
        lambda signs: [[signs[i] * (order[i] == j) for j in range(3)] for i in range(3)]
    )
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(signed_permutations, min_size=1, max_size=3))
def test_any_list_of_generators_has_its_basis(generators: list[list[list[int]]]) -> None:
    assert_block_diagonal(as_group(generators))


@GROUPS
def test_the_basis_is_made_once_read_only_and_always_the_same(group: PointGroup) -> None:
    basis = fourier_basis(group)
    assert fourier_basis(PointGroup(group.elements)) is basis
    with pytest.raises(ValueError, match="read-only"):
        basis.matrix[0, 0] = 2
    with pytest.raises(ValueError, match="read-only"):
        basis.blocks[0].irrep[0, 0, 0] = 2
    again = fourier_basis.__wrapped__(group)
    np.testing.assert_array_equal(again.matrix, basis.matrix)
    for block, other in zip(basis.blocks, again.blocks, strict=True):
        np.testing.assert_array_equal(block.irrep, other.irrep)
