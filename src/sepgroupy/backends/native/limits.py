"""What the kernels can compute, and for what they would have to be other kernels."""

from __future__ import annotations

import math
from functools import lru_cache

from ..conv_spec import ConvSpec
from ..geometry import MAX_SIZE
from ..tracing import constant_to_dynamo

MAX_STRIDE, MAX_ORDER = 3, 48

MAX_KERNEL_ELEMENTS = {1: 49, 2: 49, 3: 343}  # by dimension: 7×7, 7×7×7; of lifting layers, times input channels
MAX_EXTENT = 64  # pixels between the first and the last kernel element: the workspace grows with it


@lru_cache(maxsize=1024)
def unsupported_reason(spec: ConvSpec) -> str | None:
    """Return what the kernels would need to compute such convolutions, or None."""
    elements, most = math.prod(spec.kernel_size), MAX_KERNEL_ELEMENTS[spec.dimension]
    extent = max(d * (k - 1) + 1 for d, k in zip(spec.dilation, spec.kernel_size, strict=True))
    max_stride = 1 if spec.kind == "lifting" else MAX_STRIDE
    needs = {
        "groups=1": spec.groups == 1,
        f"strides up to {max_stride}": max(spec.stride) <= max_stride,
        f"kernels of up to {most} elements": elements <= most,
        f"kernels that extend over up to {MAX_EXTENT} pixels": extent <= MAX_EXTENT,
        f"a group of order up to {MAX_ORDER}": spec.group.order <= MAX_ORDER,
        "no transposed convolution": not spec.transposed,
    }
    return ", ".join(need for need, holds in needs.items() if not holds) or None


@constant_to_dynamo
def max_in_channels(spec: ConvSpec) -> int:
    """Return the largest number of input channels: lifting layers read all of them at a time."""
    elements = math.prod(spec.kernel_size)
    return MAX_KERNEL_ELEMENTS[spec.dimension] // elements if spec.kind == "lifting" else MAX_SIZE
