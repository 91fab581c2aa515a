"""Where the time of one training step goes, by operator: ``python -m benchmarks.profile_step gc-p4m-resnet44``."""

from __future__ import annotations

import argparse

import torch
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from sepgroupy.models import build_model, model_names


def main() -> None:
    """Print the operators that take longest, in a step after two that warm up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=model_names())
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    model = build_model(options.model)
    shape = (3, 32, 32) if "resnet" in options.model else (1, 28, 28)
    x, labels = torch.randn(options.batch, *shape), torch.randint(10, (options.batch,))

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
