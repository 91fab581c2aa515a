"""Files from strangers: what the fuzzing found, traps that it would not find, and a little of the fuzzing itself."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sepgroupy._files import load_tensors
from sepgroupy.data import AMAT_FILES, _amat, _archive, _idx, load_amat
from sepgroupy.data._archive import unpack
from sepgroupy.data._batch_file import read_batch
from sepgroupy.errors import DataError
from sepgroupy.paper import load_idx
from sepgroupy.training import evaluate, train
from stress import fuzz
from stress.small import few_digits, little_memory, read_checkpoint, use_digits

TRAIN_FILE = AMAT_FILES[0]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    use_digits(monkeypatch, few_digits(), save_seconds=300.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    counts, failures = fuzz.fuzz(336, tmp_path, seed=2)
    assert failures == []
    assert sum(counts.values()) == 336
    assert sum(count for name, count in counts.items() if name.endswith("refused")) > 100
    assert sum(count for name, count in counts.items() if name.endswith("read")) > 30  # not all are hit dead


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """Make a run that was stopped after its third step of five."""
    fuzz._make_stopped_run(tmp_path)
    return tmp_path


ALTERATIONS: dict[str, Callable[[dict[str, Any]], object]] = {
    # Found by the fuzzing: each ended the run in an exception from deep inside.
    "an optimizer tensor is missing": lambda c: c["optimizer_states"][0]["state"][0].pop("exp_avg_sq"),
    "a step is no tensor": lambda c: c["optimizer_states"][0]["state"][3].update(step=3),
    "a total is not a number": lambda c: c["run"]["totals"].__setitem__(1, {"x": {}}),
    "the step is a tensor": lambda c: c.update(global_step=torch.zeros(0, 5)),
    "the states are a tensor": lambda c: c.update(optimizer_states=torch.zeros(3)),
    # Of their kind.
    "an optimizer tensor has another shape": lambda c: c["optimizer_states"][0]["state"][0].update(
        exp_avg=torch.zeros(3)
    ),
    "an optimizer tensor is sparse": lambda c: c["optimizer_states"][0]["state"][0].update(
        exp_avg=torch.zeros(2, 2).to_sparse()
    ),
    "a parameter has no optimizer state": lambda c: c["optimizer_states"][0]["state"].pop(2),
    "there is no state": lambda c: c.pop("optimizer_states"),
    "the step is beyond the epoch": lambda c: c.update(global_step=6),
    "the step is before the start": lambda c: c.update(global_step=-1),
    "the step is missing": lambda c: c.pop("global_step"),
    "the history is ahead": lambda c: c["run"]["history"].append(
        {"epoch": 1, "lr": 0.1, "train_loss": 1.0, "train_error": 1.0, "seconds": 1.0}
    ),
    "the history has other columns": lambda c: c["run"]["history"].append({"epoch": 1}),
    "the history is none": lambda c: c["run"].update(history=torch.zeros(2)),
    "an epoch is a tensor": lambda c: c["run"]["history"].append(
        {"epoch": torch.zeros(2), "lr": 0.1, "train_loss": 1.0, "train_error": 1.0, "seconds": 1.0}
    ),
    "the seconds are text": lambda c: c["run"].update(seconds="1"),
    "the totals are two": lambda c: c["run"].update(totals=[1.0, 2.0]),
    "the average is missing": lambda c: c.pop("average"),
    "the average is a tensor": lambda c: c.update(average=torch.zeros(3)),
    "the average lacks its count": lambda c: c["average"].pop("n_averaged"),
    "the average is of another step": lambda c: c["average"].update(n_averaged=torch.tensor(1)),
    "the count of the average is a float": lambda c: c["average"].update(n_averaged=torch.tensor(2.0)),
    "the count of the average is a list": lambda c: c["average"].update(n_averaged=torch.tensor([2])),
    "the average lacks a weight": lambda c: c["average"].pop("module.fc.weight"),
    "the average has another shape": lambda c: c["average"].update({"module.fc.weight": torch.zeros(2)}),
    "the average has no numbers": lambda c: c["average"].update({"module.fc.weight": torch.zeros(10, 3).to_sparse()}),
    "the average is more": lambda c: c["average"].update({"module.extra": torch.zeros(2)}),
    "a weight is missing": lambda c: c["state_dict"].pop("model.fc.weight"),
    "a weight is huge and empty": lambda c: c["state_dict"].update(
        {"model.fc.weight": torch.zeros(1, 1).expand(10, 10**12)}
    ),
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_a_checkpoint_that_is_none_is_refused_before_it_is_used(name: str, stopped: Path) -> None:
    checkpoint = read_checkpoint(stopped)
    ALTERATIONS[name](checkpoint)
    torch.save(checkpoint, stopped / "last.ckpt")
    before = (stopped / "last.ckpt").read_bytes()
    with pytest.raises(DataError, match=r"last\.ckpt"):
        train(fuzz._run(stopped))
    assert (stopped / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize("width", [10**5, 2**32 - 1])
def test_a_huge_width_in_a_strangers_folder_allocates_nothing(width: int, stopped: Path) -> None:
    text = (stopped / "config.json").read_text()
    (stopped / "config.json").write_text(text.replace('"width": 3', f'"width": {width}'))
    with little_memory(), pytest.raises(DataError, match=r"last\.ckpt"):
        evaluate(stopped, "cpu")


def test_archives_of_tensors_do_not_grow(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(40 * 2**20)}, tmp_path / "stored.pt")
    with (
        zipfile.ZipFile(tmp_path / "stored.pt") as stored,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in stored.namelist():
            bomb.writestr(name, stored.read(name))
    (tmp_path / "stored.pt").unlink()
    assert (tmp_path / "bomb.pt").stat().st_size < 2**20
    with pytest.raises(DataError, match=r"bomb\.pt"):
        load_tensors(tmp_path / "bomb.pt")


def test_compressed_idx_files_do_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz._make_idx(tmp_path)
    load_idx(tmp_path, 3, 3)
    monkeypatch.setattr(_idx, "MAX_BYTES", 10**6)
    bomb = gzip.compress(b"\0\0\x08\x03" + struct.pack(">3i", 10**6, 28, 28) + bytes(10**8))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(bomb)
    with little_memory(), pytest.raises(DataError, match="holds more than 1000000 bytes"):
        load_idx(tmp_path, 3, 3)


@pytest.mark.parametrize("row", ["0 " * 10**7, "0" * 10**7, " " * 10**7])
def test_rows_without_an_end_are_refused(row: str, tmp_path: Path) -> None:
    fuzz._make_amat(tmp_path)
    (tmp_path / TRAIN_FILE).write_text(row)
    with little_memory(), pytest.raises(DataError, match=TRAIN_FILE):
        load_amat(tmp_path)


def test_more_rows_than_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz._make_amat(tmp_path)
    monkeypatch.setattr(_amat, "MAX_ROWS", 2)
    with pytest.raises(DataError, match="has more than 2 rows"):
        load_amat(tmp_path)


@pytest.mark.parametrize(
    "arrays", [{}, {"images": np.zeros(3)}, {"images": np.zeros((1, 1, 28, 28), "f"), "labels": np.zeros(1, "U9")}]
)
def test_a_forged_cache_is_made_again(arrays: dict[str, Any], tmp_path: Path) -> None:
    fuzz._make_cached_amat(tmp_path)
    expected, place = load_amat(tmp_path).fingerprint, tmp_path / f"{TRAIN_FILE}.cache.npz"
    key = np.load(place)["key"]
    np.savez(place, key=key, **arrays)
    assert load_amat(tmp_path).fingerprint == expected


@pytest.mark.parametrize("operation", [b"(", b"}", b"K\x01"], ids=repr)
def test_a_batch_of_endless_operations_is_refused(operation: bytes, tmp_path: Path) -> None:
    (tmp_path / "batch").write_bytes(b"\x80\x02" + operation * (30 * 2**20 // len(operation)))
    with little_memory(), pytest.raises(DataError, match="more operations than any batch"):
        read_batch(tmp_path / "batch")


def archive_of(path: Path, *members: tuple[str, bytes, str | int]) -> Path:
    """Write a .tar.gz of members, each a name, a type, and its target or its size."""
    with tarfile.open(path, "w:gz") as archive:
        for name, kind, what in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            if isinstance(what, str):
                member.linkname = what
            else:
                member.size = what
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def test_an_archive_writes_what_was_asked_for_and_nothing_else(tmp_path: Path) -> None:
    evil = [("../outside", b"0", 3), ("/tmp/outside", b"0", 3), ("d/other", b"0", 3), ("d/link", b"2", "/etc/passwd")]
    path = archive_of(tmp_path / "a.tar.gz", *evil, ("d", b"2", "/"), ("d/a", b"0", 5), ("d/b", b"0", 2))
    unpack(path, tmp_path / "in", ("d/a", "d/b"))
    found = {str(file.relative_to(tmp_path)): file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()}
    assert found == {"a.tar.gz": path.stat().st_size, "in/d/a": 5, "in/d/b": 2}
    assert not (tmp_path / "in/d").is_symlink()


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"5", b"6"])
def test_links_devices_and_folders_are_no_files(kind: bytes, tmp_path: Path) -> None:
    path = archive_of(tmp_path / "a.tar.gz", ("d/a", kind, "/etc/passwd"))
    with pytest.raises(DataError, match=r"d/a is not an ordinary file"):
        unpack(path, tmp_path / "in", ("d/a",))
    assert not (tmp_path / "in").exists()


@pytest.mark.parametrize("kind", [b"0", b"L", b"x", b"K"])  # files, and what tells names and links: read into memory
def test_an_archive_may_not_grow_without_end(kind: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive_of(tmp_path / "a.tar.gz", ("d/a", kind, 10**8), ("d/a", b"0", 3))
    monkeypatch.setattr(_archive, "MAX_UNPACKED_BYTES", 10**6)
    with little_memory(), pytest.raises(DataError, match="it is too large"):
        unpack(path, tmp_path / "in", ("d/a",))
    assert not any(file.is_file() for file in (tmp_path / "in").rglob("*"))


def test_an_archive_that_lacks_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.tar\.gz holds no d/b"):
        unpack(archive_of(tmp_path / "a.tar.gz", ("d/a", b"0", 5)), tmp_path, ("d/a", "d/b"))
    for content in (b"", b"\x1f\x8b", os.urandom(100)):
        (tmp_path / "b.tar.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"b\.tar\.gz"):
            unpack(tmp_path / "b.tar.gz", tmp_path, ("d/a",))
