"""The tables of errors in the README and the results page are those of the committed runs."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import pytest

from sepgroupy.paper import PAPER_RESULTS

ROOT = Path(__file__).resolve().parents[1]
NAMES = {
    "Z2CNN": "z2cnn", "c-Z2CNN": "c-z2cnn", "P4CNN": "p4cnn", "g-P4CNN": "g-p4cnn", "gc-P4CNN": "gc-p4cnn",
    "g-P4CNN small": "g-p4cnn-small", "gc-P4CNN small": "gc-p4cnn-small",
}  # fmt: skip


def errors_of(data: str) -> dict[str, list[float]]:
    """Return the errors of the paper's recipe on all training images, by model."""
    found = defaultdict(list)
    with (ROOT / "results" / data / "runs.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["optimizer"] == "adam" and not row["samples"]:
                found[row["model"]].append(float(row["test_error"]))
    return found


@pytest.mark.parametrize("page", ["README.md", "results/README.md"])
def test_the_table_of_errors_is_that_of_the_committed_runs(page: str) -> None:
    digits, fashion = errors_of("rotmnist"), errors_of("fashion")
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    rows = {row[0]: row for row in cells if len(row) == 6 and row[0] in NAMES}
    assert rows.keys() == NAMES.keys()
    for label, model in NAMES.items():
        assert (len(digits[model]), len(fashion[model])) == (5, 3)
        assert rows[label][3:5] == [f"{mean(e):.1f} ± {stdev(e):.1f} %" for e in (digits[model], fashion[model])]
        error, deviation = map(float, PAPER_RESULTS[model].test_error.split(" / ")[0].split(" ± "))
        assert rows[label][5] == f"{error:.2f} ± {deviation:.2f} %"
