"""Anyone's images: layouts, splits, and what is refused."""

from __future__ import annotations

import csv
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch.utils.data import DataLoader

from sepgroupy.data import ImageSplits, open_image_files, open_images
from sepgroupy.errors import ArgumentError, DataError

RNG = np.random.Generator(np.random.PCG64(0))


def noise(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def class_folders(root: Path, count: int = 10, classes: tuple[str, ...] = ("round", "square")) -> Path:
    for name in classes:
        for index in range(count):
            save(root / name / f"{index}.png", noise(8, 8))
    return root


def write_csv(file: Path, *rows: tuple[Any, ...]) -> Path:
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows(rows)
    return file


def splits_by_path(images: ImageSplits) -> dict[str, str]:
    return {row[0]: row[-1] for row in images.split_table()[1:]}


# ---- class folders ---------------------------------------------------------------------------------------------------


def test_class_folders_are_divided_by_class_and_seed(tmp_path: Path) -> None:
    class_folders(tmp_path, 20)
    images = open_images(tmp_path)
    assert images.classes == ("round", "square")
    assert (images.size, images.channels, images.outputs, images.skipped) == (8, 1, 2, ())
    for split, count in (("train", 14), ("val", 3), ("test", 3)):
        assert Counter(getattr(images, split).targets.tolist()) == {0: count, 1: count}
    by_path = splits_by_path(images)
    assert set(by_path) == {f"{c}/{i}.png" for c in images.classes for i in range(20)}
    assert splits_by_path(open_images(tmp_path)) == by_path
    assert splits_by_path(open_images(tmp_path, seed=2)) != by_path


def test_items_are_the_files_scaled_to_one(tmp_path: Path) -> None:
    class_folders(tmp_path, 3)
    images = open_images(tmp_path)
    for split in (images.train, images.val, images.test):
        for index, path in enumerate(split.paths):
            image, target = split[index]
            expected = np.asarray(Image.open(tmp_path / path), np.float64) / 255
            np.testing.assert_allclose(image.numpy()[0], expected, atol=1e-7)
            assert images.classes[target] == path.split("/")[0]
    batch, targets = next(iter(DataLoader(images.train, 2)))
    assert batch.shape == (2, 1, 8, 8)
    assert targets.dtype == torch.int64


def test_mean_and_deviation_are_of_the_training_images(tmp_path: Path) -> None:
    for split, value in (("train", 100), ("val", 0), ("test", 250)):
        for name in "ab":
            image = np.full((4, 4, 3), value, np.uint8)
            image[..., 1] += np.uint8(name == "b")  # one channel varies
            save(tmp_path / split / name / "0.png", image)
    images = open_images(tmp_path)
    np.testing.assert_allclose(np.array(images.mean) * 255, (100, 100.5, 100), rtol=1e-6)
    np.testing.assert_allclose(np.array(images.std), (1, 0.5 / 255, 1), rtol=1e-4)


def test_folders_of_splits_are_used_and_missing_ones_are_drawn_from_training(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", 10)
    class_folders(tmp_path / "test", 4)
    images = open_images(tmp_path)
    assert {len(images.train), len(images.val)} == {16, 4}  # 0.15 of 0.85
    assert all(path.startswith("test/") for path in images.test.paths)
    assert all(path.startswith("train/") for path in images.train.paths + images.val.paths)
    class_folders(tmp_path / "valid", 2)
    images = open_images(tmp_path)
    assert (len(images.train), len(images.val), len(images.test)) == (20, 4, 8)
    class_folders(tmp_path / "other", 2)
    with pytest.raises(DataError, match="folder 'other' beside train"):
        open_images(tmp_path)


def test_a_stored_split_gives_the_same_data_set(tmp_path: Path) -> None:
    class_folders(tmp_path / "data", 6, ("naïve, late", "Ωmega"))
    images = open_images(tmp_path / "data", seed=5)
    file = write_csv(tmp_path / "split.csv", *images.split_table())
    again = open_images(tmp_path / "data", labels=file, seed=9)
    assert again.classes == images.classes == ("naïve, late", "Ωmega")
    assert splits_by_path(again) == splits_by_path(images)
    assert again.mean == images.mean
    assert again.fingerprint == images.fingerprint
    save(tmp_path / "data" / images.train.paths[0], noise(8, 8))
    assert open_images(tmp_path / "data", labels=file).fingerprint != images.fingerprint


def test_images_are_cropped_in_the_middle_and_resized(tmp_path: Path) -> None:
    class_folders(tmp_path, 3)
    wide = np.zeros((16, 24), np.uint8)
    wide[:, 4:20] = 200  # the square in the middle
    save(tmp_path / "round" / "0.png", wide)
    with pytest.raises(DataError, match=r"size is missing: the images have 8×8 .* to 16×24 \(round/0.png\)"):
        open_images(tmp_path)
    images = open_images(tmp_path, size=4)
    everything = {path: s[i][0] for s in (images.train, images.val, images.test) for i, path in enumerate(s.paths)}
    assert {tuple(image.shape) for image in everything.values()} == {(1, 4, 4)}
    torch.testing.assert_close(everything["round/0.png"], torch.full((1, 4, 4), 200 / 255))
    assert images.resize(16).train[0][0].shape == (1, 16, 16)
    assert images.resize(16).mean == images.mean


def test_resizing_is_equivariant(tmp_path: Path) -> None:
    array = noise(21, 21, 3)
    names = [str(save(tmp_path / f"{r}.png", np.rot90(array, r))) for r in range(4)]
    images = [image for image, _, _ in (open_image_files(names, channels=3, size=9)[i] for i in range(4))]
    for r, image in enumerate(images):
        torch.testing.assert_close(image, images[0].rot90(r, (-2, -1)), atol=1e-6, rtol=0)


def test_data_sets_are_pickled_for_workers(tmp_path: Path) -> None:
    images = open_images(class_folders(tmp_path, 3))
    copied = pickle.loads(pickle.dumps(images.train))
    torch.testing.assert_close(copied[1], images.train[1])


# ---- formats ---------------------------------------------------------------------------------------------------------


def read(path: Path, channels: int) -> torch.Tensor:
    image, _, problem = open_image_files(path, channels=channels, size=5)[0]
    assert problem == ""
    assert image is not None
    assert image.dtype == torch.float32
    return image


GRAY, RGB, DEEP, DEEP_RGB = noise(5, 5), noise(5, 5, 3), noise(5, 5, dtype=np.uint16), noise(5, 5, 3, dtype=np.uint16)
BANDS, REAL = noise(5, 5, 7, dtype=np.uint16), RNG.normal(0, 3, (5, 5)).astype(np.float32)
SIGNED = noise(5, 5).astype(np.int16) - 100


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "gif", "webp", "pgm"])
def test_gray_of_eight_bits(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    path = save(tmp_path / f"x.{suffix}", GRAY, **options)
    channels = 3 if suffix in ("webp", "gif") else 1
    expected = torch.from_numpy(GRAY / 255).float().expand(channels, 5, 5)
    torch.testing.assert_close(read(path, channels), expected)


@pytest.mark.parametrize(
    ("array", "options", "expected"),
    [
        (RGB, {"photometric": "rgb"}, RGB.transpose(2, 0, 1) / 255),
        (DEEP, {}, DEEP[None] / 65535),
        (DEEP, {"photometric": "miniswhite"}, 1 - DEEP[None] / 65535),
        (DEEP, {"compression": "zlib"}, DEEP[None] / 65535),
        (DEEP_RGB, {"photometric": "rgb"}, DEEP_RGB.transpose(2, 0, 1) / 65535),
        (BANDS, {"photometric": "minisblack", "planarconfig": "contig"}, BANDS.transpose(2, 0, 1) / 65535),
        (BANDS.transpose(2, 0, 1), {"photometric": "minisblack"}, BANDS.transpose(2, 0, 1) / 65535),
        (BANDS.transpose(2, 0, 1), {"imagej": True, "metadata": {"axes": "CYX"}}, BANDS.transpose(2, 0, 1) / 65535),
        (REAL, {}, REAL[None]),
        (REAL.astype(np.float64), {"bigtiff": True}, REAL[None]),
        (SIGNED, {}, (SIGNED[None] + 32768.0) / 65535),
        (DEEP.astype(np.uint32), {}, DEEP[None] / (2**32 - 1)),
    ],
)
def test_tiff_files_of_every_type_and_layout_are_read(
    tmp_path: Path, array: np.ndarray, options: dict[str, Any], expected: np.ndarray
) -> None:
    tifffile.imwrite(tmp_path / "x.tif", array, **options)
    torch.testing.assert_close(read(tmp_path / "x.tif", len(expected)), torch.from_numpy(expected).float())


@pytest.mark.parametrize(("array", "most"), [(GRAY, 255), (RGB, 255), (DEEP, 65535)])
def test_tiff_with_a_compression_that_tifffile_leaves_to_others(tmp_path: Path, array: np.ndarray, most: int) -> None:
    path = save(tmp_path / "x.tif", array, compression="tiff_lzw")
    expected = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    torch.testing.assert_close(read(path, len(expected)), torch.from_numpy(expected / most).float())


def test_png_of_sixteen_bits(tmp_path: Path) -> None:
    torch.testing.assert_close(read(save(tmp_path / "x.png", DEEP), 1)[0], torch.from_numpy(DEEP / 65535).float())


def test_palettes_alpha_and_orientation(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE, colors=25)
    image.save(tmp_path / "palette.png")
    expected = torch.from_numpy(np.asarray(image.convert("RGB")).transpose(2, 0, 1) / 255).float()
    torch.testing.assert_close(read(tmp_path / "palette.png", 3), expected)
    for alpha in (255, 51):
        rgba = np.dstack([RGB, np.full((5, 5), alpha, np.uint8)])
        expected = torch.from_numpy((RGB * (alpha / 255)).round().transpose(2, 0, 1) / 255).float()
        torch.testing.assert_close(read(save(tmp_path / "alpha.png", rgba), 3), expected)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90° clockwise
    path = save(tmp_path / "camera.png", GRAY, exif=exif)
    torch.testing.assert_close(read(path, 1)[0], torch.from_numpy(np.rot90(GRAY, -1) / 255).float())


def test_gray_images_among_color_ones_become_rgb(tmp_path: Path) -> None:
    class_folders(tmp_path, 3)
    save(tmp_path / "round" / "0.png", noise(8, 8, 3))
    images = open_images(tmp_path)
    assert images.channels == len(images.mean) == 3
    assert {tuple(images.train[i][0].shape) for i in range(len(images.train))} == {(3, 8, 8)}
    tifffile.imwrite(tmp_path / "round" / "x.tif", noise(8, 8, 5), planarconfig="contig", photometric="minisblack")
    with pytest.raises(DataError, match=r"channels, 1 \(.*\), 3 \(round/0.png\), 5 \(round/x.tif\)"):
        open_images(tmp_path)


# ---- files that cannot be used ---------------------------------------------------------------------------------------


def broken_files(folder: Path) -> dict[str, str]:
    """Write files of every kind that is refused; return the reasons by name."""
    whole = save(folder / "x.png", noise(64, 64)).read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    jpeg = save(folder / "x.jpg", noise(64, 64)).read_bytes()
    (folder / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    tifffile.imwrite(folder / "x.tif", noise(64, 64))
    (folder / "truncated.tif").write_bytes((folder / "x.tif").read_bytes()[:2000])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no image")
    save(folder / "dot.png", noise(1, 1))
    save(folder / "line.png", noise(2, 40))
    real = RNG.normal(size=(8, 8)).astype(np.float32)
    for name, value in (("nan", np.nan), ("infinite", np.inf)):
        real[3, 3] = value
        tifffile.imwrite(folder / f"{name}.tif", real)
    tifffile.imwrite(folder / "large.tif", np.full((8, 8), 1e300))
    tifffile.imwrite(folder / "complex.tif", real.astype(np.complex64))
    tifffile.imwrite(folder / "stack.tif", noise(4, 8, 8), imagej=True, metadata={"axes": "ZYX"})
    for name in ("x.png", "x.jpg", "x.tif"):
        (folder / name).unlink()
    broken = "broken, truncated or no image"
    reasons = dict.fromkeys(("truncated.png", "truncated.jpg", "truncated.tif", "empty.png", "text.png"), broken)
    reasons |= {"dot.png": "unsupported size of 1×1", "line.png": "unsupported size of 2×40"}
    reasons |= {"complex.tif": "complex64"}
    return (
        reasons | dict.fromkeys(("nan.tif", "infinite.tif", "large.tif"), "NaN or infinite") | {"stack.tif": "a stack"}
    )


def test_broken_files_are_named_counted_and_skipped(tmp_path: Path) -> None:
    class_folders(tmp_path, 5)
    reasons = broken_files(tmp_path / "round")
    with pytest.raises(DataError, match=rf"{len(reasons)} of the {10 + len(reasons)} images .* skip_broken") as caught:
        open_images(tmp_path)
    assert str(caught.value).count("round/") == 5  # not all of thousands
    images = open_images(tmp_path, skip_broken=True)
    assert {path for path, _ in images.skipped} == {f"round/{name}" for name in reasons}
    for path, reason in images.skipped:
        assert reasons[path.removeprefix("round/")] in reason
        assert " at 0x" not in reason
    assert len(images.split_table()) == 11


def test_copies_in_two_splits_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "val", "test"):
        class_folders(tmp_path / split, 2)
    open_images(tmp_path)
    assert not caplog.records
    copied = (tmp_path / "train" / "round" / "1.png").read_bytes()
    (tmp_path / "test" / "square" / "0.png").write_bytes(copied)
    open_images(tmp_path)
    assert "1 images for validation or test" in caplog.text
    assert "test/square/0.png is train/round/1.png" in caplog.text


def test_files_that_break_later_are_named(tmp_path: Path) -> None:
    images = open_images(class_folders(tmp_path, 3))
    (tmp_path / images.train.paths[0]).unlink()
    with pytest.raises(DataError, match=rf"{images.train.paths[0]} cannot be used any more: there is no such file"):
        images.train[0]


def test_a_data_set_of_broken_files_alone(tmp_path: Path) -> None:
    for name in "ab":
        broken_files(tmp_path / name)
    with pytest.raises(DataError, match=r"images of .* cannot be used"):
        open_images(tmp_path, skip_broken=True)


def test_bad_class_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_images(tmp_path / "nothing")
    with pytest.raises(DataError, match="has no class folder"):
        open_images(tmp_path)
    class_folders(tmp_path, 3, ("round",))
    with pytest.raises(DataError, match=r"one class only \('round'\)"):
        open_images(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty is a class folder without an image"):
        open_images(tmp_path)
    (tmp_path / "empty" / "scan.dcm").touch()
    (tmp_path / "empty" / ".hidden.png").touch()
    with pytest.raises(DataError, match=r"1 files with .dcm"):
        open_images(tmp_path)
    class_folders(tmp_path, 2, ("empty",))
    with pytest.raises(DataError, match="class 'empty' has 2 images, too few"):
        open_images(tmp_path)


def test_a_class_missing_in_a_split(tmp_path: Path) -> None:
    for split in ("train", "val"):
        class_folders(tmp_path / split, 2, ("a", "b", "c"))
    class_folders(tmp_path / "test", 2, ("a", "b"))
    with pytest.raises(DataError, match=r"class 'c' of .* has no usable image in test"):
        open_images(tmp_path)
    (tmp_path / "val").rename(tmp_path / ".val")
    (tmp_path / "train").rename(tmp_path / "val")
    with pytest.raises(DataError, match="no folder train"):
        open_images(tmp_path)


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path, 3)
    scandir = os.scandir

    def refuse(path: Any = ".") -> Any:
        if str(path).endswith("round"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    with pytest.raises(DataError, match="round cannot be read: Permission denied"):
        open_images(tmp_path)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"task": "detection"}, r"task \(='detection'\) must be one of classification"),
        ({"size": 1}, r"size \(=1\)"),
        ({"size": 8.5}, r"size \(=8.5\)"),
        ({"seed": -1}, r"seed \(=-1\)"),
        ({"fractions": (0.5, 0.5)}, "fractions"),
        ({"fractions": (0.8, 0.2, 0)}, "fractions"),
        ({"fractions": (0.8, 0.2, 0.2)}, "fractions"),
        ({"task": "regression"}, "labels is missing: regression reads numbers from a CSV file"),
    ],
)
def test_an_argument_out_of_range_is_refused(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        open_images(tmp_path, **options)


# ---- CSV -------------------------------------------------------------------------------------------------------------


def patients(root: Path, count: int = 12) -> Path:
    rows = []
    for patient in range(count):
        for index in range(1 + patient % 3):
            path = f"p{patient}-{index}.png"
            save(root / path, noise(8, 8))
            rows.append((path, "ill" if patient % 2 else "well, so far", f"patient {patient}"))
    return write_csv(root / "labels.csv", ("path", "label", "group"), *rows)


def test_no_patient_is_in_two_splits(tmp_path: Path) -> None:
    patients(tmp_path)
    for images in (open_images(tmp_path), open_images(tmp_path / "labels.csv", seed=3)):
        assert images.classes == ("ill", "well, so far")
        found: dict[str, set[str]] = {}
        for path, split in splits_by_path(images).items():
            found.setdefault(path.split("-")[0], set()).add(split)
        assert all(len(splits) == 1 for splits in found.values())
        assert 10 <= len(images.train) <= 18  # of 24
        for split in (images.train, images.val, images.test):
            assert set(split.targets.tolist()) == {0, 1}


def test_bad_tables(tmp_path: Path) -> None:
    for index in range(4):
        save(tmp_path / f"{index}.png", noise(8, 8))
    file = tmp_path / "labels.csv"

    def refuse(text: str, *rows: tuple[Any, ...]) -> None:
        write_csv(file, *rows)
        with pytest.raises(DataError, match=text):
            open_images(tmp_path)

    refuse("needs path, label, separated by commas", ("file", "class"), ("0.png", "a"))
    refuse("needs path, label, separated by commas", ("path;label",), ("0.png;a",))
    refuse("Rename or delete the others", ("path", "label", "patient_id"), ("0.png", "a", 3))
    refuse("line 2, has another number of values", ("path", "label"), ("0.png", "a", "b"))
    refuse("line 2, has another number of values", ("path", "label"), ("0.png",))
    refuse("line 3, has no label", ("path", "label"), ("0.png", "a"), ("1.png", " "))
    refuse("line 2, has no path", ("path", "label"), ("", "a"))
    refuse(r"split \(='dev'\) must be train, val or test", ("path", "label", "split"), ("0.png", "a", "dev"))
    refuse("'0.png' in several rows", ("path", "label"), ("0.png", "a"), ("0.png", "b"))
    refuse(
        "group 'p' has images in test and train",
        ("path", "label", "split", "group"), ("0.png", "a", "train", "p"), ("1.png", "a", "test", "p"),
    )  # fmt: skip
    refuse("has no image", ("path", "label"))
    refuse("1 of the 2 images .* 9.png: there is no such file", ("path", "label"), ("0.png", "a"), ("9.png", "b"))
    refuse(
        "there are 2 groups, too few",
        ("path", "label", "group"), *((f"{i}.png", "ab"[i % 2], "pq"[i % 2]) for i in range(4)),
    )  # fmt: skip
    file.write_bytes("path,label\n0.png,caf\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        open_images(tmp_path)


def test_a_table_from_a_spreadsheet(tmp_path: Path) -> None:
    for index in range(6):
        save(tmp_path / "sub" / f"{index}.png", noise(8, 8))
    text = "path, label\r\n" + "".join(f'"sub/{i}.png","{("Zürich, see", "ok")[i % 2]}"\r\n' for i in range(6))
    (tmp_path / "labels.csv").write_text("\ufeff" + text, encoding="utf-8", newline="")
    assert open_images(tmp_path).classes == ("Zürich, see", "ok")


def test_numbers_of_a_table_are_the_targets_of_a_regression(tmp_path: Path) -> None:
    header, rows = ("path", "label_x", "label_y"), []
    for index in range(10):
        save(tmp_path / f"{index}.png", noise(8, 8))
        rows.append((f"{index}.png", index / 4, f"{-index}e-1"))
    write_csv(tmp_path / "labels.csv", header, *rows)
    images = open_images(tmp_path, task="regression")
    assert (images.classes, images.target_names, images.outputs) == ((), ("label_x", "label_y"), 2)
    for index, path in enumerate(images.train.paths):
        number = int(path.removesuffix(".png"))
        torch.testing.assert_close(images.train[index][1], torch.tensor([number / 4, -number / 10]))
    again = open_images(tmp_path, task="regression", labels=write_csv(tmp_path / "split.csv", *images.split_table()))
    torch.testing.assert_close(again.test.targets, images.test.targets)
    for bad in ("", "five", "nan", "inf"):
        write_csv(tmp_path / "labels.csv", header, *rows[:-1], ("9.png", 1, bad))
        with pytest.raises(DataError, match="label_y"):
            open_images(tmp_path, task="regression")
    write_csv(tmp_path / "labels.csv", ("path", "label", "label_y"), *rows)
    with pytest.raises(DataError, match="Rename or delete"):  # a class has one column
        open_images(tmp_path)


# ---- masks -----------------------------------------------------------------------------------------------------------


def masks(root: Path, count: int = 6) -> Path:
    for index in range(count):
        save(root / "images" / f"{index}.jpg", noise(8, 8, 3))
        mask = np.zeros((8, 8), np.uint8)
        mask[: index + 1] = 255
        save(root / "masks" / f"{index}.png", mask)
    return root


def test_masks_have_classes_by_their_values(tmp_path: Path) -> None:
    images = open_images(masks(tmp_path), task="segmentation", size=16)
    assert (images.classes, images.outputs, images.channels) == (("0", "255"), 2, 3)
    for split in (images.train, images.val, images.test):
        for index, path in enumerate(split.paths):
            image, mask = split[index]
            rows = 2 * (int(Path(path).stem) + 1)  # magnified by 2
            assert image.shape == (3, 16, 16)
            assert mask.dtype == torch.int64
            assert (mask[:rows] == 1).all()
            assert (mask[rows:] == 0).all()
    file = write_csv(tmp_path / "split.csv", *images.split_table())
    again = open_images(tmp_path, task="segmentation", labels=file, size=16)
    assert splits_by_path(again) == splits_by_path(images)


def test_masks_of_a_palette_are_its_indices(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        save(tmp_path / split / "images" / "a.png", noise(4, 4))
        mask = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4) % 3, mode="P")
        mask.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
        (tmp_path / split / "masks").mkdir()
        mask.save(tmp_path / split / "masks" / "a.png")
    images = open_images(tmp_path, task="segmentation")
    assert images.classes == ("0", "1", "2")
    assert images.test[0][1].tolist() == (np.arange(16).reshape(4, 4) % 3).tolist()


def test_bad_masks(tmp_path: Path) -> None:
    masks(tmp_path)
    save(tmp_path / "masks" / "0.png", np.zeros((9, 9), np.uint8))
    save(tmp_path / "masks" / "1.png", noise(8, 8, 3))
    (tmp_path / "masks" / "2.png").unlink()
    save(tmp_path / "masks" / "3.jpg", noise(8, 8))
    (tmp_path / "masks" / "3.png").unlink()
    (tmp_path / "masks" / "4.png").unlink()
    tifffile.imwrite(tmp_path / "masks" / "4.tif", np.zeros((8, 8), np.float32))
    with pytest.raises(DataError) as caught:
        open_images(tmp_path, task="segmentation")
    for text in (  # one for each file
        "masks/0.png has 9×9 pixels, its image 8×8", "mask masks/1.png: a mask has one channel",
        "2.jpg: it has no mask",
        "mask masks/3.jpg: a mask in a JPEG", "mask masks/4.tif: a mask has one channel of whole numbers",
    ):  # fmt: skip
        assert text in str(caught.value)
    save(tmp_path / "masks" / "9.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(DataError, match=r"masks/9.png .* no image of their name"):
        open_images(tmp_path, task="segmentation")
    with pytest.raises(DataError, match="has no folder 'images'"):
        open_images(tmp_path / "masks", task="segmentation")


def test_masks_without_two_classes(tmp_path: Path) -> None:
    masks(tmp_path)
    for index in range(6):
        save(tmp_path / "masks" / f"{index}.png", noise(8, 8))
    with pytest.raises(DataError, match=r"have \d+ different values: they must be 2 to 64 classes"):
        open_images(tmp_path, task="segmentation")


# ---- MedMNIST --------------------------------------------------------------------------------------------------------


def medmnist(file: Path, *shape: int, labels: int = 1, **changes: Any) -> Path:
    """Write what medmnist distributes: six uint8 arrays in a compressed archive."""
    arrays: dict[str, Any] = {}
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        arrays[f"{split}_images"] = noise(count, *shape)
        arrays[f"{split}_labels"] = (np.arange(count * labels).reshape(count, labels) % 3).astype(np.uint8)
    np.savez_compressed(file, **(arrays | changes))
    return file


@pytest.mark.parametrize(("shape", "channels"), [((28, 28), 1), ((28, 28, 3), 3), ((28, 28, 28), 1)])
def test_a_medmnist_archive_has_its_splits_and_classes(tmp_path: Path, shape: tuple[int, ...], channels: int) -> None:
    file = medmnist(tmp_path / "some.npz", *shape)
    images = open_images(file)
    assert (images.classes, images.channels, images.size) == (("0", "1", "2"), channels, 28)
    assert images.dimension == (3 if shape == (28, 28, 28) else 2)
    assert (len(images.train), len(images.val), len(images.test)) == (6, 3, 3)
    with np.load(file) as stored:
        array = stored["val_images"][1] / 255
    expected = array[None] if channels == 1 else array.transpose(2, 0, 1)
    image, target = images.val[1]
    torch.testing.assert_close(image, torch.from_numpy(expected).float())
    assert target == 1
    again = open_images(file, labels=write_csv(tmp_path / "split.csv", *images.split_table()))
    assert splits_by_path(again) == splits_by_path(images)
    assert again.fingerprint == images.fingerprint


def test_volumes_are_cropped_to_a_cube_and_resized_along_each_axis(tmp_path: Path) -> None:
    z, y, x = np.ogrid[:12, :8, :10]
    ramp = (10 + 4 * z + 9 * y + 5 * x).astype(np.uint8)  # linear: means of 2×2×2 voxels are its values between them
    file = medmnist(tmp_path / "some.npz", 12, 8, 10, train_images=np.stack([ramp] * 6))
    with pytest.raises(DataError, match=r"the images have 12×8×10 \(\w+/\d+\) pixels; give size .* the cube"):
        open_images(file)
    images = open_images(file, size=8)
    np.testing.assert_allclose(images.train[0][0].numpy()[0] * 255, ramp[2:10, :, 1:9], rtol=1e-6)
    middle = images.resize(4).train[0][0].numpy()[0][1:3, 1:3, 1:3] * 255  # away from the edges
    z, y, x = (np.array([2.5, 4.5]) + first for first in (2, 0, 1))
    wanted = 10 + 4 * z[:, None, None] + 9 * y[None, :, None] + 5 * x[None, None]
    np.testing.assert_allclose(middle, wanted, rtol=1e-5)
    medmnist(file, 8, 8, 8, test_images=noise(3, 8, 8))
    with pytest.raises(DataError, match="has images in one split and volumes in another"):
        open_images(file)


def test_bad_archives(tmp_path: Path) -> None:
    file = tmp_path / "some.npz"
    file.write_bytes(b"PK no archive")
    with pytest.raises(DataError, match="is broken, or no archive of MedMNIST"):
        open_images(file)
    np.savez(file, other=np.zeros(3))
    with pytest.raises(DataError, match="has no arrays"):
        open_images(file)
    medmnist(file, 28, 28, train_labels=np.array([{"code": "run me"}] * 6, object))
    with pytest.raises(DataError, match=r"is broken, .*allow_pickle=False"):
        open_images(file)
    medmnist(file, 28, 28, test_labels=np.zeros((2, 1), np.uint8))
    with pytest.raises(DataError, match="has no test_labels with a row for each of its 3 images"):
        open_images(file)
    medmnist(file, 28, 28, train_images=np.zeros((6, 28, 28)))
    with pytest.raises(DataError, match="train_images is float64"):
        open_images(file)
    medmnist(file, 28, 28, labels=14)
    with pytest.raises(DataError, match="has 14 labels an image"):
        open_images(file)
    assert open_images(file, task="regression").outputs == 14
    with pytest.raises(ArgumentError, match="needs folders of images and masks"):
        open_images(file, task="segmentation")


# ---- files to predict on ---------------------------------------------------------------------------------------------


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    class_folders(tmp_path, 2)
    (tmp_path / "round" / "bad.png").write_bytes(b"bad")
    paths = [tmp_path / "square" / "0.png", tmp_path / "*" / "1.png", tmp_path / "round"]
    files = open_image_files(paths, channels=1, size=8)
    relative = [str(Path(name).relative_to(tmp_path)) for name in files.names]
    assert relative == ["square/0.png", "round/1.png", "square/1.png", "round/0.png", "round/bad.png"]
    (batch,) = DataLoader(files, 5, collate_fn=files.collate)
    images, names, unreadable = batch
    assert images.shape == (4, 1, 8, 8)
    assert names == [name for name in files.names if "bad" not in name]
    ((name, reason),) = unreadable
    assert name.endswith("bad.png")
    assert "broken" in reason
    assert open_image_files(tmp_path, channels=2, size=8)[0][2] == "it has 1 channels, not 2"


def test_nothing_to_predict_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image"):
        open_image_files(tmp_path, channels=1, size=8)
    with pytest.raises(DataError, match="does not exist"):
        open_image_files(tmp_path / "x.png", channels=1, size=8)
    with pytest.raises(DataError, match="matches no file"):
        open_image_files(tmp_path / "*.png", channels=1, size=8)
    with pytest.raises(ArgumentError, match="paths is empty"):
        open_image_files([], channels=1, size=8)
    with pytest.raises(ArgumentError, match=r"size \(=0\)"):
        open_image_files(tmp_path, channels=1, size=0)
