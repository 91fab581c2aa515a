"""Time and memory of contrast normalisation and ZCA whitening at the full size of CIFAR-10.

OMP_NUM_THREADS=2 python benchmarks/zca.py
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import resource
import time
from pathlib import Path

import torch

from sepgroupy.data import ZCA, contrast_normalize

RESULTS = Path(__file__).parent / "results" / "zca.csv"


def measure(count: int) -> dict[str, object]:
    """Whiten ``count`` random images of shape (3, 32, 32); return the seconds of each stage and the peak memory."""
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    normalized = contrast_normalize(images)
    contrast = time.perf_counter()
    zca = ZCA.fit(normalized)
    fit = time.perf_counter()
    whitened = zca(normalized)
    end = time.perf_counter()
    peak = _peak_mib()
    # Outside the measurement: the trace of the covariance is the number of directions, all but the constant image.
    variance = sum(part.double().square().sum().item() for part in whitened.split(1000)) / (count - 1)
    return {
        "images": count,
        "contrast_s": round(contrast - start, 2),
        "zca_fit_s": round(fit - contrast, 2),
        "zca_apply_s": round(end - fit, 2),
        "total_s": round(end - start, 2),
        "peak_rss_mib": peak,
        "trace_of_covariance": round(variance, 2),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _peak_mib() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if platform.system() == "Darwin" else 2**10)


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Measure, print and append a row to the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    row = measure(parser.parse_args().images)
    for name, value in row.items():
        print(f"{name:20} {value}")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
