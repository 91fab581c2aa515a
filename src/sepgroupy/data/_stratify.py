"""Divide images into training, validation and test images by a seed: each class, and no group in two of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..errors import DataError
from ._image_table import SPLITS, Row, with_splits


def complete_splits(rows: list[Row], strata: Sequence[str], fractions: Sequence[float], seed: int) -> list[Row]:
    """Return the rows with a split each: as they are if all three splits occur, else the missing ones are drawn.

    What is missing is drawn from the training images, or from all if no row has a split; ``fractions`` are taken in
    their proportion to that of the training images. Each stratum, such as a class, is divided by itself. Where rows
    have groups, whole groups are drawn, and the strata are divided as evenly as that allows.

    Args:
        rows: with a split for all of them or for none.
        strata: of each row.
        fractions: of train, val and test.
        seed: of the draw.

    Raises:
        DataError: some rows have a split and others have not, there are no training images, or a stratum or the groups
            are too few to be divided.
    """
    present = {row.split for row in rows}
    if None in present and len(present) > 1:
        raise DataError(
            f"{next(row.path for row in rows if row.split is None)} has no split, and other images have one"
        )
    if None in present:
        rows, present = with_splits(rows, ["train"] * len(rows)), {"train"}
    if "train" not in present:
        raise DataError("there is no training image")
    missing = [split for split in SPLITS if split not in present]
    if not missing:
        return rows
    shares = {split: share for split, share in zip(SPLITS, fractions, strict=True) if split in ("train", *missing)}
    shares = {split: share / sum(shares.values()) for split, share in shares.items()}
    here = [index for index, row in enumerate(rows) if row.split == "train"]
    classes, groups = [strata[index] for index in here], [rows[index].group for index in here]
    generator = np.random.Generator(np.random.PCG64(seed))
    if None in groups:
        drawn = _divide_classes(classes, shares, generator)
    else:
        drawn = _divide_groups(classes, [str(group) for group in groups], shares, generator)
    splits = [str(row.split) for row in rows]
    for index, split in zip(here, drawn, strict=True):
        splits[index] = split
    return with_splits(rows, splits)


def _divide_classes(strata: Sequence[str], shares: dict[str, float], generator: np.random.Generator) -> list[str]:
    """Return a split for each image; every stratum has at least one image in each."""
    splits = [""] * len(strata)
    for stratum in sorted(set(strata)):
        members = [index for index, found in enumerate(strata) if found == stratum]
        if len(members) < len(shares):
            what = f"class {stratum!r} has" if stratum else "there are"
            raise DataError(
                f"{what} {len(members)} images, too few to be divided into {', '.join(shares)}: at least {len(shares)}"
            )
        counts = {split: max(1, round(share * len(members))) for split, share in shares.items() if split != "train"}
        while sum(counts.values()) >= len(members):
            counts[max(counts, key=counts.__getitem__)] -= 1
        order = generator.permutation(members)
        for split, count in (*counts.items(), ("train", len(members) - sum(counts.values()))):
            for index in order[:count]:
                splits[index] = split
            order = order[count:]
    return splits


def _divide_groups(
    strata: Sequence[str], groups: Sequence[str], shares: dict[str, float], generator: np.random.Generator
) -> list[str]:
    """Return a split for each image; the largest groups are placed first, each where its classes are missing most."""
    counts: dict[str, Counter[str]] = {}
    for stratum, group in zip(strata, groups, strict=True):
        counts.setdefault(group, Counter())[stratum] += 1
    if len(counts) < len(shares):
        raise DataError(f"there are {len(counts)} groups, too few to be divided into {', '.join(shares)}")
    totals, placed = Counter(strata), {split: Counter[str]() for split in shares}
    names = [sorted(counts)[index] for index in generator.permutation(len(counts))]
    where = {}
    for group in sorted(names, key=lambda name: -counts[name].total()):
        lacking = {
            split: sum(n * (share - placed[split][s] / totals[s]) / share / totals[s] for s, n in counts[group].items())
            for split, share in shares.items()
        }
        where[group] = max(lacking, key=lacking.__getitem__)
        placed[where[group]] += counts[group]
    return [where[group] for group in groups]
