"""Figures of the README and other pages are those of the committed runs and measurements."""

from __future__ import annotations

import csv
import re
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


def test_the_speeds_in_the_text_are_those_of_the_committed_measurements() -> None:
    def rows(suite: str) -> list[dict[str, str]]:
        with (ROOT / "benchmarks" / "results" / f"{suite}.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def in_text(page: str, pattern: str) -> list[str]:
        (found,) = re.findall(pattern, " ".join((ROOT / page).read_text(encoding="utf-8").split()))
        return [found] if isinstance(found, str) else list(found)

    models = {(r["model"], r["batch"]): r for r in rows("models") if r["variant"] == "sepgroupy"}
    number = r"(\d\.\d)"
    faster = [f"{float(models[f'{kind}p4m-resnet44', '16']['step_speedup']):.1f}" for kind in ("", "g-", "gc-")]
    assert in_text("README.md", rf"is {number} \(dense\), {number} \(g\) and {number} \(gc\) times") == faster
    ours = [row for row in rows("cross_model") if row["against"] == "resnet44" and row["variant"] == row["model"]]
    against = {row["model"]: 1 / float(row["step_speedup"]) for row in ours}
    assert in_text("README.md", rf"of the gc network takes {number} times") == [f"{against['gc-p4m-resnet44']:.1f}"]
    steps = [float(models[model, "256"]["step_ms"]) for model in ("p4cnn", "z2cnn")]
    converted = [r for r in rows("converted") if r["match"] == "params" and r["variant"] == r["model"]]
    slowest = max(*against.values(), *(1 / float(row["step_speedup"]) for row in converted))
    assert slowest == against["g-p4m-resnet44"]
    expected = [f"{steps[0] / steps[1]:.1f}", f"{slowest:.1f}"]
    assert in_text("docs/index.md", rf"takes {number} \(P4CNN\) to {number} times \(g-p4m-ResNet44\)") == expected
