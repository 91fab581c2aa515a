"""The table of a study: a CSV file that grows by a row with each run, so that a stopped study goes on."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from sepgroupy._files import atomic

Row = dict[str, str]


def read_table(path: Path) -> list[Row]:
    """Return the rows of a table; none if it is missing."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def mean_and_error(values: Sequence[float], form: str = ".2f") -> str:
    """Return mean ± standard error as text; a single value stands alone."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{mean(values):{form}} ± {stdev(values) / len(values) ** 0.5:{form}}"


def write_table(path: Path, head: Sequence[str], rows: Sequence[Row]) -> None:
    """Replace a table, atomically."""
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, head, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
