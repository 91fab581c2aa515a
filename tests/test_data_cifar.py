from __future__ import annotations

import os
import pickle
import pickletools
import shutil
import struct
import tarfile
import warnings
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn

from sepgroupy.data import ZCA, load_cifar10, load_synthetic_cifar10, write_synthetic_cifar10
from sepgroupy.data._batch_file import batch_bytes, read_batch
from sepgroupy.errors import ArgumentError, DataError
from stress.small import little_memory

FOLDER = "cifar-10-batches-py"
PIXELS = np.random.default_rng(0).integers(256, size=(4, 3072), dtype=np.uint8)
GOOD = {b"batch_label": b"training batch 1 of 5", b"labels": [3, 0, 9, 3], b"data": PIXELS}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_synthetic_cifar10(tmp_path_factory.mktemp("cifar"), train=43, test=20)


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(made, tmp_path / "set" / FOLDER))


def written(tmp_path, content):
    file = tmp_path / "data_batch_1"
    file.write_bytes(content)
    return file


def refusal(file):
    with pytest.raises(DataError) as caught:
        read_batch(file)
    assert str(file) in str(caught.value)
    return str(caught.value)


def unpickled(file):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy's old name for numpy._core
        return pickle.loads(file.read_bytes(), encoding="bytes")


class TestFormat:
    def test_a_file_of_python_2_is_read(self, tmp_path):
        # As the published files begin, byte by byte, memo included.
        content = (
            b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05(K\x06K\x09e"
            b"U\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09"
            b"(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNN"
            b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        )
        content += struct.pack("<i", 2 * 3072) + PIXELS[:2].tobytes() + b"tbU\tfilenamesq\x0c]q\r(U\x01aU\x01beu."
        images, labels = read_batch(written(tmp_path, content))
        assert np.array_equal(images, PIXELS[:2].reshape(2, 3, 32, 32))
        assert labels.tolist() == [6, 9]

    def test_what_is_written_is_the_same_format(self, tmp_path):
        file = written(tmp_path, batch_bytes(GOOD | {b"filenames": [b"x" * 300] * 4}))
        loaded = unpickled(file)
        assert loaded[b"data"].dtype == np.uint8
        assert np.array_equal(loaded.pop(b"data"), PIXELS)
        assert loaded == {k: v for k, v in GOOD.items() if k != b"data"} | {b"filenames": [b"x" * 300] * 4}
        operations = list(pickletools.genops(file.read_bytes()))
        assert {op.name for op, _, _ in operations} <= {
            *("PROTO", "EMPTY_DICT", "MARK", "SHORT_BINSTRING", "BINSTRING", "BININT", "EMPTY_LIST", "APPENDS"),
            *("GLOBAL", "TUPLE", "REDUCE", "NONE", "NEWFALSE", "BUILD", "SETITEMS", "STOP"),
        }
        names = [value for op, value, _ in operations if op.name == "GLOBAL"]
        assert names == ["numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"]
        images, labels = read_batch(file)
        assert np.array_equal(images.reshape(4, -1), PIXELS)
        assert labels.tolist() == GOOD[b"labels"]

    @pytest.mark.parametrize("protocol", [2, 3, 4])
    def test_a_batch_of_the_usual_size_is_far_from_the_limits(self, tmp_path, protocol):
        names = [b"a_long_name_%05i.png" % number for number in range(10_000)]
        data = np.zeros((10_000, 3072), np.uint8)
        entries = {b"batch_label": b"x", b"labels": [7] * 10_000, b"data": data, b"filenames": names}
        content = pickle.dumps(entries, protocol)
        assert sum(1 for _ in pickletools.genops(content)) < 100_000
        assert len(read_batch(written(tmp_path, content))[1]) == 10_000

    @pytest.mark.parametrize("protocol", [2, 3, 4])
    @pytest.mark.parametrize("keys", [bytes, str])
    def test_files_of_python_3_are_read(self, tmp_path, protocol, keys):
        entries = {k if keys is bytes else k.decode(): v for k, v in GOOD.items()}
        images, labels = read_batch(written(tmp_path, pickle.dumps(entries, protocol)))
        assert np.array_equal(images.reshape(4, -1), PIXELS)
        assert labels.tolist() == GOOD[b"labels"]


class TestHostileFiles:
    @pytest.mark.parametrize("protocol", range(6))
    @pytest.mark.parametrize("inside", [False, True])
    def test_code_in_a_file_does_not_run(self, tmp_path, protocol, inside):
        marker = tmp_path / "marker"

        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(marker),)

        content = pickle.dumps(GOOD | {b"labels": Evil()} if inside else Evil(), protocol)
        message = refusal(written(tmp_path, content))
        assert not marker.exists()
        assert inside or ("mkdir" if protocol else "operation PUT") in message
        pickle.loads(content)
        assert marker.exists()  # so the file was indeed dangerous

    @pytest.mark.parametrize(
        "name", [b"builtins\neval", b"numpy\nload", b"numpy.core.multiarray\nscalar", b"_codecs\ndecode", b"os\nsystem"]
    )
    def test_other_names_are_refused(self, tmp_path, name):
        assert name.decode().replace("\n", ".") in refusal(written(tmp_path, b"\x80\x02c" + name + b"\n."))

    @pytest.mark.parametrize(
        ("case", "content"),
        [
            ("reserves 2^46 bytes", b"\x80\x05\x96" + struct.pack("<Q", 2**46) + b"x."),
            ("claims a string of 2 GB", b"\x80\x02T\xff\xff\xff\x7fx."),
            ("claims bytes of 2^46", b"\x80\x04\x8e" + struct.pack("<Q", 2**46) + b"x."),
            ("claims a frame of 2^46 bytes", b"\x80\x04\x95" + struct.pack("<Q", 2**46) + b"N."),
            ("puts into memo 2^31 - 1", b"\x80\x02]r\xff\xff\xff\x7f."),
            ("puts text into memo 2^31 - 1", b"\x80\x02U\x01xr\xff\xff\xff\x7f."),
            ("hashes a deep tuple", b"\x80\x02})" + b"\x85" * 3_000_000 + b"K\x01s."),
            ("hashes a deep tuple of marks", b"\x80\x02}" + b"(" * 200_000 + b"t" * 200_000 + b"K\x01s."),
            ("hashes a deep tuple of calls", b"\x80\x02})" + b"cnumpy\ndtype\n)R\x86" * 200_000 + b"K\x01s."),
            ("hashes 2^60 leaves", b"\x80\x02})" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"K\x01s."),
            ("hashes 2^60 leaves, disguised", b"\x80\x02})" + b"(eNbq\x00h\x00\x86" * 60 + b"K\x01s."),
            (
                "has keys of one hash",
                b"\x80\x02}("
                + b"".join(b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(100_000))
                + b"u.",
            ),
            (
                "makes 64 GB of 32 MB",
                b"\x80\x02](c_codecs\nencode\nq\x00X\x00\x00\x00\x02"
                + b"x" * 2**25
                + b"q\x01U\x01bq\x02"
                + b"h\x00h\x01h\x02\x86R" * 2000
                + b"e.",
            ),
            ("asks for something persistent", b"\x80\x02U\x01xQ."),
            ("asks for something persistent by name", b"Px\n."),
            ("asks the registry of extensions", b"\x80\x02\x82\x01."),
            ("makes an object of a class", b"\x80\x02cnumpy\nndarray\n)\x81."),
            ("makes an object in the old way", b"(inumpy\nndarray\n."),
            ("reads an integer of a million digits", b"L" + b"9" * 10**6 + b"L\n."),
            ("multiplies a string by 3072", None),
            ("sets what the reader's class is", b"\x80\x02cnumpy\nndarray\n}U\x0c__setstate__K\x01sb."),
            ("sets what the reader's function is", b"\x80\x02c_codecs\nencode\nN}U\x08__code__K\x01s\x86b."),
        ],
        ids=lambda case: case if isinstance(case, str) else "",
    )
    def test_traps_for_a_reader_are_refused(self, tmp_path, case, content):
        if content is None:
            content = batch_bytes(GOOD)
            shape = pickle.MARK + pickle.BININT + struct.pack("<i", 4) + pickle.BININT + struct.pack("<i", 3072)
            assert shape in content
            content = content.replace(shape, pickle.MARK + b"T\x00\x00\x00\x01" + b"x" * 2**24 + shape[6:])
        with little_memory():
            refusal(written(tmp_path, content))
        assert read_batch(written(tmp_path, batch_bytes(GOOD)))[1].tolist() == GOOD[b"labels"]

    def test_cut_off_files_are_refused(self, tmp_path):
        content = batch_bytes(GOOD)
        for length in [*range(0, 200, 3), 5000, len(content) - 2, len(content) - 1]:
            refusal(written(tmp_path, content[:length]))

    def test_damaged_files_are_read_or_refused(self, tmp_path):
        content = batch_bytes(GOOD)
        generator = np.random.default_rng(0)
        for _ in range(400):
            damaged = bytearray(content)
            damaged[generator.integers(260)] = generator.integers(256)
            try:
                images, labels = read_batch(written(tmp_path, damaged))
            except DataError:
                continue
            assert images.shape == (4, 3, 32, 32)
            assert labels.min() >= 0
            assert labels.max() <= 9

    def test_a_file_too_large_is_not_read(self, tmp_path):
        file = tmp_path / "data_batch_1"
        with file.open("wb") as opened:
            opened.truncate(2**26 + 1)
        assert "67108865 bytes" in refusal(file)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({b"labels": [1, 2, 3]}, "4 images but 3 labels"),
        ({b"labels": [1, 2, 3, 10]}, "label is 10"),
        ({b"labels": [1, 2, 3, -1]}, "label is -1"),
        ({b"labels": [1, 2, 3, b"cat"]}, "list of integers"),
        ({b"labels": 7}, "list of integers"),
        ({b"data": b"x" * 4 * 3072}, "array"),
        ({b"data": PIXELS[:, :-1]}, "3072"),
        ({b"data": PIXELS.reshape(4, 3, 32, 32)}, "3072"),
        ({b"data": PIXELS[:0], b"labels": []}, "at least 1"),
    ],
)
def test_wrong_contents_are_named(tmp_path, change, reason):
    assert reason in refusal(written(tmp_path, batch_bytes(GOOD | change)))


@pytest.mark.parametrize("data", [PIXELS.astype(np.int8), PIXELS.astype(object), np.asfortranarray(PIXELS)])
def test_other_arrays_are_refused(tmp_path, data):
    assert "uint8" in refusal(written(tmp_path, pickle.dumps(GOOD | {b"data": data}, 2)))


def test_other_entries_are_refused(tmp_path):
    assert "data and labels" in refusal(written(tmp_path, batch_bytes({b"data": PIXELS})))
    assert "data and labels" in refusal(written(tmp_path, pickle.dumps([1, 2], 2)))


class TestLoad:
    @pytest.mark.parametrize("direct", [False, True])
    def test_images_come_in_the_order_of_the_files(self, folder, direct):
        data = load_cifar10(folder if direct else folder.parent, whiten=False)
        batches = [unpickled(folder / f"data_batch_{i}") for i in range(1, 6)]
        pixels = np.concatenate([batch[b"data"] for batch in batches]).astype(np.float64)
        expected = (pixels - pixels.mean(1, keepdims=True)) / pixels.std(1, ddof=1, keepdims=True)
        assert data.train.images.shape == (43, 3, 32, 32)
        np.testing.assert_allclose(data.train.images.flatten(1), expected, atol=1e-6)
        assert data.train.labels.tolist() == [label for batch in batches for label in batch[b"labels"]]
        assert data.test.images.shape == (20, 3, 32, 32)
        assert data.test.labels.tolist() == unpickled(folder / "test_batch")[b"labels"]
        assert data.classes == 10

    def test_all_are_whitened_with_the_statistics_of_the_training_images(self, folder):
        plain, data = load_cifar10(folder, whiten=False), load_cifar10(folder)
        zca = ZCA.fit(plain.train.images)
        assert torch.equal(data.train.images, zca(plain.train.images))
        assert torch.equal(data.test.images, zca(plain.test.images))
        correlation = data.train.images.flatten(1) @ data.train.images.flatten(1).T
        expected = 42 * (torch.eye(43) - 1 / 43)  # 43 images, 42 directions, each of variance 1
        torch.testing.assert_close(correlation, expected, atol=1e-3, rtol=0)

    def test_the_whitening_is_cached_until_the_images_change(self, folder, monkeypatch):
        first = load_cifar10(folder)
        fits = []
        fit = ZCA.fit
        monkeypatch.setattr(ZCA, "fit", lambda images: fits.append(1) or fit(images))
        assert torch.equal(load_cifar10(folder).train.images, first.train.images)
        assert not fits
        (cache,) = folder.glob("zca-*.npz")
        cache.write_bytes(cache.read_bytes()[:5000])
        assert torch.equal(load_cifar10(folder).train.images, first.train.images)
        assert len(fits) == 1
        shutil.copy(folder / "data_batch_1", folder / "data_batch_2")
        assert not torch.equal(load_cifar10(folder).train.images, first.train.images)
        assert len(fits) == 2

    def test_missing_files_are_named(self, folder, tmp_path):
        (folder / "data_batch_3").unlink()
        (folder / "test_batch").unlink()
        with pytest.raises(DataError, match="no file data_batch_3, test_batch"):
            load_cifar10(folder.parent)
        with pytest.raises(DataError, match="nowhere"):
            load_cifar10(tmp_path / "nowhere")

    def test_without_a_network_a_download_says_what_to_do(self, tmp_path, monkeypatch):
        def fail(*_, **__):
            raise URLError("no network")

        monkeypatch.setattr("torchvision.datasets.utils.download_url", fail)
        with pytest.raises(DataError, match=r"no network.*unpack cifar-10-python.tar.gz into"):
            load_cifar10(tmp_path, download=True)

    def test_a_download_never_touches_a_folder_that_is_there(self, made, tmp_path, monkeypatch):
        calls = []

        def fetch(url, root, filename, md5):
            calls.append((url.rsplit("/", 1)[1], filename, len(md5)))
            with tarfile.open(Path(root) / filename, "w:gz") as archive:
                archive.add(made, FOLDER)

        monkeypatch.setattr("torchvision.datasets.utils.download_url", fetch)
        for _ in range(2):
            assert len(load_cifar10(tmp_path, download=True, whiten=False).train) == 43
        assert calls == [("cifar-10-python.tar.gz", "cifar-10-python.tar.gz", 32)]


class TestSynthetic:
    def test_the_seed_decides(self, made, tmp_path):
        same = write_synthetic_cifar10(tmp_path / "same", train=43, test=20)
        other = write_synthetic_cifar10(tmp_path / "other", train=43, test=20, seed=1)
        names = {"batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))}
        assert {file.name for file in made.iterdir()} == names
        assert list(made.parent.iterdir()) == [made]
        for name in names:
            assert (made / name).read_bytes() == (same / name).read_bytes()
            assert name == "batches.meta" or (made / name).read_bytes() != (other / name).read_bytes()

    def test_the_names_of_the_classes_are_told(self, made):
        meta = unpickled(made / "batches.meta")
        assert len(set(meta[b"label_names"])) == 10
        assert meta[b"num_vis"] == 3072

    def test_nothing_is_overwritten(self, made):
        before = (made / "test_batch").read_bytes()
        with pytest.raises(ArgumentError, match="already"):
            write_synthetic_cifar10(made.parent, seed=5)
        assert (made / "test_batch").read_bytes() == before

    @pytest.mark.parametrize(("train", "test"), [(4, 10), (10, 0)])
    def test_empty_batches_are_refused(self, tmp_path, train, test):
        with pytest.raises(ArgumentError, match=rf"train \(={train}\).*test \(={test}\)"):
            write_synthetic_cifar10(tmp_path, train, test)

    def test_a_network_learns_the_classes_and_a_linear_map_does_not(self):
        data = load_synthetic_cifar10(train=1000, test=300)
        assert torch.bincount(data.test.labels).tolist() == [30] * 10
        train, test = (split.images.flatten(1).double() for split in (data.train, data.test))
        targets = nn.functional.one_hot(data.train.labels, 10).double() - 0.1
        kernel = train @ train.T + 1000 * torch.eye(len(train))
        linear = (test @ train.T @ torch.linalg.solve(kernel, targets)).argmax(1)
        assert (linear == data.test.labels).float().mean() < 0.3

        torch.manual_seed(0)
        network = nn.Sequential(
            *(nn.Conv2d(3, 16, 5, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
        )
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        for _ in range(10):
            for batch in torch.randperm(1000).split(50):
                images, labels = data.train[batch]
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(images), labels).backward()
                optimizer.step()
        learned = network.eval()(data.test.images).argmax(1)
        assert (learned == data.test.labels).float().mean() > 0.6
