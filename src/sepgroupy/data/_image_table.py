"""The table of a data set of images: path, label, split and group of each, from a CSV file or from folders."""

from __future__ import annotations

import csv
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DataError

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Row:
    """One image: its path, its labels (a class, numbers, or the path of a mask), its split and its group, if known."""

    path: str
    labels: tuple[str, ...]
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Table:
    """All images, in the order of their paths, and the names of their labels."""

    rows: tuple[Row, ...]
    label_names: tuple[str, ...] = ("label",)


def read_csv(file: Path, several_labels: bool) -> Table:
    """Read a CSV file with the columns path and label, and possibly split and group.

    Args:
        file: UTF-8, with a header.
        several_labels: whether there may be several columns of labels, whose names begin with "label".

    Raises:
        DataError: the file cannot be read, a column is missing or unknown, a value is missing, a split is unknown, a
            path occurs twice, or the images of one group are in several splits.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened, strict=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            label_names = _check_columns(file, names, several_labels)
            rows = [_parse(file, reader.line_num, values, label_names) for values in reader]
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DataError(f"{file} is not UTF-8: save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{file} is not a CSV file: {error}") from None
    twice = [path for path, count in Counter(row.path for row in rows).items() if count > 1]
    if twice:
        raise DataError(f"{file} has {twice[0]!r} in several rows: an image has one")
    check_groups(rows)
    return Table(tuple(sorted(rows, key=lambda row: row.path)), label_names)


def check_groups(rows: list[Row]) -> None:
    """Refuse a group, such as a patient, whose images are in several splits.

    Raises:
        DataError: there is one.
    """
    splits: dict[str, set[str]] = {}
    for row in rows:
        if row.group is not None and row.split is not None:
            splits.setdefault(row.group, set()).add(row.split)
    for group, found in splits.items():
        if len(found) > 1:
            raise DataError(f"group {group!r} has images in {' and '.join(sorted(found))}: a group has one split")


def list_class_folders(root: Path) -> Table:
    """List ``root/CLASS/…``, or ``root/train/CLASS/…`` with ``val`` and ``test`` if there.

    Raises:
        DataError: there is no class folder, one holds no image, or a folder cannot be read.
    """
    rows: list[Row] = []
    for split, folder in _split_folders(root):
        classes = _subfolders(folder)
        if not classes:
            raise DataError(f"{folder} has no class folder: put the images of each class into a folder of its name")
        for name in classes:
            files = list(_image_files(folder / name))
            if not files:
                raise DataError(f"{folder / name} is a class folder without an image{_found_instead(folder / name)}")
            label = unicodedata.normalize("NFC", name)
            rows += [Row(path.relative_to(root).as_posix(), (label,), split) for path in files]
    return Table(tuple(sorted(rows, key=lambda row: row.path)))


def list_mask_folders(root: Path) -> Table:
    """List ``root/images`` with ``root/masks``, or both in each of ``root/train``, ``val`` and ``test``.

    An image and its mask have the same path in their folders but for the suffix; the label of an image is the path of
    its mask, empty if there is none.

    Raises:
        DataError: a folder is missing, empty or unreadable, or masks have no image.
    """
    rows: list[Row] = []
    for split, folder in _split_folders(root):
        found = []
        for name in ("images", "masks"):
            if not (folder / name).is_dir():
                raise DataError(f"{folder} has no folder {name!r}: segmentation reads images and their masks")
            files = {path.relative_to(folder / name).with_suffix(""): path for path in _image_files(folder / name)}
            found.append({key: path.relative_to(root).as_posix() for key, path in files.items()})
        images, masks = found
        if not images:
            raise DataError(f"{folder / 'images'} holds no image{_found_instead(folder / 'images')}")
        if alone := sorted(masks.keys() - images.keys()):
            raise DataError(f"{masks[alone[0]]} and {len(alone) - 1} other masks have no image of their name")
        rows += [Row(path, (masks.get(key, ""),), split) for key, path in images.items()]
    return Table(tuple(sorted(rows, key=lambda row: row.path)))


def list_images(folder: Path) -> list[Path]:
    """List the image files in a folder and its subfolders, sorted; hidden ones are left out.

    Raises:
        DataError: a folder cannot be read.
    """
    return list(_image_files(folder))


def _split_folders(root: Path) -> list[tuple[str | None, Path]]:
    """Return the folders of the splits by the name of the split, or the root itself if there are none."""
    names = _subfolders(root)
    if "train" not in names:
        if "test" in names and set(names) <= _SPLIT_NAMES.keys():
            raise DataError(f"{root} has no folder train: a network learns from it")
        return [(None, root)]
    if unknown := [name for name in names if name not in _SPLIT_NAMES]:
        raise DataError(f"{root} has the folder {unknown[0]!r} beside train: only val and test may be there")
    splits = [_SPLIT_NAMES[name] for name in names]
    if len(set(splits)) < len(splits):
        raise DataError(f"{root} has several folders of validation images ({', '.join(names)}): one is enough")
    return [(split, root / name) for split, name in zip(splits, names, strict=True)]


def _subfolders(folder: Path) -> list[str]:
    try:
        return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        raise _unreadable(error) from None


def _image_files(folder: Path) -> Iterator[Path]:
    suffixes = image_suffixes()

    def refuse(error: OSError) -> None:
        raise _unreadable(error) from None

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                yield Path(place, name)


def image_suffixes() -> frozenset[str]:
    """Return the suffixes of the files that count as images, in lower case."""
    from PIL import Image

    known = Image.registered_extensions()  # loads all of Pillow's formats
    return frozenset(suffix for suffix, name in known.items() if name in Image.OPEN) | {".tif", ".tiff"}


def _unreadable(error: OSError) -> DataError:
    return DataError(f"{error.filename} cannot be read: {error.strerror or error}")


def _found_instead(folder: Path) -> str:
    suffixes = Counter(p.suffix or "no suffix" for p in folder.rglob("*") if p.is_file())
    named = ", ".join(f"{count} files with {suffix}" for suffix, count in suffixes.most_common(3))
    return f" ({named})" if named else ": add images or delete it"


def _check_columns(file: Path, names: list[str], several_labels: bool) -> tuple[str, ...]:
    """Return the names of the columns of labels."""
    labels = [name for name in names if name == "label" or (several_labels and name.startswith("label"))]
    wanted = "path, label" + (" (or several that begin with label)" if several_labels else "")
    if "path" not in names or not labels:
        raise DataError(f"{file} has the columns {', '.join(names)}: it needs {wanted}, separated by commas")
    unknown = [name for name in names if name not in ("path", "split", "group", *labels)]
    if unknown or len(set(names)) < len(names):
        raise DataError(
            f"{file} has the columns {', '.join(names)}: they must be {wanted} and, if wanted, split and group (such "
            "as the patient, whose images stay in one split). Rename or delete the others"
        )
    return tuple(labels)


def _parse(file: Path, line: int, values: dict[str, str | None], label_names: tuple[str, ...]) -> Row:
    if None in values or None in values.values():
        raise DataError(f"{file}, line {line}, has another number of values than the header: put quotes around commas")
    cells = {
        name: unicodedata.normalize("NFC", (value or "").strip()) for name, value in values.items() if name != "path"
    }
    path = (values["path"] or "").strip()
    for name, value in (("path", path), *((name, cells[name]) for name in label_names)):
        if not value:
            raise DataError(f"{file}, line {line}, has no {name}")
    split, group = cells.get("split"), cells.get("group")
    if split is not None and split not in _SPLIT_NAMES:
        raise DataError(f"{file}, line {line}: split (={split!r}) must be train, val or test")
    if group == "":
        raise DataError(f"{file}, line {line}, has no group")
    return Row(path, tuple(cells[name] for name in label_names), _SPLIT_NAMES[split] if split else None, group)


def with_splits(rows: list[Row], splits: list[str]) -> list[Row]:
    """Return the rows with these splits."""
    return [replace(row, split=split) for row, split in zip(rows, splits, strict=True)]
