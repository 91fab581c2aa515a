"""The constants of backends: index tables and Fourier matrices, looked up at use.

They depend on the specification, the device and the dtype alone. The cache holds plain tensors: they are built
outside inference mode, dispatch modes, function transforms and tracing, whatever the caller is in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..groups import PointGroup, action_table, fourier_basis
from .conv_spec import ConvSpec
from .tracing import constant_to_dynamo, name_for_tracing, traced_value

Arrays = tuple[NDArray[np.int64] | NDArray[np.float64], ...]

MAX_ENTRIES = 1024  # of the cache; a network has few specifications, whatever its depth

_cache: dict[tuple[object, ...], tuple[Tensor, ...]] = {}


def spatial_index(spec: ConvSpec, device: torch.device) -> tuple[Tensor, ...]:
    """Return one table (|H|, k·k): the kernel elements of a spatial filter in the order of each transformed copy."""
    return _constants("spatial_index", spec, device, torch.int64)


def group_index(spec: ConvSpec, device: torch.device) -> tuple[Tensor, ...]:
    """Return one table (|H|, |H|·k·k), as :func:`spatial_index` for a filter on the group."""
    return _constants("group_index", spec, device, torch.int64)


def pointwise_index(spec: ConvSpec, device: torch.device) -> tuple[Tensor, ...]:
    """Return one table (|H|, |H|), as :func:`group_index` for a 1×1 filter."""
    return _constants("pointwise_index", spec, device, torch.int64)


def window_index(spec: ConvSpec, device: torch.device) -> tuple[Tensor, ...]:
    """Return one table (|H|·K): for each group element h and kernel element m, the entry h·m of h's K entries."""
    return _constants("window_index", spec, device, torch.int64)


def fourier_matrices(spec: ConvSpec, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return, for each band of the Fourier basis, its rows (m·d, |H|) and its representations (m, d, d, |H|).

    A band is m neighbouring blocks of one size d, copies counted, which are one batched product.
    """
    return _constants("fourier_matrices", spec, device, dtype)


@constant_to_dynamo
def band_sizes(spec: ConvSpec) -> tuple[tuple[int, int], ...]:
    """Return m and d of each band of :func:`fourier_matrices`."""
    return tuple(irreps.shape[:2] for irreps in split_basis(spec.group)[1::2])  # type: ignore[misc]


@constant_to_dynamo
def fourier_rows(spec: ConvSpec) -> tuple[tuple[float, ...], ...]:
    """Return the rows of the Fourier basis as numbers, |H| of |H| each, which a compiler writes into its kernels."""
    return tuple(tuple(row.tolist()) for row in fourier_basis(spec.group).matrix)


def clear() -> None:
    """Clear the cache; constants are built again at their next use."""
    _cache.clear()


def _arrays(name: str, spec: ConvSpec) -> Arrays:
    group = spec.group
    if name == "fourier_matrices":
        return split_basis(group)
    if name == "window_index":
        table = action_table(group, spec.kernel_size, False)  # h⁻¹·m
        return ((np.argsort(table, axis=1) + np.arange(group.order)[:, None] * table.shape[1]).ravel(),)
    kernel = (1,) * group.dimension if name == "pointwise_index" else spec.kernel_size
    return (action_table(group, kernel, name != "spatial_index"),)


def split_basis(group: PointGroup) -> tuple[NDArray[np.float64], ...]:
    """Return rows and representations of each band of the group's Fourier basis, in float64."""
    basis, start = fourier_basis(group), 0
    bands: list[NDArray[np.float64]] = []
    for size, members in groupby(basis.blocks, key=attrgetter("size")):
        irreps = [block.irrep for block in members for _ in range(block.copies)]
        bands += [basis.matrix[start : start + size * len(irreps)], np.stack(irreps)]
        start += size * len(irreps)
    return tuple(bands)


def _constants(name: str, spec: ConvSpec, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    if torch.compiler.is_dynamo_compiling():
        return traced_value(_name_of_compiled(name, spec, device, dtype))  # type: ignore[no-any-return]
    return _look_up(name, spec, device, dtype)


@constant_to_dynamo
def _name_of_compiled(*key: Any) -> str:
    found: tuple[Any, ...] = _look_up(*key)
    for tensor in found:  # dynamic=True is meant for inputs; torch._dynamo.mark_static has no effect during tracing
        tensor._dynamo_static_indices, tensor._has_dynamo_dim_marking = set(range(tensor.ndim)), True
    return name_for_tracing("constants", key, found)


def _look_up(name: str, spec: ConvSpec, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    key = (name, spec, device, dtype)
    if key in _cache and not torch._C._len_torch_dispatch_stack():
        return _cache[key]
    with _outside_all_modes() as modes:
        fake = [mode for mode in modes if hasattr(mode, "from_tensor")]  # FakeTensorMode
        here = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_available())
        real = not fake or (here and fake[0].allow_non_fake_inputs)  # as in export
        tensors = tuple(
            torch.from_numpy(array.copy()).to(device=device if real else "cpu", dtype=dtype)
            for array in _arrays(name, spec)
        )
        if real:
            if len(_cache) >= MAX_ENTRIES:
                _cache.clear()
            return _cache.setdefault(key, tensors)
        with fake[0]:
            return tuple(fake[0].from_tensor(tensor, static_shapes=True).to(device) for tensor in tensors)


@contextmanager
def _outside_all_modes() -> Iterator[list[Any]]:
    """Leave every mode that changes what a tensor operation does; yield the dispatch modes that were left."""
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
    from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

    jit: Any = torch._C  # whose type stubs lack half of this
    modes = list(_get_current_dispatch_mode_stack())
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch._C.DisableTorchFunction())
        if torch._C._functorch.peek_interpreter_stack() is not None:
            stack.enter_context(temporarily_clear_interpreter_stack())
        if (tracing := jit._get_tracing_state()) is not None:  # None cannot be set within an operator
            stack.callback(jit._set_tracing_state, tracing)
            jit._set_tracing_state(None)
        yield modes
