"""A folder of images, a CSV file or a MedMNIST archive: checked, labelled, and divided into splits."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ArgumentError, DataError
from ._image_scan import Scanned, common_channels, common_size, scan, statistics
from ._image_source import find_images
from ._image_table import SPLITS, Row, check_groups
from ._images import Images, ImageSplits, check_size
from ._stratify import complete_splits

TASKS = ("classification", "regression", "segmentation")
MAX_MASK_CLASSES = 64
_SHOWN = 5  # files that an error names

_log = logging.getLogger(__name__)


def open_images(
    path: str | PathLike[str],
    *,
    task: str = "classification",
    labels: str | PathLike[str] | None = None,
    size: int | None = None,
    seed: int = 1,
    skip_broken: bool = False,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    progress: bool = False,
) -> ImageSplits:
    """Open a data set of images. Every file is decoded once, to check it; after that, images are read when needed.

    Layouts of ``path``, the suffixes of the image files being those that Pillow and tifffile know:

    * class folders, ``path/CLASS/…``, or ``path/train/CLASS/…`` and, if there, ``path/val`` and ``path/test``;
    * for segmentation, ``path/images`` and ``path/masks``, or both in ``path/train`` …; an image and its mask have the
      same name but for the suffix, and a mask has a whole number for each pixel;
    * a CSV file with the columns ``path`` (relative to its folder), ``label``, and possibly ``split`` (train, val or
      test) and ``group`` (such as the patient, whose images all come into one split). It is ``path`` itself,
      ``path/labels.csv``, or ``labels``. For regression labels are numbers, and there may be several columns whose
      names begin with ``label``; for segmentation the label is the path of the mask;
    * an archive of MedMNIST (``.npz``) of images or volumes, which is read into memory.

    Splits that are not there are drawn by ``seed``, each class divided in the proportion of ``fractions``. Copies of
    training images in the other splits are logged as a warning. Images are cropped to the square in their middle, or
    volumes to the cube, and resized to ``size``.

    Args:
        path: folder or file.
        task: "classification", "regression" or "segmentation".
        labels: a CSV file whose paths are relative to ``path``.
        size: rows and columns (and slices); None if all images are square, or cubes, and of one size.
        seed: of the splits.
        skip_broken: leave out files that cannot be used, and name them in ``skipped``.
        fractions: parts of the images for train, val and test.
        progress: draw a progress bar.

    Raises:
        ArgumentError: an argument has an unsupported value.
        DataError: a file cannot be used and ``skip_broken`` is false; there is no image or one class only; a class has
            no image in one of the splits, or too few to be divided; images differ in their channels, or in their sizes
            without ``size``; or the folder, file or archive is missing, unreadable or of another form.
    """
    path, shares = Path(path), _check_arguments(task, size, seed, fractions)
    table, source = find_images(path, task, None if labels is None else Path(labels))
    if not table.rows:
        raise DataError(f"{path} has no image")
    found = scan(source, table.rows, size, task == "segmentation", progress)
    skipped = tuple((row.path, one.problem) for row, one in zip(table.rows, found, strict=True) if one.problem)
    if skipped and (not skip_broken or len(skipped) == len(found)):
        raise DataError(_describe_broken(path, skipped, len(found), skip_broken))
    rows = [row for row, one in zip(table.rows, found, strict=True) if not one.problem]
    usable = [one for one in found if not one.problem]
    channels = common_channels(rows, usable)
    size = size or common_size(rows, usable)
    strata = [row.labels[0] if task == "classification" else "" for row in rows]
    if task == "classification" and len(table.label_names) > 1:
        raise DataError(
            f"{path} has {len(table.label_names)} labels an image: task (={task!r}) has one, regression several"
        )
    if task == "classification" and len(set(strata)) < 2:
        raise DataError(f"{path} has one class only ({strata[0]!r}): a classification needs two")
    rows = complete_splits(rows, strata, shares, seed)
    check_groups(rows)
    _warn_of_copies(path, rows, usable)
    if task == "classification":
        _check_classes(path, rows)
    classes, values, targets = _targets(path, task, rows, usable, table.label_names)
    mean, std = statistics([one for row, one in zip(rows, usable, strict=True) if row.split == "train"], channels)
    splits = {}
    for split in SPLITS:
        chosen = [index for index, row in enumerate(rows) if row.split == split]
        masks = tuple(rows[index].labels[0] for index in chosen) if task == "segmentation" else ()
        paths = tuple(rows[index].path for index in chosen)
        splits[split] = Images(source, paths, targets[chosen], masks, values, channels, size)
    names = table.label_names if task == "regression" else ()
    if task == "regression":  # as split_table writes them
        rows = [replace(row, labels=tuple(map(repr, t))) for row, t in zip(rows, targets.tolist(), strict=True)]
    digest = _fingerprint(rows, usable)
    return ImageSplits(
        path.resolve().name, task, **splits, classes=classes, target_names=names, channels=channels, size=size,
        mean=mean, std=std, skipped=skipped, fingerprint=digest,
    )  # fmt: skip


def _check_arguments(task: str, size: int | None, seed: int, fractions: Sequence[float]) -> tuple[float, ...]:
    if task not in TASKS:
        raise ArgumentError(f"task (={task!r}) must be one of {', '.join(TASKS)}")
    if size is not None:
        check_size(size)
    if not isinstance(seed, int) or seed < 0:
        raise ArgumentError(f"seed (={seed!r}) must be a whole number from 0")
    shares = tuple(fractions)
    if len(shares) != 3 or not all(0 < share < 1 for share in shares) or not math.isclose(sum(shares), 1):
        raise ArgumentError(
            f"fractions (={fractions!r}) must be three positive numbers with the sum 1: train, val, test"
        )
    return shares


def _describe_broken(path: Path, skipped: Sequence[tuple[str, str]], count: int, skip: bool) -> str:
    named = "; ".join(f"{name}: {reason}" for name, reason in skipped[:_SHOWN])
    more = f"; and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
    remedy = ". Repair or delete them"
    if not skip and len(skipped) < count:
        remedy += ", or leave them out with skip_broken (--skip-broken)"
    return f"{len(skipped)} of the {count} images of {path} cannot be used: {named}{more}{remedy}"


def _warn_of_copies(path: Path, rows: Sequence[Row], found: Sequence[Scanned]) -> None:
    """Log images for validation or test of which the training images hold a copy: their errors say little."""
    training = {one.digest: row.path for row, one in zip(rows, found, strict=True) if row.split == "train"}
    copies = [
        (row.path, training[one.digest])
        for row, one in zip(rows, found, strict=True)
        if row.split != "train" and one.digest in training
    ]
    if copies:
        count, (copy, original) = len(copies), copies[0]
        _log.warning("%d images for validation or test of %s are in train too: %s is %s", count, path, copy, original)


def _check_classes(path: Path, rows: Sequence[Row]) -> None:
    """Refuse a class without an image in one of the splits."""
    present = {(row.labels[0], row.split) for row in rows}
    for name in sorted({name for name, _ in present}):
        for split in SPLITS:
            if (name, split) not in present:
                raise DataError(
                    f"class {name!r} of {path} has no usable image in {split}: add one, leave the class out, or give "
                    "no splits, so that they are drawn"
                )


def _targets(
    path: Path, task: str, rows: Sequence[Row], found: Sequence[Scanned], label_names: Sequence[str]
) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """Return the classes, the values of masks in their order, and the targets of all images."""
    none = torch.zeros(0, dtype=torch.int64)
    if task == "classification":
        labels = [row.labels[0] for row in rows]
        classes = tuple(sorted(set(labels), key=_numeric_order))
        numbers = {name: number for number, name in enumerate(classes)}
        return classes, none, torch.tensor([numbers[label] for label in labels])
    if task == "regression":
        return (
            (),
            none,
            torch.tensor([[_number(row, *cell) for cell in zip(label_names, row.labels, strict=True)] for row in rows]),
        )
    seen: set[int] = set().union(*(one.values for one in found))
    learned: set[int] = set().union(*(one.values for row, one in zip(rows, found, strict=True) if row.split == "train"))
    if not 1 < len(seen) <= MAX_MASK_CLASSES:
        raise DataError(
            f"the masks of {path} have {len(seen)} different values: they must be 2 to {MAX_MASK_CLASSES} classes"
        )
    if unknown := sorted(seen - learned):
        raise DataError(f"the value {unknown[0]} of masks of {path} is in no training mask")
    values = sorted(seen)
    return tuple(map(str, values)), torch.tensor(values), torch.zeros(len(rows), 0)


def _numeric_order(name: str) -> tuple[int, int, str]:
    """Sort whole numbers by their value, before all other names."""
    return (0, int(name), name) if name.isascii() and name.isdecimal() else (1, 0, name)


def _number(row: Row, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{row.path}: {name} (={text!r}) must be a finite number")
    return value


def _fingerprint(rows: Sequence[Row], found: Sequence[Scanned]) -> str:
    digest = hashlib.sha256()
    for row, one in zip(rows, found, strict=True):
        digest.update(repr((row.path, row.labels, row.split)).encode())
        digest.update(one.digest)
    return digest.hexdigest()[:16]
