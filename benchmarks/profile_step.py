"""The time of one training step, or of inference, by operator.

python -m benchmarks.profile_step gc-p4m-resnet44
python -m benchmarks.profile_step convnext_tiny --kind dense --inference    # converted, as in the suite `converted`
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from sepgroupy import fuse
from sepgroupy.models import build_model, published_model_names
from sepgroupy.nn import cached_filters

from . import converted
from .cases import NetworkCase, training_batch


def main() -> None:
    """Print the operators that take the longest, in a call after five of warm-up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    networks = list(dict.fromkeys(case.network for case in converted.CASES))
    parser.add_argument("model", choices=[*published_model_names(), *networks])
    parser.add_argument("--kind", choices=converted.KINDS, default="gc", help="of a converted network (%(default)s)")
    parser.add_argument("--size", type=int, help="pixels of a converted network's input (the first of the suite)")
    parser.add_argument("--batch", type=int, help="images (16 for ResNets, 256 for the others; or as in the suite)")
    parser.add_argument("--inference", action="store_true", help="profile inference with cached filters, not a step")
    options = parser.parse_args()
    model, x, labels = _network(options)

    def step() -> None:
        model.zero_grad()
        cross_entropy(model(x), labels).backward()

    def infer() -> None:
        with torch.no_grad():
            model(x)

    if options.inference:
        with cached_filters(model.eval()):
            _print(infer)
    else:
        _print(step)


def _network(options: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor]:
    if options.model in published_model_names():
        case = NetworkCase(options.model, options.batch or training_batch(options.model))
        return fuse(build_model(options.model)), *case.images(torch.device("cpu"))
    known = [c for c in converted.CASES if (c.network, c.kind) == (options.model, options.kind)]
    (chosen, *_) = [c for c in known if options.size in (None, c.size)] or known
    chosen = chosen._replace(size=options.size or chosen.size, batch=options.batch or chosen.batch)
    x = torch.randn(chosen.batch, 3, chosen.size, chosen.size)
    return fuse(converted.build(chosen)), x, torch.zeros(chosen.batch, dtype=torch.long)


def _print(call: Callable[[], None]) -> None:
    for _ in range(5):
        call()
    with profile(activities=[ProfilerActivity.CPU]) as found, torch.profiler.record_function("all"):
        call()
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40))


if __name__ == "__main__":
    main()
