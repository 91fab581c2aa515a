"""Merging the group axis into the batch and splitting it off again."""

from __future__ import annotations

import pytest
import torch

from sepgroupy.errors import ArgumentError
from sepgroupy.functional import merge_group, split_group


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_merging_puts_the_feature_map_of_every_element_in_the_batch(batch: int) -> None:
    x = torch.randn(batch, 2, 4, 5, 6)
    merged = merge_group(x)
    assert merged.shape == (batch * 4, 2, 5, 6)
    for b in range(batch):
        for g in range(4):
            assert torch.equal(merged[4 * b + g], x[b, :, g])


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_splitting_undoes_merging(batch: int) -> None:
    x = torch.randn(batch, 2, 8, 5, 6)
    assert torch.equal(split_group(merge_group(x), 8), x)


def test_splitting_is_a_view_and_merging_again_too() -> None:
    planar = torch.randn(12, 2, 5, 6)
    x = split_group(planar, 4)
    assert x.shape == (3, 2, 4, 5, 6)
    assert x.data_ptr() == planar.data_ptr()
    assert merge_group(x).data_ptr() == planar.data_ptr()
    assert merge_group(x).is_contiguous()


def test_splitting_takes_vectors() -> None:
    x = torch.randn(6, 5)
    assert torch.equal(split_group(x, 3), x.reshape(2, 3, 5).transpose(1, 2))


def test_merging_refuses_images() -> None:
    with pytest.raises(ArgumentError, match=r"x has shape \(2, 3, 4, 5\)"):
        merge_group(torch.zeros(2, 3, 4, 5))


def test_splitting_refuses_a_batch_that_the_order_does_not_divide() -> None:
    with pytest.raises(ArgumentError, match=r"x has 6 rows.*order \(=4\)"):
        split_group(torch.zeros(6, 2, 3, 3), 4)
