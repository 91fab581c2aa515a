"""The kernels of a compiled layer: what Inductor makes of batch norm, ReLU and a gc layer; no GPU is needed.

python -m benchmarks.kernels

Inductor fuses for a CPU by the same scheduler as for a GPU. Its program is read, not built or run.
"""

from __future__ import annotations

import re
from contextlib import suppress
from unittest import mock

import torch
from torch import nn

from sepgroupy.nn import GroupBatchNorm2d, GroupConv2d

OPTIONS = {"realize_reads_threshold": 8}
"""Of Inductor: let the batch norm of inference, which reads five tensors, be fused with its readers."""


class _Written(BaseException):
    """The program is written; it need not be built."""


def program(backend: str, training: bool, channels: int = 16, size: int = 8) -> tuple[int, list[str]]:
    """Return the number of fused loops in the forward pass of a p4m layer, and its calls in their order.

    A call is of one or several fused loops (``fused``, with the operators in it) or of a library, such as ``bmm``.
    """
    from torch._inductor import config, metrics
    from torch._inductor.graph import GraphLowering

    torch.manual_seed(0)
    conv = GroupConv2d(channels, channels, 3, padding=1, bias=False, group="p4m", kind="gc", backend=backend)
    module = nn.Sequential(GroupBatchNorm2d(channels), nn.ReLU(), conv).train(training)
    x = torch.randn(4, 8, channels, size, size).transpose(1, 2)
    found: list[str] = []

    def save(text: str) -> None:
        found.append(text)
        raise _Written

    torch._dynamo.reset()
    metrics.reset()
    patched = mock.patch.object(GraphLowering, "save_output_code", staticmethod(save))
    options = config.patch({"fx_graph_cache": False, **OPTIONS})
    with torch.set_grad_enabled(training), options, patched, suppress(_Written):
        torch.compile(module, dynamic=False, fullgraph=True)(x)
    torch._dynamo.reset()
    body = found[0][found[0].index("def call") :]
    calls = re.findall(r"(cpp_fused_\w+|extern_kernels\.\w+)\(", body)
    return metrics.generated_kernel_count, [
        call.replace("cpp_fused_", "fused ").removeprefix("extern_kernels.") for call in calls
    ]


def main() -> None:
    """Print a table."""
    print("| backend | pass | fused loops | library calls |\n| :-- | :-- | --: | :-- |")
    for backend in ("fourier", "two_step", "expanded"):
        for training in (False, True):
            loops, calls = program(backend, training)
            library = [call for call in calls if not call.startswith("fused")]
            counted = ", ".join(f"{library.count(name)} {name}" for name in dict.fromkeys(library))
            print(f"| {backend} | {'training, forward' if training else 'inference'} | {loops} | {counted} |")


if __name__ == "__main__":
    main()
