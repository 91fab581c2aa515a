"""Damage files in many ways and read them: each must be read, or refused by an error of sepgroupy's own.

    python -m tests.stress.fuzz --files 20000

Neither another exception, nor more than ten seconds, nor more than 1 GiB of memory is forgiven. What fails is saved in
the folder that ``--keep`` names.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import io
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sepgroupy import load_published
from sepgroupy.data import AMAT_FILES, load_amat, load_cifar10, write_synthetic_cifar10
from sepgroupy.data._archive import unpack
from sepgroupy.errors import SepgroupyError
from sepgroupy.models import WeightsCard, build_model, save_weights
from sepgroupy.paper import RunConfig, load_idx
from sepgroupy.training import evaluate, read_config, read_result, train

from .small import before_step, few_digits, interrupt, small_run, use_digits

TRAIN_FILE, TEST_FILE = AMAT_FILES

SECONDS, BYTES = 10, 2**30


class HangError(BaseException):
    """Raised through any ``except Exception`` when a file takes too long."""


@dataclass(frozen=True)
class Target:
    """A reader, the folder that it reads, and the files in it that are damaged."""

    read: Callable[[Path], object]
    make: Callable[[Path], object]
    files: tuple[str, ...]


def damage(content: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """Change a file as accidents and attackers do: bits, numbers, pieces; inside archives too, checksums made right."""
    if content[:1] == b"{" and chance.random() < 0.5:
        return json.dumps(_alter(json.loads(content), chance, _VALUES)).encode()
    if content[:2] == b"PK" and b"data.pkl" in content and chance.random() < 0.5:
        buffer = io.BytesIO()
        torch.save(_alter(torch.load(io.BytesIO(content), weights_only=True), chance, _VALUES + _TENSORS), buffer)
        return buffer.getvalue()
    if content[:2] == b"PK" and chance.random() < 0.7:
        return _damage_zip(content, chance, others)
    if content[:2] == b"\x1f\x8b" and chance.random() < 0.7:
        return gzip.compress(damage(gzip.decompress(content), chance, others), 1)
    damaged = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        at, length = chance.randrange(len(damaged) + 1), chance.choice((1, 1, 2, 4, 8, 64, 1024))
        piece = slice(at, at + length)
        match chance.randrange(8):
            case 0:
                damaged[piece] = chance.randbytes(len(damaged[piece]))
            case 1:
                del damaged[piece]
            case 2:
                damaged[at:at] = damaged[piece] * chance.choice((1, 2, 100))
            case 3:
                damaged[piece] = chance.choice(_WORDS)
            case 4:
                damaged[at:at] = chance.choice(_WORDS)
            case 5:
                del damaged[at:]
            case 6:
                other = chance.choice(others)
                start = chance.randrange(len(other) + 1)
                damaged[piece] = other[start : start + length]
            case _ if damaged:
                damaged[at % len(damaged)] ^= 1 << chance.randrange(8)
    return bytes(damaged)


_NUMBERS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1)
_WORDS = [
    *(number.to_bytes(size, order) for number in _NUMBERS for size in (4, 8) for order in ("big", "little")),
    *(b"nan", b"inf", b"-1", b"1e999", b"9" * 400, b"null", b"true", b"[", b"{", b'"', b"\n", b" ", b"\0", b"\xc3\xa9"),
    *(b"(", b")", b"]", b"}", b"R", b"b", b"s", b"\x85", b"q\xff", b"r\xff\xff\xff\x7f"),
    *(b"cos\nsystem\n", b"cbuiltins\neval\n", b"../../x", b"/etc/passwd", b"2.0", b"1e308", b"[]", b"{}", b"-0"),
]


def _alter(value: Any, chance: random.Random, values: list[Any]) -> Any:
    """Put something else somewhere into nested dictionaries and lists, or take something out."""
    if not isinstance(value, (dict, list)) or not value or chance.random() < 0.1:
        return chance.choice(values)
    altered: Any = copy.copy(value)
    key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
    match chance.randrange(8):
        case 0:
            del altered[key]
        case 1 if isinstance(value, dict):
            altered[chance.choice(("", "weight", 7))] = altered[key]
        case 2 if isinstance(value, list):
            altered.append(altered[key])
        case _:
            altered[key] = _alter(altered[key], chance, values)
    return altered


_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    2,
    2**31,
    2**63,
    -(10**400),
    1e308,
    math.nan,
    math.inf,
    "",
    "x",
    "../..",
    "1",
    [],
    {},
]
_VALUES += [[[]] * 3, {"x": {}}, "x" * 10**5, [1] * 10**4, "cifar10", "gc-p4cnn", "resnet44"]
_TENSORS = [
    torch.zeros(3),
    torch.zeros(()),
    torch.zeros(0, 5),
    torch.full((2, 2), math.nan),
    torch.ones(1, dtype=torch.int64),
]
_TENSORS += [torch.zeros(1).expand(10**12), torch.zeros(2, 2).to_sparse(), torch.zeros(2, dtype=torch.complex64)]


def _damage_zip(content: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    chosen = chance.choice([name for name in parts if name.endswith((".pkl", ".npy"))] or list(parts))
    chosen = chosen if chance.random() < 0.8 else chance.choice(list(parts))
    parts[chosen] = damage(parts[chosen], chance, others)
    buffer = io.BytesIO()
    with zipfile.ZipFile(
        buffer, "w", chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return buffer.getvalue()


def targets() -> dict[str, Target]:
    """Return every reader of files from outside."""
    return {
        "amat": Target(load_amat, _make_amat, (TRAIN_FILE, TEST_FILE)),
        "amat cache": Target(load_amat, _make_cached_amat, (f"{TRAIN_FILE}.cache.npz",)),
        "idx": Target(lambda folder: load_idx(folder, 3, 3), _make_idx, _IDX),
        "cifar batch": Target(lambda folder: load_cifar10(folder, whiten=False), _make_cifar, _BATCHES),
        "archive": Target(lambda folder: unpack(folder / _ARCHIVE, folder, ("d/a", "d/b")), _make_archive, (_ARCHIVE,)),
        "configuration": Target(read_config, _make_run, ("config.json",)),
        "result": Target(read_result, _make_run, ("result.json",)),
        "run folder": Target(_evaluate, _make_run, ("config.json", "result.json", "last.ckpt")),
        "checkpoint": Target(lambda folder: train(_run(folder)), _make_stopped_run, ("last.ckpt",)),
        "published checkpoint": Target(lambda folder: load_published(folder / "zip.pt"), _make_published, ("zip.pt",)),
        "weights": Target(_read_weights, _make_weights, ("net.npz",)),
        "old checkpoint": Target(lambda folder: load_published(folder / "old.pt"), _make_published, ("old.pt",)),
    }


_ARCHIVE = "files.tar.gz"
_BATCHES = tuple(f"cifar-10-batches-py/{name}" for name in ("data_batch_1", "data_batch_5", "test_batch"))
_IDX = tuple(
    f"{part}-{what}-ubyte{suffix}"
    for part, suffix in (("train", ""), ("t10k", ".gz"))
    for what in ("images-idx3", "labels-idx1")
)


def _make_amat(folder: Path) -> None:
    for name, count in ((TRAIN_FILE, 3), (TEST_FILE, 2)):
        rows = np.random.default_rng(count).random((count, 785)).round(2)
        rows[:, -1] = np.arange(count)
        np.savetxt(folder / name, rows, fmt="%.4g")


def _make_cached_amat(folder: Path) -> None:
    _make_amat(folder)
    load_amat(folder)


def _make_idx(folder: Path) -> None:
    for part, pack, suffix in (("train", bytes, ""), ("t10k", gzip.compress, ".gz")):
        pixels = np.random.default_rng(0).integers(0, 256, 4 * 784, np.uint8).tobytes()
        header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (4, 28, 28))
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(header + pixels))
        (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(b"\0\0\x08\x01\0\0\0\x04\1\2\3\4"))


def _make_cifar(folder: Path) -> None:
    write_synthetic_cifar10(folder, 10, 2)


def _make_archive(folder: Path) -> None:
    with tarfile.open(folder / _ARCHIVE, "w:gz") as archive:
        for name, kind in (("d", tarfile.DIRTYPE), ("d/a", tarfile.REGTYPE), ("l", tarfile.SYMTYPE), ("d/b", b"0")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "d/a"
            member.size = 1000 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(bytes(1000)))


def _make_run(folder: Path) -> None:
    train(_run(folder))


def _make_stopped_run(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        use_digits(patch, few_digits(), save_seconds=-1.0)
        before_step(patch, interrupt, 3)
        with pytest.raises(KeyboardInterrupt):
            train(_run(folder))


def _run(folder: Path) -> RunConfig:
    return small_run(folder, epochs=1, log_every=1)


def _make_published(folder: Path) -> None:
    state = build_model("gc-p4cnn-small", width=3).state_dict()
    torch.save({"state_dict": state}, folder / "zip.pt")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)


def _make_weights(folder: Path) -> None:
    card = WeightsCard("gc-p4cnn-small", "none", {}, 1, 50.0, 3420, "none", "published", "")
    save_weights(folder / "net.npz", build_model("gc-p4cnn-small", width=3), card)


def _read_weights(folder: Path) -> None:
    build_model("gc-p4cnn-small", width=3, weights=folder / "net.npz")


def _evaluate(folder: Path) -> None:
    read_result(folder)
    evaluate(folder, "cpu")


def fuzz(files: int, folder: Path, seed: int = 0, keep: Path | None = None) -> tuple[Counter[str], list[str]]:
    """Damage ``files`` files, an equal share for each reader, and read them.

    Returns:
        How many were read and how many refused, by reader; and what went wrong, a line each.
    """
    use_digits(pytest.MonkeyPatch(), few_digits(), save_seconds=300)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    signal.signal(signal.SIGALRM, _hang)
    counts: Counter[str] = Counter()
    failures: list[str] = []
    for name, target in targets().items():
        place = folder / name.replace(" ", "-")
        place.mkdir()
        target.make(place)
        whole = {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        others = [whole[Path(file)] for file in target.files]
        chance = random.Random(f"{seed} {name}")
        for number in range(files // len(targets())):
            _restore(place, whole)
            file = chance.choice(target.files)
            content = damage(whole[Path(file)], chance, others)
            (place / file).write_bytes(content)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            signal.alarm(SECONDS)
            try:
                target.read(place)
                counts[f"{name}: read"] += 1
            except SepgroupyError:
                counts[f"{name}: refused"] += 1
            except (Exception, HangError) as error:
                failures.append(f"{name} {number} ({file}): {type(error).__name__}: {error!s:.200}")
            finally:
                signal.alarm(0)
            grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
            if grown > BYTES:
                failures.append(f"{name} {number} ({file}): {grown / 2**30:.1f} GiB")
            if keep is not None and failures and failures[-1].startswith(f"{name} {number} "):
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{name.replace(' ', '-')}-{number}-{Path(file).name}").write_bytes(content)
        _restore(place, whole)
        target.read(place)  # undamaged, it is read
    return counts, failures


def _restore(place: Path, whole: dict[Path, bytes]) -> None:
    shutil.rmtree(place)
    for path, content in whole.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(content)


def _hang(*_: object) -> None:
    raise HangError(f"more than {SECONDS} s")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.fuzz", description=__doc__)
    parser.add_argument("--files", type=int, default=20_000, help="how many to damage (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (%(default)s)")
    parser.add_argument("--keep", type=Path, help="where to keep the files that were not dealt with")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts, failures = fuzz(options.files, Path(folder), options.seed, options.keep)
    print(*(f"{count:6d} {what}" for what, count in counts.items()), *failures, sep="\n")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    total = sum(counts.values()) + len(failures)
    print(f"{total} files, {len(failures)} failures, {peak:.2f} GiB at most, {time.monotonic() - start:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
