"""Which backend computes a convolution: the registered ones, their order of preference, and every threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..groups import fourier_basis
from .base import Backend, can_bypass_dispatcher, has_plain_values, is_plain_eager_tensor
from .conv_spec import ConvSpec
from .expanded import Expanded
from .fourier import Fourier
from .geometry import MAX_SIZE
from .native import Native
from .native.library import DTYPES
from .native.limits import can_gather
from .reference import Reference
from .tracing import constant_to_dynamo, is_exporting
from .two_step import TwoStep

RULES = ("auto", "torch")
"""Values of ``backend=`` that select a backend here: of all, or of those that use PyTorch's operations only."""

# Every threshold, with the benchmark that set it.
NATIVE_MAX_THREADS_WITHOUT_OPENMP = 2
"""Largest number of PyTorch's threads at which kernels compiled without OpenMP are as fast: their one thread is as fast
as two to four (benchmarks/layers.py)."""
FOURIER_MIN_WORK = 1.5e10
"""Smallest product, values of a feature map × (multiplications saved for each)², at which PyTorch's operations in the
Fourier domain are faster than a plain convolution (benchmarks/layers.py)."""
FOURIER_MIN_SAVING = 2.0
"""Smallest quotient, multiplications along the group axis by those in the Fourier domain, at which the transform is
faster (benchmarks/layers.py)."""
NATIVE_MIN_SAVING = {"gc": 1.0, "g": 2.0, "dense": 2.0}
"""As FOURIER_MIN_SAVING for the compiled kernels, by kind. A gc layer gains from any saving, because its depthwise step
costs the same in the Fourier domain (benchmarks/layers.py)."""
FOURIER_MIN_SAVED_ON_GPU = 800
"""As FOURIER_MIN_WORK on a GPU: smallest number of multiplications saved for each value of a feature map. An estimate
from data sheets, measured on no GPU: the transforms read and write two feature maps more, 8 bytes for each value in
bfloat16, in which time the tensor cores of an A100 or H100 do 200 to 300 operations for each byte."""
FOURIER_MIN_SAVED_ON_GPU_COMPILED = 400
"""The same in compiled programs, where the first transform is fused with the batch norm before it."""
DIRECT_MAX_ENTRIES = {1: 49, 2: 49, 3: 343}
"""Largest number of entries of a lifting filter, by dimension, at which the kernels' direct convolution is faster than
PyTorch's, for groups and kernels whose pixels they do not gather: that is faster with any number of channels
(benchmarks/layers.py)."""
DIRECT_MAX_PLANES = {"dense": 4, "g": 4, "gc": 48}
"""The same of layers with blocks of channels: largest number of planes of a block, |H|·in_channels/groups, by kind. A g
layer with one channel in a block is of kind gc. See benchmarks/blocks.py."""
NATIVE_MIN_REUSED = 2**14
"""Smallest number of parameters at which the kernels' expanded filters are reused from a cache: to compare parameters
with those of the cache takes a small layer longer than to expand them (python -m benchmarks compare, small layers)."""
TRACED_SIZE = (64, 2**18)
"""Channels and values of a feature map that are assumed during tracing, when sizes may be symbols."""

NATIVE_DTYPES = tuple(DTYPES)
"""Dtypes of feature maps that the kernels read; float16 is converted."""

_registry: dict[str, Backend] = {b.name: b for b in (Native(), Fourier(), TwoStep(), Expanded(), Reference())}
"""All backends, in the order of preference."""
_PYTORCH = (Fourier, TwoStep, Expanded)


def register(backend: Backend) -> None:
    """Add a backend. "auto" selects it wherever it supports the input. A backend of the same name is replaced.

    Raises:
        ArgumentError: its name is that of a rule ("auto", "torch") or not a string.
    """
    if not isinstance(backend, Backend) or not isinstance(getattr(backend, "name", None), str) or backend.name in RULES:
        raise ArgumentError(f"backend (={backend!r}) must be a Backend with a name other than {' and '.join(RULES)}")
    others = {name: other for name, other in _registry.items() if name != backend.name}
    _registry.clear()
    _registry.update({backend.name: backend} | others)
    _candidates.cache_clear()


def unregister(name: str) -> None:
    """Remove the backend of that name, if there is one."""
    _registry.pop(name, None)
    _candidates.cache_clear()


def registered_backends() -> tuple[Backend, ...]:
    """Return all backends in the order of preference."""
    return tuple(_registry.values())


def available_backends() -> dict[str, str]:
    """Return the implementation of each backend by name, or the reason why this machine cannot use it.

    >>> sorted(available_backends())
    ['expanded', 'fourier', 'native', 'reference', 'two_step']
    """
    found = {}
    for backend in _registry.values():
        missing = backend.unavailable_reason()
        found[backend.name] = backend.summary() if missing is None else f"unavailable: {missing}"
    return found


def check_backend(spec: ConvSpec, requested: str) -> None:
    """Refuse a value of ``backend=`` that cannot compute such convolutions.

    Raises:
        ArgumentError: it is unknown, cannot be used on this machine, or does not support the specification.
    """
    if requested in RULES:
        return
    backend = _registry.get(requested) if isinstance(requested, str) else None
    if backend is None:
        raise ArgumentError(f"backend (={requested!r}) must be one of {', '.join((*RULES, *_registry))}")
    if (reason := backend.unsupported_reason(spec)) is not None:
        raise ArgumentError(f"backend (={requested!r}) needs {reason}")
    if (reason := backend.unavailable_reason()) is not None:
        raise ArgumentError(f"backend (={requested!r}) is unavailable: {reason}")


def select_backend(spec: ConvSpec, x: Tensor, requested: str = "auto") -> Backend:
    """Return the backend that computes this convolution of this input.

    Raises:
        ArgumentError: a backend requested by name does not support the input.
    """
    if torch.compiler.is_compiling():
        # The kernels' operator has no rules for function transforms; PyTorch's operations have them.
        transformed = torch._C._are_functorch_transforms_active()
        on_cpu = x.device.type == "cpu"
        native = on_cpu and x.dtype in NATIVE_DTYPES and not (is_exporting() or transformed)
        # A branch: Dynamo's comparison of symbols is no constant.
        if native and x.shape[1] > _max_direct_channels(spec):
            native = False
        return _registry[_select_while_tracing(spec, requested, on_cpu, native, is_exporting(), transformed)]
    candidates = _candidates(spec, requested)
    if requested not in RULES:
        (backend,) = candidates
        if (reason := backend.unsupported_reason(spec, x)) is not None:
            raise ArgumentError(f"backend (={requested!r}) needs {reason}")
        return backend
    for backend in candidates[:-1]:
        suitable = _supports_active_transforms(backend) and _is_fastest(backend, spec, x)
        if suitable and backend.unsupported_reason(spec, x) is None:
            return backend
    return candidates[-1]


def _supports_active_transforms(backend: Backend) -> bool:
    """Whether the backend supports the active function transforms and the active tracer, outside of a compiler."""
    if not backend.exports and torch.jit.is_tracing():
        return False
    if not backend.forward_mode and torch.autograd.forward_ad._current_level >= 0:
        return False
    return backend.vmap or not torch._C._are_functorch_transforms_active()


@constant_to_dynamo
def _select_while_tracing(
    spec: ConvSpec, requested: str, on_cpu: bool, native: bool, exporting: bool, transformed: bool
) -> str:
    """Return the name of the backend for an input whose sizes may be symbols. Thresholds would specialize them."""
    for backend in (candidates := _candidates(spec, requested)):
        if requested not in RULES:
            return backend.name
        if not (backend.exports if exporting else backend.compiles) or (transformed and not backend.vmap):
            continue
        if isinstance(backend, Native):
            if native:
                return backend.name
        elif not isinstance(backend, Fourier) or _fourier_is_fastest(spec, *TRACED_SIZE, on_cpu, not exporting):
            return backend.name
    return candidates[-1].name


@lru_cache(maxsize=1024)
def _candidates(spec: ConvSpec, requested: str) -> tuple[Backend, ...]:
    """Return the backends to consider, in the order of preference; the last one supports every input."""
    check_backend(spec, requested)
    if requested not in RULES:
        return (_registry[requested],)
    found = []
    for backend in _registry.values():
        if requested == "torch" and not isinstance(backend, _PYTORCH):
            continue
        usable = backend.unsupported_reason(spec) is None and backend.unavailable_reason() is None
        if usable and _may_be_fastest(backend, spec):
            found.append(backend)
            if isinstance(backend, (TwoStep, Expanded)):
                break
    return tuple(found)


def _may_be_fastest(backend: Backend, spec: ConvSpec) -> bool:
    """Whether the backend is the fastest for some input."""
    if isinstance(backend, Native):
        return spec.kind == "lifting" or spec.groups > 1 or fourier_saving(spec) > NATIVE_MIN_SAVING[spec.kind]
    if isinstance(backend, Fourier):
        return fourier_saving(spec) > FOURIER_MIN_SAVING
    if isinstance(backend, TwoStep):
        # The two steps of a g layer would hold I·O·|H| feature maps between them. A transposed gc layer does its
        # pointwise step at every output pixel, which is faster where more than one kernel element reaches it.
        return spec.kind == "gc" and (not spec.transposed or math.prod(spec.kernel_size) > math.prod(spec.stride))
    return True


def _is_fastest(backend: Backend, spec: ConvSpec, x: Tensor) -> bool:
    """Whether a backend that can be the fastest is so for this input."""
    if isinstance(backend, Native):
        return has_plain_values(x) and _native_is_fastest(backend, x) and x.shape[1] <= _max_direct_channels(spec)
    if isinstance(backend, Fourier):
        size = (x.shape[1], x.numel()) if is_plain_eager_tensor(x) else TRACED_SIZE
        return _fourier_is_fastest(spec, *size, on_cpu=x.device.type == "cpu", compiled=False)
    return True


@constant_to_dynamo
def _max_direct_channels(spec: ConvSpec) -> int:
    """Return the largest number of input channels at which a direct convolution by the kernels is the fastest."""
    if spec.kind == "lifting":
        if can_gather(spec):
            return MAX_SIZE
        return spec.groups * (DIRECT_MAX_ENTRIES[spec.dimension] // math.prod(spec.kernel_size))
    if spec.groups == 1:
        return MAX_SIZE
    most = DIRECT_MAX_PLANES[spec.kind] // spec.group.order
    if spec.kind == "g" and spec.group.order <= DIRECT_MAX_PLANES["gc"]:
        most = max(most, 1)
    return spec.groups * most


def _fourier_is_fastest(spec: ConvSpec, channels: int, numel: int, on_cpu: bool, compiled: bool) -> bool:
    saved = channels * spec.group.order * (1 - 1 / fourier_saving(spec))
    if on_cpu:
        return numel * saved**2 >= FOURIER_MIN_WORK
    return saved >= (FOURIER_MIN_SAVED_ON_GPU_COMPILED if compiled else FOURIER_MIN_SAVED_ON_GPU)


def native_for(x: Tensor) -> Native | None:
    """Return the kernels if they are the fastest for operations on x other than convolutions, such as pooling."""
    for backend in _registry.values():
        if isinstance(backend, Native) and backend.unavailable_reason() is None:
            fastest = can_bypass_dispatcher(x) and x.dtype in NATIVE_DTYPES and _native_is_fastest(backend, x)
            return backend if fastest else None
    return None


def worth_caching(backend: Backend, parameters: Mapping[str, Tensor]) -> bool:
    """Whether filters expanded from these parameters are worth a cache."""
    return not isinstance(backend, Native) or sum(p.numel() for p in parameters.values()) >= NATIVE_MIN_REUSED


def _native_is_fastest(native: Native, x: Tensor) -> bool:
    """Whether the kernels are the fastest for an eager tensor.

    They are at every size, in training and inference (benchmarks/layers.py, volumes.py). Groups of volumes without a
    fast transform, such as Td, are about as fast in inference by PyTorch's operations, and slower in training.
    They compute shorter dtypes, and autocast's, in float32 (benchmarks/modes.py).
    """
    if not (x.is_cpu and x.is_floating_point()):
        return False
    return native.threaded() or torch.get_num_threads() <= NATIVE_MAX_THREADS_WITHOUT_OPENMP


@lru_cache(maxsize=1024)
def fourier_saving(spec: ConvSpec) -> float:
    """Return the multiplications along the group axis divided by those in the Fourier domain."""
    return spec.group.order**2 / fourier_basis(spec.group).multiplications
