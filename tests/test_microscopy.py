"""The generated images of cells, and the study that is made with them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from studies import microscopy

from sepgroupy.data import MICROSCOPY_CLASSES, open_images, write_microscopy
from sepgroupy.errors import ArgumentError


def test_images_do_not_depend_on_their_number(tmp_path: Path) -> None:
    few, many = write_microscopy(tmp_path / "few", 12, 6), write_microscopy(tmp_path / "many", 18, 6)
    names = sorted(path.relative_to(few) for path in few.rglob("*.png"))
    assert len(names) == 12 + 2 * 6
    arrays = [np.asarray(Image.open(few / name)) for name in names]
    for name, array in zip(names, arrays, strict=True):
        assert np.array_equal(array, np.asarray(Image.open(many / name)))
    assert len({array.tobytes() for array in arrays}) == len(arrays)
    other = write_microscopy(tmp_path / "other", 12, 6, seed=1)
    assert not any(np.array_equal(np.asarray(Image.open(other / n)), a) for n, a in zip(names, arrays, strict=True))


def test_the_folder_is_a_data_set(tmp_path: Path) -> None:
    images = open_images(write_microscopy(tmp_path / "cells", 12, 7))
    assert set(images.classes) == set(MICROSCOPY_CLASSES)
    assert (images.channels, images.size, len(images.train), len(images.val)) == (3, 32, 12, 7)
    means = [float(images.train[index][0].mean()) for index in range(12)]
    assert max(means) - min(means) < 0.3  # brightness does not tell the class


def test_too_few_images_and_existing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"train \(=5\) and test \(=6\) must be at least 6"):
        write_microscopy(tmp_path / "cells", 5, 6)
    with pytest.raises(ArgumentError, match="is there already"):
        write_microscopy(tmp_path, 12, 6)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in {"IMAGES": (12,), "SEEDS": (1,), "TEST_IMAGES": 12, "STEPS": 11, "BATCH": 6}.items():
        monkeypatch.setattr(microscopy, name, value)
    return microscopy


def test_digits_are_written_as_class_folders(script: Any, tmp_path: Path) -> None:
    images = open_images(script.write_digits(tmp_path / "digits", 60, 60))
    assert images.classes == tuple("0123456789")
    assert (images.channels, images.size, len(images.train), len(images.val)) == (1, 28, 60, 60)


def test_a_study_goes_on_where_it_stopped(script: Any, tmp_path: Path) -> None:
    data = "microscopy"
    file = tmp_path / "study.csv"
    script.study(data, file, "p4m-resnet8-w2")
    with file.open() as opened:
        rows = list(csv.DictReader(opened))
    assert [row["network"] for row in rows] == ["plain", "p4m-gc", "plain-long", "p4m-gc-long"]
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:2]) + "\n")
    script.study(data, file, "p4m-resnet8-w2")
    again = file.read_text().splitlines()
    assert [line.split(",")[:-1] for line in again] == [line.split(",")[:-1] for line in lines]  # but for the seconds
    script.study(data, file, "p4m-resnet8-w2")
    assert file.read_text().splitlines() == again
    script.plot(file, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 5000
