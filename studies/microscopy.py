"""Plain against equivariant networks of equal size on images of cells, and on digits, by the number of training images.

    python -m studies.microscopy write FOLDER           # the images, as PNG files
    python -m studies.microscopy study microscopy       # train, a row of the CSV file for each run
    python -m studies.microscopy plot                   # the figure of all runs
    python -m studies.microscopy examples FIGURE        # the figure of the classes

A study that was stopped goes on with the runs that its CSV file does not have yet.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sepgroupy
from sepgroupy.data import MICROSCOPY_CLASSES, ImageSplits, RandomAffine, open_images, write_microscopy
from sepgroupy.image_models import build_image_model

RESULTS = Path(__file__).resolve().parents[1] / "results" / "microscopy"
COLUMNS = (
    "data",
    "images",
    "network",
    "seed",
    "test_error",
    "correct",
    "test_images",
    "parameters",
    "epochs",
    "seconds",
)
NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {"kind": "plain"},
    "p4m-gc": {"kind": "gc", "group": "p4m"},
    "plain-long": {"kind": "plain", "steps": 4},
    "p4m-gc-long": {"kind": "gc", "group": "p4m", "steps": 4},
}
IMAGES, SEEDS, TEST_IMAGES = (100, 300, 1000), (1, 2, 3), 600
BATCH, STEPS, LR, DECAY = 32, 350, 3e-3, 0.05


def write_digits(folder: Path, train: int, test: int) -> Path:
    """Write bundled digits, each rotated by its own angle, as class folders of PNG files."""
    from PIL import Image

    from sepgroupy.paper import load_digits

    data, random = load_digits(), torch.Generator().manual_seed(0)  # the bundled digits are in no random order
    order, test_order = (torch.randperm(len(split), generator=random).tolist() for split in (data.train, data.test))
    parts = {
        "train": (data.train, order[:train]),
        "val": (data.train, order[-test:]),
        "test": (data.test, test_order[:test]),
    }
    for split, (images, chosen) in parts.items():
        for number, index in enumerate(chosen):
            path = folder / split / str(int(images.labels[index])) / f"{number:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * images.images[index, 0]).round().byte().numpy()).save(path)
    return folder


def in_memory(images: Any, mean: Tensor, std: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Return normalized images and their classes; of the first ``count`` by name, if it is given."""
    order = sorted(range(len(images)), key=lambda index: Path(images.paths[index]).name)[:count]
    loaded = torch.stack([images[index][0] for index in order])
    return (loaded - mean[:, None, None]) / std[:, None, None], images.targets[order]


def batches(count: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield indices: one shuffled epoch after another."""
    order = torch.randperm(count, generator=generator)
    for _ in range(steps):
        if len(order) < min(BATCH, count):
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        yield order[:BATCH]
        order = order[BATCH:]


def train(data: ImageSplits, network: str, model_name: str, count: int, seed: int) -> dict[str, Any]:
    """Train one network, the same recipe for all: AdamW, warm-up and cosine, random rotations by any angle."""
    start = time.monotonic()
    torch.manual_seed(seed)
    options = {"channels": data.channels, "outputs": data.outputs, "size": data.size} | NETWORKS[network]
    steps = STEPS * options.pop("steps", 1)
    model: nn.Module = sepgroupy.fuse(build_image_model(model_name, **options).module)
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    images, labels = in_memory(data.train, mean, std, count)
    augment, generator = RandomAffine(rotation=180, shift=0.05, scale=0.1), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps, pct_start=0.1)
    for chosen in batches(count, steps, generator):
        loss = cross_entropy(model(augment(images[chosen], generator)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    images, labels = in_memory(data.test, mean, std)
    with torch.no_grad():
        answers = torch.cat([model(part).argmax(1) for part in images.split(100)])
    correct = int((answers == labels).sum())
    return {
        "data": data.name, "images": count, "network": network, "seed": seed,
        "test_error": round(100 * (1 - correct / len(labels)), 2), "correct": correct, "test_images": len(labels),
        "parameters": sum(p.numel() for p in model.parameters()), "epochs": round(steps * BATCH / count, 1),
        "seconds": round(time.monotonic() - start),
    }  # fmt: skip


def study(name: str, file: Path, model_name: str) -> None:
    """Do the runs that the file does not have yet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        with file.open("w", newline="") as opened:
            csv.writer(opened).writerow(COLUMNS)
    with file.open(newline="") as opened:
        done = {(row["data"], int(row["images"]), row["network"], int(row["seed"])) for row in csv.DictReader(opened)}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        if name == "microscopy":
            write_microscopy(folder, max(IMAGES), TEST_IMAGES)
        else:
            write_digits(folder, max(IMAGES), TEST_IMAGES)
        data = open_images(folder)
        for seed in SEEDS:
            for network in NETWORKS:
                for count in reversed(IMAGES):
                    if (name, count, network, seed) in done:
                        continue
                    row = train(data, network, model_name, count, seed)
                    print(row, flush=True)
                    with file.open("a", newline="") as opened:
                        csv.DictWriter(opened, COLUMNS).writerow(row)


def plot(file: Path, target: Path) -> None:
    """Draw mean and range of the test error against the number of training images, and print them."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    names = list(dict.fromkeys(row["data"] for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.4), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        for network, marker in zip(NETWORKS, "so^v", strict=True):
            points = {}
            for count in IMAGES:
                found = [
                    float(row["test_error"])
                    for row in rows
                    if (row["data"], row["network"], int(row["images"])) == (name, network, count)
                ]
                if found:
                    points[count] = found
            if not points:
                continue
            for count, found in points.items():
                print(f"{name}, {count} images, {network}: {' '.join(f'{error:.1f}' for error in found)} %")
            means = [sum(found) / len(found) for found in points.values()]
            spread = [[m - min(f) for m, f in zip(means, points.values(), strict=True)],
                      [max(f) - m for m, f in zip(means, points.values(), strict=True)]]  # fmt: skip
            axis.errorbar(list(points), means, spread, marker=marker, capsize=3, label=network)
        axis.set(title=name, xscale="log", xlabel="training images", ylabel="test error (%)", ylim=(0, None))
        axis.set_xticks(IMAGES, list(map(str, IMAGES)))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(target, dpi=110)


def examples(target: Path, columns: int = 8) -> None:
    """Draw the first training images of each class."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    with TemporaryDirectory() as temporary:
        folder = write_microscopy(Path(temporary) / "cells", columns * len(MICROSCOPY_CLASSES), len(MICROSCOPY_CLASSES))
        figure, axes = plt.subplots(len(MICROSCOPY_CLASSES), columns, figsize=(5.4, 3.6), layout="constrained")
        for row, name in zip(axes, MICROSCOPY_CLASSES, strict=True):
            row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
            for axis, path in zip(row, sorted((folder / "train" / name).iterdir()), strict=True):
                with Image.open(path) as image:
                    axis.imshow(image)
                axis.set(xticks=[], yticks=[])
    figure.savefig(target, dpi=100)


def main() -> None:
    """Read the command line and run one of the four commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="write the images of cells as PNG files")
    write.add_argument("folder", type=Path)
    write.add_argument("--train", type=int, default=1000)
    write.add_argument("--test", type=int, default=600)
    write.add_argument("--seed", type=int, default=0)
    run = commands.add_parser("study", help="train plain and equivariant networks")
    run.add_argument("data", choices=("microscopy", "digits"))
    run.add_argument("--model", default="p4m-resnet8-w8")
    for command in (run, commands.add_parser("plot", help="draw the figure of a study")):
        command.add_argument("--csv", type=Path, default=RESULTS / "study.csv")
    commands.choices["plot"].add_argument("--figure", type=Path, default=RESULTS / "study.png")
    commands.add_parser("examples", help="draw images of each class").add_argument("figure", type=Path)
    given = parser.parse_args()
    if given.command == "write":
        print(write_microscopy(given.folder, given.train, given.test, given.seed))
    elif given.command == "study":
        study(given.data, given.csv, given.model)
    elif given.command == "plot":
        plot(given.csv, given.figure)
    else:
        examples(given.figure)


if __name__ == "__main__":
    main()
