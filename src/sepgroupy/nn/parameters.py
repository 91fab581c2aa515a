"""The free parameters of a layer: shapes, initial values, and the checks of the arguments that give them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral

import torch

from ..backends import ConvSpec, exceeds_any_memory
from ..backends.geometry import MAX_SIZE
from ..errors import ArgumentError

INITS = ("published", "variance")
DEFAULT_INIT = "variance"


def filter_shapes(
    kind: str, rows: int, columns: int, order: int, kernel: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Return the free parameters of a kind, by name: ``rows`` filters of ``columns`` channels on a group."""
    if kind == "dense":
        return {"weight": (rows, columns, order, *kernel)}
    depthwise = (rows, columns, *kernel) if kind == "g" else (rows, 1, 1, *kernel)
    return {"depthwise_weight": depthwise, "pointwise_weight": (rows, columns, order, *(1,) * len(kernel))}


def check_kind(kind: str) -> None:
    """Refuse a kind that is not one of a group convolution's."""
    if kind not in ("dense", "g", "gc"):
        raise ArgumentError(f"kind (={kind!r}) must be one of dense, g, gc")


def check_channels(in_channels: int, out_channels: int, groups: int) -> int:
    """Refuse invalid numbers of channels; return the input channels of one block."""
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if not isinstance(channels, Integral) or isinstance(channels, bool) or not 1 <= channels <= MAX_SIZE:
            raise ArgumentError(f"{name} (={channels!r}) must be a positive integer below 2³¹")
        if channels % groups:
            raise ArgumentError(f"{name} (={channels}) must be divisible by groups (={groups})")
    return in_channels // groups


def initial_bounds(init: str, spec: ConvSpec, in_channels: int) -> dict[str, float]:
    """Return for each parameter the largest initial value, see :meth:`GroupConvolution.reset_parameters`."""
    elements = math.prod(spec.kernel_size) / (math.prod(spec.stride) if spec.transposed else 1)
    channels = in_channels // spec.groups
    inputs = channels * (1 if spec.kind == "lifting" else spec.group.order)
    if init == "published":
        names = ("weight", "depthwise_weight", "pointwise_weight", "bias")
        return dict.fromkeys(names, 1 / math.sqrt(channels * elements))
    variances = {"weight": 2 / (inputs * elements), "depthwise_weight": 2 / elements, "pointwise_weight": 1 / inputs}
    return {name: math.sqrt(3 * variance) for name, variance in variances.items()} | {"bias": 0.0}


def check_init(init: str) -> None:
    """Refuse an unknown initialization."""
    if init not in INITS:
        raise ArgumentError(f"init (={init!r}) must be one of {', '.join(INITS)}")


def check_shapes(shapes: Mapping[str, tuple[int, ...]], in_channels: int, out_channels: int, spec: ConvSpec) -> None:
    """Refuse parameters that no machine can hold."""
    for name, shape in shapes.items():
        if exceeds_any_memory(shape):
            raise ArgumentError(
                f"{name} of in_channels (={in_channels}), out_channels (={out_channels}), "
                f"kernel_size (={spec.kernel_size}) would have {math.prod(shape):.1e} values, more than any machine "
                "holds"
            )


def check_factory(device: torch.device | str | None, dtype: torch.dtype | None) -> None:
    """Refuse a device or dtype of parameters that torch does not have."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ArgumentError(f"dtype (={dtype!r}) must be a floating-point type of torch, or None")
    try:
        if device is not None:
            torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(f"device (={device!r}) is not a device of torch: {str(error).splitlines()[0]}") from None
