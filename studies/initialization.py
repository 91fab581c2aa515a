"""Study which initialization is the best default of the layers: published, variance-preserving, or one between.

python -m studies.initialization            # train the runs that results/initialization/runs.csv lacks, print the table
python -m studies.initialization --deep     # the counter-example: a deep stack without batch norm

Scale ``t`` draws every factor from ±b with ``b = published^(1-t) · variance^t``, and biases from ±(1-t) · published:
0 is ``init="published"``, 1 is ``init="variance"``. The networks train on 3,200 of the bundled digits; the errors that
decide are those on 800 held-out training digits, never those on test digits.
"""

from __future__ import annotations

import argparse
import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor, nn

import sepgroupy
from sepgroupy import GroupConv2d, LiftingConv2d
from sepgroupy.paper import RunConfig
from sepgroupy.training import train

from ._table import Row, read_table, write_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "initialization" / "runs.csv"
HEAD = ("model", "optimizer", "scale", "seed", "validation_error")
MODELS = ("p4cnn", "g-p4cnn", "gc-p4cnn")
SCALES = (0.0, 0.5, 1.0)
OPTIMIZERS = {"adam": {"lr": 0.01}, "sgd": {"lr": 0.05, "momentum": 0.9}}
SEEDS = (1, 2, 3)
EPOCHS, VALIDATION = 20, 800


def draw(model: str, scale: float, seed: int) -> dict[str, Tensor]:
    """Return the parameters of a fresh network whose bounds lie between the two initializations."""
    networks = []
    for init in ("published", "variance"):
        torch.manual_seed(seed)
        networks.append(sepgroupy.build_model(model, init=init))
    published, variance = networks
    with torch.no_grad():
        for a, b in zip(published.modules(), variance.modules(), strict=True):
            if isinstance(a, LiftingConv2d | GroupConv2d):
                for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
                    # Both draw the same uniform numbers, so the largest values have the ratio of the bounds.
                    p *= 1 - scale if name == "bias" else (q.abs().max() / p.abs().max()) ** scale
    return published.state_dict()


def runs(folder: Path) -> Iterator[tuple[Row, RunConfig]]:
    """Yield the description of each run and its configuration."""
    for optimizer, settings in OPTIMIZERS.items():
        for seed in SEEDS:
            for model in MODELS:
                for scale in SCALES:
                    name = f"{model}-{optimizer}-{scale}-{seed}"
                    config = RunConfig.for_task(
                        "rotmnist", model=model, optimizer=optimizer, seed=seed, epochs=EPOCHS, milestones=(16,),
                        validation=VALIDATION, log_every=EPOCHS, weights=str(folder / f"{name}.pt"),
                        folder=str(folder / name), **settings,
                    )  # fmt: skip
                    yield {"model": model, "optimizer": optimizer, "scale": str(scale), "seed": str(seed)}, config


def measure(folder: Path) -> list[Row]:
    """Train what the table lacks, write each result into it at once, and return its rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = read_table(RESULTS)
    done = [{name: row[name] for name in HEAD[:-1]} for row in rows]
    for run, config in runs(folder):
        if run in done:
            continue
        if not Path(config.weights or "").exists():
            torch.save(draw(run["model"], float(run["scale"]), int(run["seed"])), config.weights)
        rows.append(run | {"validation_error": str(train(config).validation_error)})
        print(*rows[-1].values(), flush=True)
        write_table(RESULTS, HEAD, rows)
    return rows


def table(rows: list[Row]) -> str:
    """Return validation errors in per cent, mean ± standard error of the seeds."""
    cells = defaultdict(list)
    for row in rows:
        cells[row["model"], row["optimizer"], float(row["scale"])].append(float(row["validation_error"]))
    lines = [
        "| model | optimizer | " + " | ".join(f"scale {scale}" for scale in SCALES) + " |",
        "| :-- | :-- |" + " --: |" * len(SCALES),
    ]
    for model in MODELS:
        for optimizer in OPTIMIZERS:
            found = [cells[model, optimizer, scale] for scale in SCALES]
            texts = [f"{mean(v):.2f} ± {stdev(v) / len(v) ** 0.5:.2f}" if len(v) > 1 else "" for v in found]
            lines.append(f"| {model} | {optimizer} | {' | '.join(texts)} |")
    return "\n".join(lines)


def deep(depths: tuple[int, ...] = (2, 5, 10, 20, 40), channels: int = 8) -> str:
    """Return the standard deviation of the output of gc layers with ReLU and no batch norm, by depth."""
    lines = ["| layers | published | variance |", "| --: | --: | --: |"]
    x = torch.randn(16, channels, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    for depth in depths:
        cells = []
        for init in ("published", "variance"):
            torch.manual_seed(1)
            layers = [
                m
                for _ in range(depth)
                for m in (GroupConv2d(channels, channels, 3, padding=1, group="p4", kind="gc", init=init), nn.ReLU())
            ]
            with torch.no_grad():
                # Between two images: a bias that every image shares carries no information.
                cells.append(nn.Sequential(*layers)(x).std(dim=0).mean().item())
        lines.append(f"| {depth} | {cells[0]:.2g} | {cells[1]:.2g} |")
    return "\n".join(lines)


def main() -> None:
    """Run the study."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("sepgroupy").setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "initialization", help="folder of the runs")
    parser.add_argument("--deep", action="store_true", help="only the counter-example; nothing is trained")
    options = parser.parse_args()
    if options.deep:
        print(deep())
        return
    print(table(measure(options.runs)))


if __name__ == "__main__":
    main()
