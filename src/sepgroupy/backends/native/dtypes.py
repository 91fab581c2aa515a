"""The dtypes of feature maps and parameters: what the kernels read, and what a convolution returns."""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import ConvInputs, parameter_dtype
from .library import DTYPES


def have_kernels_dtypes(inputs: ConvInputs) -> bool:
    """Whether feature maps and parameters have dtypes that the kernels read together."""
    maps = map_dtype(inputs.x)
    others = parameter_dtype(maps)
    return inputs.x.dtype is maps and all(t is None or t.dtype is others for t in inputs[1:8])


def is_autocast(x: Tensor) -> bool:
    """Whether autocast chooses the dtype of operations on x."""
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu")


def result_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of a convolution of x: autocast's, or its own."""
    return torch.get_autocast_dtype("cpu") if is_autocast(x) else x.dtype


def map_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which the kernels read x: that of the result, but float64 stays, and float16 is float32."""
    dtype = x.dtype if x.dtype is torch.float64 else result_dtype(x)
    return dtype if dtype in DTYPES else torch.float32


def as_kernels_read(inputs: ConvInputs) -> ConvInputs:
    """Return inputs whose dtypes may differ, as under autocast, in those that the kernels read."""
    maps = map_dtype(inputs.x)
    others = parameter_dtype(maps)
    x, *parameters, residual = inputs
    cast = [None if t is None else t.to(others) for t in parameters]
    read = (x.to(maps), *cast, None if residual is None else residual.to(maps))
    return ConvInputs(*read)  # type: ignore[arg-type]
