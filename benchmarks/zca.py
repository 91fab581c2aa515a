"""Time and memory of contrast normalisation and ZCA whitening at the full size of CIFAR-10.

OMP_NUM_THREADS=2 python -m benchmarks.zca
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import resource
import time

import torch

from sepgroupy.data import ZCA, contrast_normalize

from .arguments import RESULTS
from .hardware import cpu_name


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
    # Outside the measurement: the trace of the covariance is the number of directions, all except the constant image.
    variance = sum(part.double().square().sum().item() for part in whitened.split(1000)) / (count - 1)
    return {
        "images": count,
        "contrast_s": round(contrast - start, 2),
        "zca_fit_s": round(fit - contrast, 2),
        "zca_apply_s": round(end - fit, 2),
        "total_s": round(end - start, 2),
        "peak_rss_mib": peak,
        "trace_of_covariance": round(variance, 2),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _peak_mib() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if platform.system() == "Darwin" else 2**10)


def main() -> None:
    """Measure, print and append a row to the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    row = measure(parser.parse_args().images)
    for name, value in row.items():
        print(f"{name:20} {value}")
    with (RESULTS / "zca.csv").open("a", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
