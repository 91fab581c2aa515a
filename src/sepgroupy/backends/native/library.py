"""The compiled kernels: found, loaded, and the structures that they read."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent  # of the libraries
VERSION = 14  # of the interface, as csrc/interface.h has it
VARIANTS = ("avx512", "avx2", "baseline")  # the widest vectors first
AXES = 3  # spatial axes of the kernels; an image has one slice
MAP_KERNELS = ("pool", "pool_backward", "max_pool", "max_pool_backward", "norm_clamp", "norm_clamp_backward")
"""Kernels of feature maps alone."""
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}  # of feature maps
MAPS = frozenset(("x", "residual", "y", "grad", "other_grad", "dx", "dresidual"))  # those of TensorAddresses


class Problem(ctypes.Structure):
    """One convolution, as csrc/interface.h declares it."""

    _fields_ = [(name, ctypes.c_int64) for name in ("dtype", "kind", "transform", "threads")]
    _fields_ += [
        (name, ctypes.c_int64) for name in ("batch", "order", "in_channels", "out_channels", "in_order", "groups")
    ]
    _fields_ += [(name, ctypes.c_int64 * AXES) for name in ("in_size", "out_size", "stride", "padding")]
    _fields_ += [(name, ctypes.c_int64) for name in ("elements", "blocks", "batch_stats")]
    _fields_ += [(name, ctypes.c_double) for name in ("eps", "low", "high")]
    _fields_ += [("window", ctypes.c_int64 * AXES)]
    _fields_ += [(name, ctypes.c_void_p) for name in ("block", "offset", "product", "basis", "irreps")]


class TensorAddresses(ctypes.Structure):
    """The addresses of the tensors that a kernel reads or writes, as csrc/interface.h declares them."""

    __slots__ = ()  # no name but those of the fields

    _fields_ = [
        (name, ctypes.c_void_p)
        for name in (
            *("x", "weight", "depthwise", "expanded", "bias", "gamma", "beta", "mean", "var", "residual"),
            *("y", "index", "y_mean", "y_var"),
            *("grad", "other_grad", "dx", "dweight", "ddepthwise", "dbias", "dgamma", "dbeta", "dresidual"),
            "products",
            "workspace",
        )
    ]


@dataclass(frozen=True)
class Kernels:
    """The loaded library, or why there is none."""

    library: Any
    summary: str
    threaded: bool = True

    def __bool__(self) -> bool:
        return self.library is not None


def variants() -> tuple[str, ...]:
    """Return the variants that this processor runs, the fastest first."""
    known = torch.backends.cpu.get_cpu_capability().lower()
    return VARIANTS[VARIANTS.index(known) if known in VARIANTS else -1 :]


@lru_cache(maxsize=1)
def kernels() -> Kernels:
    """Load the kernels compiled for the widest vectors that this processor has."""
    if os.environ.get("SEPGROUPY_NATIVE") == "0":
        return Kernels(None, "switched off by SEPGROUPY_NATIVE=0")
    reasons = []
    for name in variants():
        path = FOLDER / f"_{name}.so"
        try:
            if path.exists():
                library = _load(path)
                alone = "" if library.threaded() else ", one thread: compiled without OpenMP"
                return Kernels(library, f"C++ kernels, {name}{alone}", not alone)
        except (OSError, AttributeError) as error:  # no library, or not of these kernels
            reasons.append(str(error))
    missing = "not compiled: pip install sepgroupy where there is a C++ compiler (gcc or clang)"
    return Kernels(None, "; ".join(reasons) or missing)


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name in ("version", "problem_bytes", "tensors_bytes", "threaded"):
        getattr(library, name).restype = ctypes.c_int64
    sizes = (ctypes.sizeof(Problem), ctypes.sizeof(TensorAddresses))
    if library.version() != VERSION or (library.problem_bytes(), library.tensors_bytes()) != sizes:
        raise OSError(f"{path} is of another version: install sepgroupy again")
    for name in ("forward", "backward", "expand_filters", "batch_statistics", *MAP_KERNELS):
        getattr(library, name).argtypes = [ctypes.c_void_p] * 2
    library.workspace_bytes.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    library.filters_size.argtypes = library.saved_products.argtypes = [ctypes.c_void_p]
    library.vector_values.argtypes = [ctypes.c_int64] * 2
    for name in ("workspace_bytes", "filters_size", "saved_products", "vector_values"):
        getattr(library, name).restype = ctypes.c_int64
    library.expect_writes.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    return library
