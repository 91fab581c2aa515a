"""Compare networks of fewer than 25,000 parameters on rotated digits.

python -m studies.networks                    # train the runs that results/networks/runs.csv lacks, print the table
python -m studies.networks --only residual-5  # of one network

Each network has gc layers on p4 and is trained by the recipe "modern" for 60 epochs on 3,200 digits. The table shows
its error and loss on the other 800 training digits. `--test NETWORK` trains one for 100 epochs on all 4,000 digits and
tests it.
"""

from __future__ import annotations

import argparse
import logging
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from sepgroupy import GroupBatchNorm2d, GroupConv2d, GroupPool, LiftingConv2d, PerElement
from sepgroupy.models import build_model
from sepgroupy.paper import RunConfig
from sepgroupy.training import STRICT, load_model, register_tasks, score, train

from ._table import Row, mean_and_error, read_table, write_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "networks" / "runs.csv"
HEAD = ("network", "split", "seed", "parameters", "error", "loss", "error_4_rotations")
EPOCHS, TEST_EPOCHS, VALIDATION = 60, 100, 800


class Shape(NamedTuple):
    """Size of a network: channels, kernels, layers on maps of 28×28, 14×14 and 7×7 pixels, pooling over the group."""

    width: int
    kernel: int
    layers: tuple[int, int, int]
    pool: Literal["max", "mean"] = "max"
    residual: bool = True


NETWORKS: dict[str, Shape | None] = {
    "gc-p4cnn": None,
    "residual-3": Shape(20, 3, (0, 7, 4)),
    "residual-5": Shape(20, 5, (0, 6, 4)),
    "residual-7": Shape(18, 7, (0, 6, 4)),
    "residual-5-wide": Shape(28, 5, (0, 3, 2)),
    "residual-5-mean": Shape(20, 5, (0, 6, 4), pool="mean"),
    "plain-5": Shape(20, 5, (0, 6, 4), residual=False),
    "paper-5": Shape(28, 5, (1, 4, 1), residual=False),
}


class Net(nn.Module):
    """A network of gc layers on p4, invariant under rotations by 90°: images (B, 1, 28, 28) to log-probabilities."""

    def __init__(self, shape: Shape, init: str) -> None:
        super().__init__()
        width, kernel, padding = shape.width, shape.kernel, shape.kernel // 2
        self.residual = shape.residual
        self.lift = LiftingConv2d(1, width, 5, padding=2, group="p4", init=init)
        self.stages = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(
                    GroupBatchNorm2d(width),
                    nn.ReLU(),
                    GroupConv2d(width, width, kernel, padding=padding, group="p4", kind="gc", init=init),
                )
                for _ in range(count)
            )
            for count in shape.layers
        )
        self.shrink = PerElement(nn.MaxPool2d(2))
        self.norm, self.relu = GroupBatchNorm2d(width), nn.ReLU()
        self.pool, self.fc = GroupPool(shape.pool), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities, (B, 10)."""
        x = self.lift(x)
        for stage, layers in enumerate(self.stages):
            x = self.shrink(x) if stage else x
            for layer in layers:
                x = x + layer(x) if self.residual else layer(x)
        x = self.pool(self.relu(self.norm(x))).mean((2, 3))
        return F.log_softmax(self.fc(x), dim=1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NetworkConfig(RunConfig):
    """A run of one of these networks; its model is called gc-p4cnn, as which its data and recipe are chosen."""

    network: str

    def build_model(self, facts: object = None) -> nn.Module:
        """Build the network."""
        shape = NETWORKS[self.network]
        return build_model(self.model, init=self.init) if shape is None else Net(shape, self.init)


register_tasks(NetworkConfig, "rotmnist")  # so that this program reads its runs again


def measure(network: str, split: str, seed: int, folder: Path) -> Row:
    """Train a network and return its row."""
    config = NetworkConfig.for_task("rotmnist", "modern", model="gc-p4cnn", seed=seed, network=network)
    epochs = EPOCHS if split == "validation" else TEST_EPOCHS
    held_out = VALIDATION if split == "validation" else 0
    name = f"{network}-{split}-{seed}"
    config = replace(config, folder=str(folder / name), epochs=epochs, log_every=epochs, validation=held_out)
    train(config)
    images = config.load_data().images
    digits = images.validation if held_out else images.test
    model = load_model(Path(str(config.folder)))
    once, four = (score(model, digits, rotations=rotations) for rotations in (1, 4))
    parameters = sum(p.numel() for p in model.parameters())
    values = (network, split, str(seed), str(parameters), f"{once.error:.3f}", f"{once.loss:.4f}", f"{four.error:.3f}")
    return dict(zip(HEAD, values, strict=True))


def table(rows: list[Row], split: str) -> str:
    """Return mean ± standard error of the seeds."""
    cells = defaultdict(list)
    for row in rows:
        if row["split"] == split:
            cells[row["network"], row["parameters"]].append([float(row[name]) for name in HEAD[4:]])
    lines = [
        f"| {split} | parameters | runs | error | loss | error, 4 rotations |",
        "| :-- | --: | --: | --: | --: | --: |",
    ]
    for (network, parameters), found in cells.items():
        texts = [mean_and_error(values, ".3g") for values in zip(*found, strict=True)]
        lines.append(f"| {network} | {int(parameters):,} | {len(found)} | {' | '.join(texts)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the study."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("sepgroupy").setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "networks", help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="seeds of the runs")
    parser.add_argument("--only", choices=NETWORKS, nargs="+", default=list(NETWORKS), help="networks to compare")
    parser.add_argument("--test", choices=NETWORKS, help="train this network on all digits and test it")
    args = parser.parse_args()
    names, split = ([args.test], "test") if args.test else (args.only, "validation")
    for seed in args.seeds:
        for network in names:
            key = dict(zip(HEAD, (network, split, str(seed)), strict=False))
            if not any(key.items() <= row.items() for row in read_table(RESULTS)):
                row = measure(network, split, seed, args.runs)
                print(*row.values(), flush=True)
                write_table(RESULTS, HEAD, [*read_table(RESULTS), row])
    for split in ("validation", "test"):
        print(f"\n{table(read_table(RESULTS), split)}")


if __name__ == "__main__":
    main()
