"""The compiled kernels: found, loaded, and launched on tensors that they can read.

They read raw pointers, so everything about a tensor is checked before they are called: type, device and layout here,
shapes by the caller.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import ArgumentError

FOLDER = Path(__file__).parent  # of the libraries
VERSION = 6  # of the interface, as csrc/kernels.cpp has it
VARIANTS = ("avx512", "avx2", "baseline")  # the widest vectors first
SUFFIXES = {torch.float32: "_f32", torch.float64: "_f64"}  # of functions' names
WIDE = "_f32_wide"  # of those for long rows

# Of each function: whether it reads a Problem, how many sizes, whether an ε, and how many pointers.
_SIGNATURES = {
    "forward": (1, 0, 0, 14),
    "expand_filters": (1, 0, 0, 3),
    "backward": (1, 0, 0, 15),
    "lift": (1, 0, 0, 7),
    "lift_back": (1, 0, 0, 5),
    "statistics": (0, 4, 0, 3),
    "pool": (0, 5, 1, 6),
    "pool_back": (0, 6, 1, 9),
}


class Problem(ctypes.Structure):
    """One convolution, as csrc/kernels.cpp declares it."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("batch", "in_channels", "out_channels", "height", "width", "out_height", "out_width"),
            *("stride_y", "stride_x", "padding_y", "padding_x", "taps", "kind"),
            *("threads", "order", "blocks", "transform"),
        )
    ]
    _fields_ += [(name, ctypes.c_void_p) for name in ("block", "moved", "basis", "irreps")]
    _fields_ += [("eps", ctypes.c_double)]
    _fields_ += [(name, ctypes.c_int64) for name in ("batch_stats", "wants_x", "wants_filters")]


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
                return Kernels(library, f"C kernels, {name}{alone}", not alone)
        except (OSError, AttributeError) as error:  # no library, or not of these kernels
            reasons.append(str(error))
    missing = "not compiled: pip install sepgroupy where there is a C compiler (gcc or clang)"
    return Kernels(None, "; ".join(reasons) or missing)


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.version.restype = library.problem_size.restype = ctypes.c_int64
    if (library.version(), library.problem_size()) != (VERSION, ctypes.sizeof(Problem)):
        raise OSError(f"{path} is of another version: install sepgroupy again")
    library.wide_rows.restype = ctypes.c_int64
    for suffix in (*SUFFIXES.values(), *([WIDE] if library.wide_rows() else [])):
        for name, counts in _SIGNATURES.items():
            kinds = zip((ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p), counts, strict=True)
            getattr(library, name + suffix).argtypes = [kind for kind, count in kinds for _ in range(count)]
        for name in ("workspace", "lift_workspace", "filters_size", "vector_values"):
            getattr(library, name + suffix).restype = ctypes.c_int64
    library.expect_writes.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    return library


def suffix_for(dtype: torch.dtype, row: int) -> str:
    """Return the suffix of the functions that are fastest for rows of ``row`` pixels."""
    step = kernels().library.wide_rows()
    return WIDE if dtype is torch.float32 and step and row % step == 0 else SUFFIXES[dtype]


def launch(name: str, first: Sequence[Any], tensors: Sequence[Tensor | None], suffix: str | None = None) -> None:
    """Launch a kernel, by default for the dtype of the first tensor; ``first`` are its arguments before the tensors."""
    suffix = suffix or SUFFIXES[tensors[0].dtype]  # type: ignore[union-attr]
    getattr(kernels().library, name + suffix)(*first, *[None if t is None else t.data_ptr() for t in tensors])


def check_readable(tensors: Sequence[Tensor | None]) -> None:
    """Refuse tensors that the kernels cannot read.

    Raises:
        ArgumentError: one of them is not a contiguous CPU tensor of the first one's dtype, float32 or float64.
    """
    dtype = tensors[0].dtype  # type: ignore[union-attr]
    known = dtype in SUFFIXES
    for tensor in tensors:
        if tensor is not None and not (known and tensor.dtype is dtype and tensor.is_cpu and tensor.is_contiguous()):
            raise ArgumentError(
                f"the kernels read contiguous CPU tensors of one dtype, float32 or float64, not {tensor.dtype} on "
                f"{tensor.device} beside x of {dtype}"
            )
