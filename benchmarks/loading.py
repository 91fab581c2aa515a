"""The part of a training step that waits for images: PNG files that are decoded, augmented and normalized as in a run.

OMP_NUM_THREADS=1 python -m benchmarks.loading --workers 0 1 --steps 8
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image

from sepgroupy import fuse
from sepgroupy.training import ImageConfig

from .arguments import RESULTS
from .hardware import cpu_name


def write_images(folder: Path, count: int, size: int) -> None:
    """Write random RGB PNG files of two classes, smooth enough that they are as large as photographs of their size."""
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(256, size=(size // 4, size // 4, 3), dtype=np.uint8))
        path = folder / f"class{number % 2}" / f"{number:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(path)


def measure(config: ImageConfig, steps: int, workers: int) -> dict[str, object]:
    """Train for some steps and return the median times of a step, and of the wait for its images, in milliseconds.

    The first step, in which the workers start, is not counted.
    """
    start = time.perf_counter()
    data = config.load_data(workers)
    opened = time.perf_counter() - start
    fabric = Fabric(accelerator=config.device, devices=1)
    model = fuse(config.build_model(data.facts))
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=config.lr))
    waits, others = [], []
    batches = data.batches(0, 0, fabric)
    for _ in range(steps + 1):
        start = time.perf_counter()
        batch = next(batches)
        got = time.perf_counter()
        optimizer.zero_grad()
        loss = data.objective.loss(model(batch.images), batch.targets)
        fabric.backward(loss)
        optimizer.step()
        loss.item()  # waits for a GPU
        waits.append(got - start)
        others.append(time.perf_counter() - got)
    wait, compute = sum(waits[1:]), sum(others[1:])
    return {
        "images": data.train_images,
        "size": config.size,
        "batch": config.batch_size,
        "model": config.model,
        "workers": workers,
        "open_s": round(opened, 1),
        "wait_ms": round(1e3 * statistics.median(waits[1:]), 1),
        "compute_ms": round(1e3 * statistics.median(others[1:]), 1),
        "waiting_percent": round(100 * wait / (wait + compute), 2),
        "device": str(fabric.device),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure each number of workers, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default="p4m-resnet")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=RESULTS / "loading.csv")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder, "images"), options.images, options.size)
        config = ImageConfig.for_task(
            "classification", data_path=f"{folder}/images", folder=f"{folder}/run", size=options.size,
            model=options.model, device=options.device,
        )  # fmt: skip
        rows = [measure(config, options.steps, workers) for workers in options.workers]
    for row in rows:
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    with options.output.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
