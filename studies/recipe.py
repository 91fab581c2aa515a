"""Study what each part of the recipe "modern" does for gc-P4CNN on rotated digits.

python -m studies.recipe            # train the runs that results/recipe/runs.csv lacks, print the tables

The recipe and its parts are compared on 800 held-out training digits after training on the other 3,200. Then the recipe
as it is trains on all 4,000, and only this network is tested on the test digits. Each error is also measured with class
probabilities averaged over four rotations.
"""

from __future__ import annotations

import argparse
import logging
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from sepgroupy.paper import RunConfig
from sepgroupy.training import load_model, score, train

from ._table import Row, mean_and_error, read_table, write_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "recipe" / "runs.csv"
HEAD = ("variant", "split", "seed", "error", "error_4_rotations")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "modern": ("modern", {}),
    "paper": ("paper", {}),
    "without elastic deformation": ("modern", {"elastic": 0.0}),
    "without any augmentation": ("modern", {"elastic": 0.0, "rotation": 0.0, "shift": 0.0, "scale": 0.0}),
    "without rotation": ("modern", {"rotation": 0.0}),
    "without shift and scale": ("modern", {"shift": 0.0, "scale": 0.0}),
    "with Adam": ("modern", {"optimizer": "adam", "weight_decay": 1e-5}),
    "with the steps of the paper's schedule": ("modern", {"schedule": "step", "milestones": (80,)}),
    "without label smoothing": ("modern", {"label_smoothing": 0.0}),
    "without averaged parameters": ("modern", {"ema": None}),
}
SEEDS, VALIDATION = (1, 2, 3), 800


def runs(folder: Path) -> list[tuple[Row, RunConfig]]:
    """Return the description of each run and its configuration: those on test digits first, then seed by seed."""
    found = []
    for split, seed, variant in [
        *(("test", seed, "modern") for seed in SEEDS),
        *(("validation", seed, variant) for seed in SEEDS for variant in VARIANTS),
    ]:
        recipe, settings = VARIANTS[variant]
        name = f"{variant.replace(' ', '-')}-{split}-{seed}"
        config = RunConfig.for_task("rotmnist", recipe, model="gc-p4cnn", seed=seed, folder=str(folder / name))
        held_out = VALIDATION if split == "validation" else 0
        settings = settings | {"validation": held_out, "log_every": config.epochs}
        found.append(({"variant": variant, "split": split, "seed": str(seed)}, replace(config, **settings)))
    return found


def measure(folder: Path) -> list[Row]:
    """Train what the table lacks, write each result into it at once, and return its rows."""
    rows = read_table(RESULTS)
    done = [{name: row[name] for name in HEAD[:3]} for row in rows]
    for run, config in runs(folder):
        if run in done:
            continue
        train(config)
        images = config.load_data().images
        digits = images.test if run["split"] == "test" else images.validation
        model = load_model(Path(config.folder or ""))
        errors = [score(model, digits, rotations=rotations).error for rotations in (1, 4)]
        rows.append(run | dict(zip(HEAD[3:], map("{:.3f}".format, errors), strict=True)))
        print(*rows[-1].values(), flush=True)
        write_table(RESULTS, HEAD, rows)
    return rows


def table(rows: list[Row], split: str) -> str:
    """Return errors in per cent, mean ± standard error of the seeds."""
    cells = defaultdict(list)
    for row in rows:
        if row["split"] == split:
            cells[row["variant"]].append([float(row[name]) for name in HEAD[3:]])
    lines = [f"| {split} error | runs | one pass | 4 rotations |", "| :-- | --: | --: | --: |"]
    for variant, found in cells.items():
        texts = [f"{mean_and_error(values)} %" for values in zip(*found, strict=True)]
        lines.append(f"| {variant} | {len(found)} | {' | '.join(texts)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the study."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("sepgroupy").setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "recipe", help="folder of the runs")
    rows = measure(parser.parse_args().runs)
    for split in ("validation", "test"):
        print(f"\n{table(rows, split)}")


if __name__ == "__main__":
    main()
