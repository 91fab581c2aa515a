"""Files of results: a CSV file per suite, a line per variant of a row."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sepgroupy._files import atomic

Row = Mapping[str, str]
SUITES = ("layers", "models", "cross_model", "converted", "modes", "scaling")


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, whole or not at all."""
    names = dict.fromkeys(n for row in rows for n in row)
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read(folder: Path) -> dict[str, list[Row]]:
    """Read the rows of every suite that has been run on the CPU."""
    found: dict[str, list[Row]] = {}
    for suite in SUITES:
        path = folder / f"{suite}.csv"
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                found[suite] = list(csv.DictReader(file))
    return found
