"""Limits of the compiled kernels: strides, kernel sizes, extents and group orders."""

from __future__ import annotations

import math
from functools import lru_cache

from ..conv_spec import ConvSpec

MAX_STRIDE, MAX_ORDER = 3, 48
MAX_POOL_WINDOW = 8  # pixels along each axis
MAX_KERNEL_ELEMENTS = {1: 49, 2: 49, 3: 343}  # by dimension: 7×7, 7×7×7
MAX_EXTENT = 64  # pixels between the first and the last kernel element: the workspace grows with it


@lru_cache(maxsize=1024)
def unsupported_reason(spec: ConvSpec) -> str | None:
    """Return the requirements that a convolution does not meet, or None."""
    elements, most = math.prod(spec.kernel_size), MAX_KERNEL_ELEMENTS[spec.dimension]
    extent = max(d * (k - 1) + 1 for d, k in zip(spec.dilation, spec.kernel_size, strict=True))
    needs = {
        f"strides up to {MAX_STRIDE}": max(spec.stride) <= MAX_STRIDE,
        f"kernels of up to {most} elements": elements <= most,
        f"kernels that extend over up to {MAX_EXTENT} pixels": extent <= MAX_EXTENT,
        f"a group of order up to {MAX_ORDER}": spec.group.order <= MAX_ORDER,
        "groups=1 where it is transposed": not spec.transposed or spec.groups == 1,
        "an output_padding below the stride": all(a < s for a, s in zip(spec.output_padding, spec.stride, strict=True)),
    }
    return ", ".join(need for need, holds in needs.items() if not holds) or None


def is_direct(spec: ConvSpec) -> bool:
    """Whether the kernels convolve directly, not in the Fourier domain: lifting layers, and blocks of channels."""
    return spec.kind == "lifting" or spec.groups > 1
