"""The time of one training step by operator: ``python -m benchmarks.profile_step gc-p4m-resnet44``."""

from __future__ import annotations

import argparse

import torch
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from sepgroupy import fuse
from sepgroupy.models import build_model, published_model_names

from .cases import NetworkCase, training_batch


def main() -> None:
    """Print the operators that take the longest, in a step after two of warm-up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=published_model_names())
    parser.add_argument("--batch", type=int, help="images (16 for ResNets, 256 for the others)")
    options = parser.parse_args()
    model = fuse(build_model(options.model))
    case = NetworkCase(options.model, options.batch or training_batch(options.model))
    x, labels = case.images(torch.device("cpu"))

    def step() -> None:
        model.zero_grad()
        cross_entropy(model(x), labels).backward()

    step()
    step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40))


if __name__ == "__main__":
    main()
