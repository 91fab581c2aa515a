"""What the compiled kernels compute, and in which of their ways."""

from __future__ import annotations

import math
from functools import lru_cache

from ...groups import fourier_basis
from ..conv_spec import ConvSpec
from .orbits import orbits_of
from .transform import GENERAL, kernel_transform

MAX_STRIDE, MAX_ORDER = 3, 48
MAX_POOL_WINDOW = 8  # pixels along each axis
MAX_KERNEL_ELEMENTS = {1: 49, 2: 49, 3: 343}  # by dimension: 7×7, 7×7×7
MAX_EXTENT = 64  # pixels between the first and the last kernel element: the workspace grows with it


@lru_cache(maxsize=1024)
def unsupported_reason(spec: ConvSpec) -> str | None:
    """Return the requirements that a convolution does not meet, or None."""
    return None if can_gather(spec) else _exceeded_limits(spec)


def _exceeded_limits(spec: ConvSpec) -> str | None:
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
    """Whether the kernels convolve directly, or gather the pixels of a lifting layer.

    They then fuse no batch norm and no residual, and read no filters that are expanded for reuse.
    """
    return spec.kind == "lifting" or spec.groups > 1


@lru_cache(maxsize=1024)
def can_gather(spec: ConvSpec) -> bool:
    """Whether the kernels can gather the pixels of a lifting convolution (``orbits``), with any stride and dilation.

    The group must have a fast transform, and the pointwise convolution must take fewer multiplications.
    """
    group, kernel = spec.group, spec.kernel_size
    if spec.kind != "lifting" or spec.groups > 1 or kernel_transform(group)[0] == GENERAL:
        return False
    multiplications = len(orbits_of(group, kernel).first) * fourier_basis(group).multiplications
    return multiplications < math.prod(kernel) * group.order


@lru_cache(maxsize=1024)
def is_gathered(spec: ConvSpec, in_channels: int) -> bool:
    """Whether the kernels gather the pixels of a convolution of this many channels.

    With as few entries as a 3×3 filter of one channel they convolve directly, which is as fast.
    """
    few = in_channels * math.prod(spec.kernel_size) <= 3**spec.dimension
    return can_gather(spec) and not (few and _exceeded_limits(spec) is None)
