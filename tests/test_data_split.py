"""Split and ImageData: batches, prefixes, fingerprints and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from sepgroupy.data import ImageData, Split
from sepgroupy.errors import ArgumentError


def make(count: int = 10, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 2, 3, 4, generator=generator)
    return Split(images, torch.randint(5, (count,), generator=generator))


@pytest.mark.parametrize("indices", [[3, 0, 3], torch.tensor([3, 0, 3])])
def test_indexing_gathers_a_batch(indices):
    split = make()
    images, labels = split[indices]
    assert torch.equal(images, torch.stack([split.images[i] for i in (3, 0, 3)]))
    assert torch.equal(labels, torch.stack([split.labels[i] for i in (3, 0, 3)]))


def test_a_loader_reads_whole_batches():
    split = make()
    batches = list(DataLoader(split, sampler=BatchSampler(SequentialSampler(split), 4, False), batch_size=None))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([images for images, _ in batches]), split.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels)


def test_first_is_a_prefix():
    split = make()
    prefix = split.first(7)
    assert len(prefix) == 7
    assert torch.equal(prefix.images, split.images[:7])
    assert torch.equal(prefix.labels, split.labels[:7])
    assert len(split.first(10)) == 10


@pytest.mark.parametrize("count", [0, -1, 11])
def test_first_refuses_what_is_not_there(count):
    with pytest.raises(ArgumentError, match=rf"count \(={count}\).*10"):
        make().first(count)


@pytest.mark.parametrize(
    ("images", "labels", "named"),
    [
        (torch.zeros(3, 28, 28), torch.zeros(3).long(), "images"),
        (torch.zeros(3, 1, 2, 2).double(), torch.zeros(3).long(), "images"),
        (torch.zeros(3, 1, 2, 2), torch.zeros(4).long(), "labels"),
        (torch.zeros(3, 1, 2, 2), torch.zeros(3, 1).long(), "labels"),
        (torch.zeros(3, 1, 2, 2), torch.zeros(3), "labels"),
    ],
)
def test_split_refuses_other_shapes_and_types(images, labels, named):
    with pytest.raises(ArgumentError, match=f"^{named} must be"):
        Split(images, labels)


def test_image_data_refuses_labels_out_of_range_and_images_of_unequal_shapes():
    with pytest.raises(ArgumentError, match="a test label is 5"):
        ImageData(
            "x", Split(torch.zeros(1, 2, 3, 4), torch.tensor([4])), Split(torch.zeros(1, 2, 3, 4), torch.tensor([5])), 5
        )
    with pytest.raises(ArgumentError, match="a train label is -1"):
        ImageData("x", Split(torch.zeros(1, 2, 3, 4), torch.tensor([-1])), make(), 5)
    with pytest.raises(ArgumentError, match=r"\(2, 3, 4\) and \(1, 3, 4\)"):
        ImageData("x", make(), Split(torch.zeros(1, 1, 3, 4), torch.tensor([0])), 5)


def test_fingerprint_follows_every_byte():
    def fingerprint(train: Split, test: Split) -> str:
        return ImageData("x", train, test, 5).fingerprint

    train, test = make(10, 0), make(10, 1)
    reference = fingerprint(train, test)
    assert len(reference) == 16
    assert fingerprint(make(10, 0), make(10, 1)) == reference
    other_image, other_label = train.images.clone(), train.labels.clone()
    other_image[9, 1, 2, 3] += 1e-6
    other_label[0] = (other_label[0] + 1) % 5
    changed = [
        fingerprint(Split(other_image, train.labels), test),
        fingerprint(Split(train.images, other_label), test),
        fingerprint(test, train),
        fingerprint(train.first(9), test),
    ]
    assert len({reference, *changed}) == 5
    strided = Split(train.images.transpose(2, 3).contiguous().transpose(2, 3), train.labels)
    assert fingerprint(strided, test) == reference


def test_images_are_held_out_in_the_order_that_is_asked_for():
    split = make(10, 0)
    rest, held = split.hold_out(torch.tensor([7, 2]))
    assert torch.equal(held.images, split.images[[7, 2]])
    assert torch.equal(held.labels, split.labels[[7, 2]])
    others = [0, 1, 3, 4, 5, 6, 8, 9]
    assert torch.equal(rest.images, split.images[others])
    assert torch.equal(rest.labels, split.labels[others])
    whole, apart = ImageData("x", split, split, 5), ImageData("x", rest, split, 5, held)
    assert len({whole.fingerprint, apart.fingerprint, ImageData("x", rest, split, 5).fingerprint}) == 3
