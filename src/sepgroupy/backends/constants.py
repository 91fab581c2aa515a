"""The constants that backends compute with: index tables and Fourier matrices, looked up when they are used.

They follow from the specification, the device and the dtype alone. The cache holds plain tensors: they are built
outside inference mode, dispatch modes, function transforms and tracing, whatever the caller is in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..groups import PointGroup, action_table, fourier_basis
from .base import constant_to_dynamo
from .conv_spec import ConvSpec

Arrays = tuple[NDArray[np.int64] | NDArray[np.float64], ...]

MAX_ENTRIES = 1024  # of the cache; a network of any depth has a handful of specifications

_cache: dict[tuple[object, ...], tuple[Tensor, ...]] = {}


@constant_to_dynamo
def planar_index(spec: ConvSpec, device: torch.device) -> tuple[Tensor, ...]:
    """Return one table (|H|, k·k): the kernel elements of a planar filter in the order of each transformed copy."""
    return _constants(_planar_index, spec, device, torch.int64)


@constant_to_dynamo
def group_index(spec: ConvSpec, device: torch.device) -> tuple[Tensor, ...]:
    """Return one table (|H|, |H|·k·k), as :func:`planar_index` for a filter on the group."""
    return _constants(_group_index, spec, device, torch.int64)


@constant_to_dynamo
def pointwise_index(spec: ConvSpec, device: torch.device) -> tuple[Tensor, ...]:
    """Return one table (|H|, |H|), as :func:`group_index` for a 1×1 filter."""
    return _constants(_pointwise_index, spec, device, torch.int64)


@constant_to_dynamo
def fourier_matrices(spec: ConvSpec, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return, for each band of the Fourier basis, its rows (m·d, |H|) and its representations (m, d, d, |H|).

    A band is m neighbouring blocks of one size d, copies counted, which are one batched product.
    """
    return _constants(_fourier_matrices, spec, device, dtype)


def clear() -> None:
    """Forget all constants; they are built again when they are used."""
    _cache.clear()


def _planar_index(spec: ConvSpec) -> Arrays:
    return (action_table(spec.group, spec.kernel_size),)


def _group_index(spec: ConvSpec) -> Arrays:
    return (action_table(spec.group, spec.kernel_size, True),)


def _pointwise_index(spec: ConvSpec) -> Arrays:
    return (action_table(spec.group, (1,) * spec.group.dimension, True),)


def _fourier_matrices(spec: ConvSpec) -> Arrays:
    return split_basis(spec.group)


def split_basis(group: PointGroup) -> tuple[NDArray[np.float64], ...]:
    """Return rows and representations of each band of the group's Fourier basis, in float64."""
    basis, start = fourier_basis(group), 0
    bands: list[NDArray[np.float64]] = []
    for size, members in groupby(basis.blocks, key=attrgetter("size")):
        irreps = [block.irrep for block in members for _ in range(block.copies)]
        bands += [basis.matrix[start : start + size * len(irreps)], np.stack(irreps)]
        start += size * len(irreps)
    return tuple(bands)


def _constants(
    build: Callable[[ConvSpec], Arrays], spec: ConvSpec, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    key = (build, spec, device, dtype)
    found = _cache.get(key)
    if found is not None:
        return found
    with _outside_all_modes() as modes:
        found = tuple(torch.from_numpy(array.copy()).to(device="cpu", dtype=dtype) for array in build(spec))
        fake = [mode for mode in modes if hasattr(mode, "from_tensor")]  # FakeTensorMode
        traced = len(modes) > len(fake) or torch.compiler.is_compiling()
        if not fake or (traced and device.type == "cpu"):  # a program that is traced or exported holds real constants
            found = tuple(tensor.to(device) for tensor in found)
            if len(_cache) >= MAX_ENTRIES:
                _cache.clear()
            _cache[key] = found
            return found
        return tuple(fake[0].from_tensor(tensor).to(device) for tensor in found)


@contextmanager
def _outside_all_modes() -> Iterator[list[Any]]:
    """Leave every mode that changes what a tensor operation does; yield the dispatch modes that were left."""
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
    from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

    jit: Any = torch._C  # whose type stubs lack half of this
    tracing = jit._get_tracing_state()
    modes = list(_get_current_dispatch_mode_stack())
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch._C.DisableTorchFunction())
        if torch._C._functorch.peek_interpreter_stack() is not None:
            stack.enter_context(temporarily_clear_interpreter_stack())
        jit._set_tracing_state(None)
        try:
            yield modes
        finally:
            jit._set_tracing_state(tracing)
