"""Rotated MNIST made from idx files: layouts, protocol, and what is refused."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepgroupy.data._idx import _read
from sepgroupy.errors import ArgumentError, DataError
from sepgroupy.paper import load_idx, load_rotmnist

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def numbered(start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images numbered in the grey of their middle, with a spot on the right that shows their angle."""
    number = np.arange(start, start + count)
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 10:18, 10:18] = number[:, None, None]
    images[:, 13:15, 22:24] = 255
    return images, number % 10


def read_back(images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of each image and its angle, counter-clockwise, in [0, 2π)."""
    pixels = images[:, 0].double().numpy()
    at = np.arange(28) - 13.5
    spot = pixels * (np.hypot(at, at[:, None]) > 6.7)
    angle = np.arctan2((spot * -at[:, None]).sum((1, 2)), (spot * at).sum((1, 2)))
    return (pixels[:, 13, 13] * 255).round().astype(int), angle % (2 * math.pi)


def write(folder: Path, train: int = 50, test: int = 20, zipped: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for names, arrays in (
        ((TRAIN_IMAGES, TRAIN_LABELS), numbered(0, train)),
        ((TEST_IMAGES, TEST_LABELS), numbered(train, test)),
    ):
        for name, array in zip(names, arrays, strict=True):
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))
    return folder


def test_images_are_drawn_once_keep_their_labels_and_are_rotated_by_angles_of_their_own(tmp_path):
    data = load_idx(write(tmp_path, train=150, test=100), train=80, test=120)
    assert data.train.images.shape == (80, 1, 28, 28)
    assert data.test.images.shape == (120, 1, 28, 28)
    images = torch.cat([data.train.images, data.test.images])
    labels = torch.cat([data.train.labels, data.test.labels])
    numbers, angles = read_back(images)
    assert len(set(numbers.tolist())) == 200
    assert labels.tolist() == (numbers % 10).tolist()
    for part in (numbers[:80], numbers[80:]):  # training and test files are pooled
        assert part.min() < 30
        assert 0.2 < (part >= 150).mean() < 0.6
    ranks = np.sort(angles) / (2 * math.pi)
    assert np.abs(ranks - np.arange(1, 201) / 200).max() < 1.63 / math.sqrt(200)  # Kolmogorov-Smirnov at 1 %
    assert np.unique(angles.round(4)).size > 190
    assert abs(np.corrcoef(numbers, angles)[0, 1]) < 0.2
    assert images.max() <= 1


def test_every_call_gives_the_same_and_a_prefix_of_training_images(tmp_path):
    folder = write(tmp_path)
    data = load_idx(folder, train=30, test=20)
    torch.manual_seed(9)
    assert load_idx(folder, train=30, test=20).fingerprint == data.fingerprint
    assert torch.equal(load_idx(folder, train=10, test=5).train.images, data.train.images[:10])


@pytest.mark.parametrize("layout", [".", "raw", "MNIST/raw"])
@pytest.mark.parametrize("zipped", [False, True])
def test_plain_and_compressed_files_in_every_layout(tmp_path, layout, zipped):
    write(tmp_path / "mnist" / layout, zipped=zipped)
    data = load_idx(tmp_path / "mnist", train=40, test=30)
    numbers, _ = read_back(torch.cat([data.train.images, data.test.images]))
    assert sorted(numbers.tolist()) == list(range(70))
    assert data.name == "rotated " + ("MNIST" if layout == "MNIST/raw" else "mnist")


def test_too_few_images_says_how_many_there_are(tmp_path):
    write(tmp_path)
    with pytest.raises(DataError, match=r"50 \+ 20 = 70 images, fewer than .* = 62000"):
        load_rotmnist("idx", tmp_path)
    with pytest.raises(DataError, match=r"train \(=50\) \+ test \(=21\) = 71"):
        load_idx(tmp_path, train=50, test=21)


@pytest.mark.parametrize(("train", "test"), [(0, 5), (5, -1)])
def test_counts_must_be_positive(tmp_path, train, test):
    with pytest.raises(ArgumentError, match=rf"train \(={train}\) and test \(={test}\)"):
        load_idx(tmp_path, train, test)


@pytest.mark.parametrize("name", [TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS])
def test_a_missing_file_is_named(tmp_path, name):
    (write(tmp_path) / name).unlink()
    with pytest.raises(DataError, match=f"{tmp_path.name} has no file {name}, plain or .gz: give the folder"):
        load_idx(tmp_path, 5, 5)


def test_a_path_that_is_no_folder_is_told_what_to_give(tmp_path):
    (tmp_path / "file").write_text("")
    for wrong in ("nowhere", "file"):
        with pytest.raises(DataError, match="give the folder that holds"):
            load_idx(tmp_path / wrong, 5, 5)


IMAGES, LABELS = (idx(array) for array in numbered(0, 50))
ZIPPED = gzip.compress(IMAGES)
BROKEN = {
    "empty": (TRAIN_IMAGES, b"", "begins with ''"),
    "text": (TRAIN_IMAGES, b"<html></html>", "begins with '3c 68 74 6d', not '00 00 08 03'"),
    "floats": (TRAIN_IMAGES, IMAGES[:2] + b"\x0d" + IMAGES[3:], "begins with '00 00 0d 03'"),
    "labels as images": (TRAIN_IMAGES, LABELS, "begins with '00 00 08 01'"),
    "images as labels": (TEST_LABELS, IMAGES, "begins with '00 00 08 03'"),
    "header cut": (TEST_IMAGES, IMAGES[:9], "holds 9 bytes"),
    "cut off": (TRAIN_IMAGES, IMAGES[:-1], r"holds 39215 bytes, not the 39216 of its header \(50, 28, 28\)"),
    "too long": (TRAIN_LABELS, LABELS + b"\0", "holds 59 bytes, not the 58"),
    "other size": (
        TRAIN_IMAGES,
        idx(np.zeros((50, 32, 32))),
        r"holds an array of shape \(50, 32, 32\): it must be \(N, 28, 28\)",
    ),
    "other count": (TRAIN_LABELS, idx(np.zeros(49)), "holds 49 labels for the 50 images of train-images-idx3-ubyte"),
    "label 10": (TRAIN_LABELS, idx(np.array([0] * 48 + [10, 0])), r"has the label 10 in row 49: it must be in 0\.\.9"),
    "no gzip": (f"{TRAIN_IMAGES}.gz", IMAGES, "cannot be read .*gzip"),
    "gzip cut": (f"{TRAIN_IMAGES}.gz", ZIPPED[:-20], "cannot be read"),
    "gzip damaged": (f"{TRAIN_IMAGES}.gz", ZIPPED[:40] + bytes([ZIPPED[40] ^ 255]) + ZIPPED[41:], "cannot be read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named(tmp_path, case):
    name, content, message = BROKEN[case]
    write(tmp_path)
    (tmp_path / name.removesuffix(".gz")).unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} {message}"):
        load_idx(tmp_path, 5, 5)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=40), magic=st.booleans(), zipped=st.booleans())
def test_whatever_the_bytes_there_is_an_array_or_a_data_error(tmp_path_factory, content, magic, zipped):
    file = tmp_path_factory.getbasetemp() / ("any.gz" if zipped else "any")
    file.write_bytes(bytes([0, 0, 8, 3]) * magic + content)
    try:
        array = _read(file, axes=3)
    except DataError:
        return
    assert idx(array) == file.read_bytes()


def test_torchvision_fetches_what_is_not_there(tmp_path, monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    fetched = []

    def fetch(root: Path, download: bool) -> None:
        fetched.append(root)
        write(root / "FashionMNIST" / "raw")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", fetch)
    write(tmp_path / "MNIST" / "raw", train=9)  # another data set in the same folder is not taken for it
    for _ in range(2):
        data = load_idx(tmp_path, train=40, test=30, download="FashionMNIST")
        assert data.name == "rotated FashionMNIST"
    assert fetched == [tmp_path]


@pytest.mark.parametrize("error", [OSError("no network"), RuntimeError("Error downloading")])
def test_a_failed_download_says_where_to_put_the_files(tmp_path, monkeypatch, error):
    torchvision = pytest.importorskip("torchvision")

    def fail(root: Path, download: bool) -> None:
        raise error

    monkeypatch.setattr(torchvision.datasets, "MNIST", fail)
    with pytest.raises(DataError, match=rf"MNIST could not be fetched \({error}\): .* into .*raw$"):
        load_idx(tmp_path, download="MNIST")


def test_an_unknown_download_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"download \(='CIFAR10'\) must be one of MNIST, FashionMNIST, KMNIST"):
        load_idx(tmp_path, download="CIFAR10")
