"""Which backend computes a convolution: the registered ones, their order of preference, and every threshold."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..groups import PointGroup, fourier_basis
from .base import Backend, can_bypass_dispatcher, constant_to_dynamo, is_compiling_for_speed, is_plain_eager_tensor
from .conv_spec import ConvSpec
from .expanded import Expanded
from .fourier import Fourier
from .native import Native
from .reference import Reference
from .two_step import TwoStep

RULES = ("auto", "torch")
"""Values of ``backend=`` that let this module choose: of all backends, or of those made of PyTorch's operations."""

# Every threshold, with the benchmark that set it.
NATIVE_MIN_NUMEL = 8192
"""Values of an input from which on the kernels compute an inference faster than PyTorch (benchmarks/layers.py)."""
NATIVE_MAX_THREADS_WITHOUT_OPENMP = 2
"""PyTorch's threads up to which kernels compiled without OpenMP are as fast: their one thread does the work of two to
four (benchmarks/layers.py)."""
FOURIER_MIN_WORK = 1.5e10
"""Values of a feature map × (multiplications saved for each)², from which on PyTorch's operations in the Fourier domain
are faster than a plain convolution (benchmarks/layers.py)."""
FOURIER_MIN_SAVING = 2.0
"""Multiplications along the group axis by those in the Fourier domain, from which on the transform pays; a gc layer has
its depthwise step beside and needs more than 1 (benchmarks/layers.py)."""
TRACED_NUMEL = 2**18
"""Values of a feature map that is assumed while a program is traced, where sizes may be symbols."""

_backends: list[Backend] = [Native(), Fourier(), TwoStep(), Expanded(), Reference()]
_PYTORCH = (Fourier, TwoStep, Expanded)


def register(backend: Backend) -> None:
    """Add a backend. "auto" takes it wherever it supports the input; one of the same name is replaced.

    Raises:
        ArgumentError: its name is taken by a rule ("auto", "torch") or is no text.
    """
    if not isinstance(backend, Backend) or not isinstance(getattr(backend, "name", None), str) or backend.name in RULES:
        raise ArgumentError(f"backend (={backend!r}) must be a Backend with a name other than {' and '.join(RULES)}")
    unregister(backend.name)
    _backends.insert(0, backend)
    _cached_candidates.cache_clear()


def unregister(name: str) -> None:
    """Remove the backend of that name, if there is one."""
    _backends[:] = [backend for backend in _backends if backend.name != name]
    _cached_candidates.cache_clear()


def registered_backends() -> tuple[Backend, ...]:
    """Return all backends in the order of preference."""
    return tuple(_backends)


def available_backends() -> dict[str, str]:
    """Return what each backend computes with or, of one that this machine cannot use, the reason.

    >>> sorted(available_backends())
    ['expanded', 'fourier', 'native', 'reference', 'two_step']
    """
    found = {}
    for backend in _backends:
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
    known = {backend.name: backend for backend in _backends}
    backend = known.get(requested) if isinstance(requested, str) else None
    if backend is None:
        raise ArgumentError(f"backend (={requested!r}) must be one of {', '.join((*RULES, *known))}")
    if (reason := backend.unsupported_reason(spec)) is not None:
        raise ArgumentError(f"backend (={requested!r}) needs {reason}")
    if (reason := backend.unavailable_reason()) is not None:
        raise ArgumentError(f"backend (={requested!r}) is unavailable: {reason}")


def select_backend(spec: ConvSpec, x: Tensor, requested: str = "auto") -> Backend:
    """Return the backend that computes this convolution of this input.

    Raises:
        ArgumentError: a backend requested by name does not support the input.
    """
    candidates = [_backends[index] for index in _candidates(spec, requested)]
    if requested not in RULES:
        (backend,) = candidates
        if (reason := backend.unsupported_reason(spec, x)) is not None:
            raise ArgumentError(f"backend (={requested!r}) needs {reason}")
        return backend
    for backend in candidates[:-1]:
        if _pays(backend, spec, x) and backend.unsupported_reason(spec, x) is None:
            return backend
    return candidates[-1]


@constant_to_dynamo
def _candidates(spec: ConvSpec, requested: str) -> tuple[int, ...]:
    """Return the indices of the backends to consider, best first; of a rule the last one supports every input."""
    return _cached_candidates(spec, requested)  # indices, since Dynamo's constants are numbers, texts and tensors


@lru_cache(maxsize=1024)
def _cached_candidates(spec: ConvSpec, requested: str) -> tuple[int, ...]:
    check_backend(spec, requested)
    if requested not in RULES:
        return tuple(index for index, backend in enumerate(_backends) if backend.name == requested)
    found = []
    for index, backend in enumerate(_backends):
        if requested == "torch" and not isinstance(backend, _PYTORCH):
            continue
        supported = backend.unsupported_reason(spec) is None and backend.unavailable_reason() is None
        if supported and _may_pay(backend, spec):
            found.append(index)
            if isinstance(backend, TwoStep):
                break
        if isinstance(backend, Expanded):
            break
    return tuple(found)


def _may_pay(backend: Backend, spec: ConvSpec) -> bool:
    """Whether the backend is the fastest for some input."""
    if isinstance(backend, Native):
        return spec.kind == "lifting" or fourier_saving(spec.group) > (1.0 if spec.kind == "gc" else FOURIER_MIN_SAVING)
    if isinstance(backend, Fourier):
        return fourier_saving(spec.group) > FOURIER_MIN_SAVING
    if isinstance(backend, TwoStep):
        # The two steps of a g layer would hold I·O·|H| feature maps between them. A transposed gc layer does its
        # pointwise step at every output pixel, which pays where more than one kernel element reaches it.
        return spec.kind == "gc" and (not spec.transposed or math.prod(spec.kernel_size) > math.prod(spec.stride))
    return True


def _pays(backend: Backend, spec: ConvSpec, x: Tensor) -> bool:
    """Whether a backend that may pay is the fastest for this input."""
    if isinstance(backend, Native):
        if spec.kind == "lifting":
            return can_bypass_dispatcher(x) and _native_pays(backend, x)
        if is_compiling_for_speed():  # sizes may be symbols, which a threshold would fix
            return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
        return is_plain_eager_tensor(x) and _native_pays(backend, x)
    if isinstance(backend, Fourier):
        values = x.numel() if is_plain_eager_tensor(x) else TRACED_NUMEL
        saved = x.shape[1] * spec.group.order * (1 - 1 / fourier_saving(spec.group))
        return bool(values * saved**2 >= FOURIER_MIN_WORK)
    return True


def native_for(x: Tensor) -> Native | None:
    """Return the kernels if they are the fastest for operations on x other than convolutions, such as pooling."""
    for backend in _backends:
        if isinstance(backend, Native) and backend.unavailable_reason() is None:
            return backend if can_bypass_dispatcher(x) and _native_pays(backend, x) else None
    return None


def _native_pays(native: Native, x: Tensor) -> bool:
    """Whether the kernels are faster than PyTorch's operations for an eager tensor of this size."""
    if not (x.is_cpu and x.dtype in (torch.float32, torch.float64)):
        return False
    if not (torch.is_grad_enabled() or x.numel() >= NATIVE_MIN_NUMEL):
        return False
    return native.threaded() or torch.get_num_threads() <= NATIVE_MAX_THREADS_WITHOUT_OPENMP


@constant_to_dynamo
def fourier_saving(group: PointGroup) -> float:
    """Return the multiplications along the group axis divided by those in the Fourier domain."""
    return group.order**2 / fourier_basis(group).multiplications
