"""The official files of rotated MNIST: what is read, what is refused, and the cache."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from sepgroupy.data import AMAT_FILES, load_amat
from sepgroupy.errors import DataError
from sepgroupy.paper import load_rotmnist

TRAIN_FILE, TEST_FILE = AMAT_FILES


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch) -> Path:
    """Keep caches out of the real home."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def table(count: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    pixels = generator.random((count, 784)).astype(np.float32)
    pixels[:, ::2] = generator.integers(0, 2, (count, 392))  # exact 0 and 1 too
    return np.column_stack([pixels, generator.integers(0, 10, count)])


def write(file: Path, rows: np.ndarray, fmt: str = "%.9g") -> None:
    np.savetxt(file, rows, fmt=fmt)


@pytest.fixture
def folder(tmp_path) -> Path:
    write(tmp_path / TRAIN_FILE, table(7, seed=1))
    write(tmp_path / TEST_FILE, table(5, seed=2), fmt="%.18e")
    return tmp_path


def caches(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("*") if file.is_file() and file.suffix != ".amat")


@pytest.fixture
def no_parsing(monkeypatch):
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("parsed again")

    return lambda: monkeypatch.setattr(np, "loadtxt", refuse)


def assert_holds(split, rows: np.ndarray) -> None:
    assert np.array_equal(split.images.numpy(), rows[:, :-1].astype(np.float32).reshape(-1, 1, 28, 28))
    assert split.labels.tolist() == rows[:, -1].tolist()


def test_reads_every_value_in_the_order_of_the_file(folder):
    data = load_amat(folder)
    assert_holds(data.train, table(7, seed=1))
    assert_holds(data.test, table(5, seed=2))
    assert data.classes == 10
    assert load_rotmnist("amat", folder).fingerprint == data.fingerprint


@pytest.mark.parametrize("name", [TRAIN_FILE, TEST_FILE])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"has no file {name}: give the folder that holds both"):
        load_amat(folder)


def test_a_path_that_is_no_folder_is_told_what_to_give(folder):
    for wrong in (folder / "nowhere", folder / TRAIN_FILE):
        with pytest.raises(DataError, match="give the folder that holds both"):
            load_amat(wrong)


def broken(change) -> bytes:
    """Return the bytes of a file of five rows after ``change`` was made to its lines of values."""
    lines = [[f"{v:.9g}" for v in row] for row in table(5, seed=3)]
    change(lines)
    return "".join(" ".join(line) + "\n" for line in lines).encode()


def put(row: int, column: int, value: str):
    def change(lines: list[list[str]]) -> None:
        lines[row - 1][column] = value

    return change


BROKEN = {
    "empty": (b"", "is empty"),
    "blank": (b"\n \n", "is empty"),
    "binary": (bytes(range(256)) * 9, "in row 1"),
    "short row": (broken(lambda lines: lines[2].pop()), "has 784 values in row 3"),
    "long row": (broken(lambda lines: lines[1].append("1")), "has 786 values in row 2"),
    "short rows": (broken(lambda lines: [line.pop() for line in lines]), "has 784 values in row 1"),
    "cut off": (broken(lambda lines: None)[:-1000], "values in row 5"),
    "word": (broken(put(4, 17, "seven")), "has 'seven' in row 4"),
    "commas": (broken(lambda lines: None).replace(b" ", b","), "has 1 values in row 1"),
    "underscore": (broken(put(4, 17, "0_1")), "is not a table of numbers"),
    "nan": (broken(put(5, 783, "nan")), "has the pixel value nan in row 5"),
    "infinite": (broken(put(1, 3, "inf")), "has the pixel value inf in row 1"),
    "label 10": (broken(put(4, 784, "10")), "has the label 10 in row 4"),
    "label -1": (broken(put(1, 784, "-1")), "has the label -1 in row 1"),
    "label half": (broken(put(2, 784, "2.5")), "has the label 2.5 in row 2"),
    "label nan": (broken(put(2, 784, "nan")), "has the label nan in row 2"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_and_its_row_are_named(folder, case):
    content, message = BROKEN[case]
    (folder / TEST_FILE).write_bytes(content)
    with pytest.raises(DataError, match=rf"{TEST_FILE} .*{message}.*: fetch the file again"):
        load_amat(folder)
    assert caches(folder) == [f"{TRAIN_FILE}.cache.npz"]  # nothing of a broken file is cached


@pytest.mark.parametrize("value", ["1.5", "-0.25"])
def test_a_pixel_outside_0_to_1_is_read_with_a_warning_every_time(folder, value, caplog):
    load_amat(folder)
    assert not caplog.records
    (folder / TEST_FILE).write_bytes(broken(put(2, 100, value)))
    for _ in range(2):  # parsed, and from the cache
        caplog.clear()
        assert load_amat(folder).test.images[1].flatten()[100] == float(value)
        (record,) = caplog.records
        assert TEST_FILE in record.message
        assert value in record.message


def test_a_folder_in_place_of_a_file_is_refused(folder):
    (folder / TEST_FILE).unlink()
    (folder / TEST_FILE).mkdir()
    with pytest.raises(DataError, match=f"has no file {TEST_FILE}"):
        load_amat(folder)


def test_the_second_time_the_cache_is_read(folder, home, no_parsing):
    first = load_amat(folder)
    assert caches(folder) == sorted(f"{name}.cache.npz" for name in (TRAIN_FILE, TEST_FILE))
    assert caches(home) == []
    no_parsing()
    assert load_amat(folder).fingerprint == first.fingerprint


def test_a_changed_file_is_parsed_again(folder):
    load_amat(folder)
    write(folder / TRAIN_FILE, table(9, seed=4))  # another size
    assert_holds(load_amat(folder).train, table(9, seed=4))

    before = (folder / TEST_FILE).stat()
    write(folder / TEST_FILE, table(5, seed=5), fmt="%.18e")  # the same size
    assert (folder / TEST_FILE).stat().st_size == before.st_size
    assert_holds(load_amat(folder).test, table(5, seed=5))

    before = (folder / TEST_FILE).stat()
    write(folder / TEST_FILE, table(5, seed=6), fmt="%.18e")  # the same size and time
    os.utime(folder / TEST_FILE, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert_holds(load_amat(folder).test, table(5, seed=6))


def test_only_the_changed_file_is_parsed_again(folder, no_parsing):
    load_amat(folder)
    os.utime(folder / TRAIN_FILE, ns=(1, 1))
    load_amat(folder)
    no_parsing()
    load_amat(folder)
    os.utime(folder / TRAIN_FILE, ns=(2, 2))
    with pytest.raises(AssertionError, match="parsed again"):
        load_amat(folder)


def block(place: Path) -> None:
    """Put something in a cache's place that nothing can be written over, whoever runs the test."""
    (place / "occupied").mkdir(parents=True)


def test_beside_a_folder_that_cannot_be_written_the_users_cache_is_used(folder, home, no_parsing):
    for name in (TRAIN_FILE, TEST_FILE):
        block(folder / f"{name}.cache.npz")
    first = load_amat(folder)
    assert caches(folder) == []
    assert len(caches(home / "sepgroupy")) == 2
    no_parsing()
    assert load_amat(folder).fingerprint == first.fingerprint


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_gets_no_files(folder, home):
    folder.chmod(0o555)
    load_amat(folder)
    folder.chmod(0o755)
    assert caches(folder) == []
    assert len(caches(home)) == 2


def test_two_folders_do_not_share_a_cache_in_the_users_folder(tmp_path, home):
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        for name in (TRAIN_FILE, TEST_FILE):
            write(folder / name, table(3, seed=seed))
            block(folder / f"{name}.cache.npz")
        load_amat(folder)
    assert len(caches(home)) == 4


def test_with_no_place_for_a_cache_the_files_are_read_all_the_same(folder, home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    (home / "file").write_text("in the way")
    for name in (TRAIN_FILE, TEST_FILE):
        block(folder / f"{name}.cache.npz")
    assert_holds(load_amat(folder).train, table(7, seed=1))
    assert caches(folder) == []


class Trap:
    """An object whose pickle, if it were loaded, would make a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "array", "pickle", "no key", "other key"])
def test_a_corrupt_cache_is_made_again(folder, damage, no_parsing, tmp_path):
    first = load_amat(folder)
    cache = folder / f"{TRAIN_FILE}.cache.npz"
    content = cache.read_bytes()
    with np.load(cache) as stored:
        arrays = dict(stored)
    if damage == "empty":
        cache.write_bytes(b"")
    elif damage == "text":
        cache.write_text("no archive")
    elif damage == "cut":
        cache.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        middle = len(content) // 2
        cache.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "array":
        with cache.open("wb") as file:
            np.save(file, np.zeros(3))
    elif damage == "pickle":
        trap = np.array([Trap(tmp_path / "sprung")])
        np.savez(cache, **{**arrays, "images": trap})
    elif damage == "no key":
        np.savez(cache, images=arrays["images"], labels=arrays["labels"])
    else:
        np.savez(cache, **{**arrays, "key": np.array("amat 0")})
    assert load_amat(folder).fingerprint == first.fingerprint
    assert not (tmp_path / "sprung").exists()
    assert len(caches(folder)) == 2
    no_parsing()
    assert load_amat(folder).fingerprint == first.fingerprint


def test_a_failed_write_leaves_neither_cache_nor_rest(folder, home, monkeypatch):
    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    assert torch.is_tensor(load_amat(folder).train.images)
    assert caches(folder) == []
    assert caches(home) == []
