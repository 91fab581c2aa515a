"""Folding the group axis into the batch and back."""

from __future__ import annotations

import pytest
import torch

from sepgroupy.errors import ArgumentError
from sepgroupy.functional import fold, unfold


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_fold_lays_every_elements_map_in_the_batch(batch: int) -> None:
    x = torch.randn(batch, 2, 4, 5, 6)
    folded = fold(x)
    assert folded.shape == (batch * 4, 2, 5, 6)
    for b in range(batch):
        for g in range(4):
            assert torch.equal(folded[4 * b + g], x[b, :, g])


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_unfold_undoes_fold(batch: int) -> None:
    x = torch.randn(batch, 2, 8, 5, 6)
    assert torch.equal(unfold(fold(x), 8), x)


def test_unfold_is_a_view_and_folding_it_again_too() -> None:
    planar = torch.randn(12, 2, 5, 6)
    x = unfold(planar, 4)
    assert x.shape == (3, 2, 4, 5, 6)
    assert x.data_ptr() == planar.data_ptr()
    assert fold(x).data_ptr() == planar.data_ptr()
    assert fold(x).is_contiguous()


def test_unfold_takes_vectors() -> None:
    x = torch.randn(6, 5)
    assert torch.equal(unfold(x, 3), x.reshape(2, 3, 5).transpose(1, 2))


def test_fold_refuses_planar_maps() -> None:
    with pytest.raises(ArgumentError, match=r"x has shape \(2, 3, 4, 5\)"):
        fold(torch.zeros(2, 3, 4, 5))


def test_unfold_refuses_a_batch_that_the_order_does_not_divide() -> None:
    with pytest.raises(ArgumentError, match=r"x has 6 rows.*order \(=4\)"):
        unfold(torch.zeros(6, 2, 3, 3), 4)
