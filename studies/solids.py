"""Study what equivariance buys on volumes: a plain and a gc-O network of equal size on a few generated solids.

python -m studies.solids            # train the runs that results/solids/runs.csv lacks, print the table

Each row is written at once, so that the command goes on where it was stopped. Both are ``ResNet`` of depth 8 for
volumes of 12³, trained for 600 steps of 16 volumes. Training volumes and 1,000 test volumes have uniformly random
orientations.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepgroupy import as_group, build_model, fuse
from sepgroupy._files import atomic
from sepgroupy.data import load_solids
from sepgroupy.functional import transform

FILE = Path(__file__).resolve().parents[1] / "results" / "solids" / "runs.csv"
NETWORKS = {"plain": {"kind": "plain"}, "plain, rotated": {"kind": "plain"}, "gc-O": {"kind": "gc"}}
"""The second one sees every training volume in a random one of the 24 orientations, in each step."""
COUNTS, SEEDS, WIDTHS = (50, 200, 1000), (1, 2, 3), (2, 4, 8)
SIZE, TEST, BATCH, STEPS, LR, NOISE = 12, 1000, 16, 600, 0.01, 0.3
COLUMNS = ("network", "training volumes", "seed", "parameters", "test error", "seconds")
Row = dict[str, str]


def train(name: str, count: int, seed: int) -> dict[str, object]:
    """Train a network and return its row."""
    torch.manual_seed(seed)
    start = time.perf_counter()
    x, labels = load_solids(count, SIZE, noise=NOISE, seed=seed)
    net = fuse(build_model("o-resnet8", widths=WIDTHS, **NETWORKS[name]))
    optimizer = torch.optim.AdamW(net.parameters(), LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=STEPS)
    for batch in _batches(count):
        volumes = x[batch]
        if name == "plain, rotated":
            volumes = torch.stack([_rotated(volume) for volume in volumes])
        loss = F.cross_entropy(net(volumes), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    error = test_error(net, *load_solids(TEST, SIZE, noise=NOISE, seed=10_000))
    parameters = sum(p.numel() for p in net.parameters())
    seconds = round(time.perf_counter() - start, 1)
    return dict(zip(COLUMNS, (name, count, seed, parameters, error, seconds), strict=True))


def _batches(count: int) -> Iterator[Tensor]:
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(STEPS):
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(count)])
        yield order[:BATCH]
        order = order[BATCH:]


def _rotated(volume: Tensor) -> Tensor:
    return transform(volume, as_group("O"), int(torch.randint(24, ())), group_axis=False)


@torch.no_grad()
def test_error(net: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Return the part of volumes that are classified wrongly."""
    net.eval()
    wrong = [(net(part).argmax(1) != of).sum().item() for part, of in zip(x.split(50), labels.split(50), strict=True)]
    return sum(wrong) / len(labels)


def main() -> None:
    """Train what is missing and print the mean test errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    options = parser.parse_args()
    print(table(measure(FILE, options.counts, options.seeds)))


def measure(file: Path, counts: Sequence[int] = COUNTS, seeds: Sequence[int] = SEEDS) -> list[Row]:
    """Train the runs that the file lacks, write each row as it is found, and return all rows."""
    rows: list[Row] = []
    if file.exists():
        with file.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    done = {(row["network"], int(row["training volumes"]), int(row["seed"])) for row in rows}
    for seed, count, name in product(seeds, counts, NETWORKS):
        if (name, count, seed) in done:
            continue
        rows.append({key: str(value) for key, value in train(name, count, seed).items()})
        print(rows[-1], flush=True)
        with atomic(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return rows


def table(rows: Iterable[Row]) -> str:
    """Return test errors in per cent, mean ± standard error of the seeds."""
    found = defaultdict(list)
    for row in rows:
        found[row["network"], int(row["training volumes"])].append(100 * float(row["test error"]))
    lines = [
        "| network | " + " | ".join(f"{count} volumes" for count in COUNTS) + " |",
        "| :-- |" + " --: |" * len(COUNTS),
    ]
    for name in NETWORKS:
        cells = []
        for errors in (found[name, count] for count in COUNTS):
            spread = f" ± {stdev(errors) / len(errors) ** 0.5:.1f}" if len(errors) > 1 else ""
            cells.append(f"{mean(errors):.1f}{spread}" if errors else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
