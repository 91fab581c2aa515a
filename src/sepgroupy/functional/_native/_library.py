"""The compiled kernels: found, loaded, and called with memory that fits what they are told.

``kernels.c`` says what they compute. They read raw pointers, so everything about a tensor is checked here first.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import ArgumentError
from ...groups import PointGroup, action_table, fourier_basis, moved_size
from .._geometry import Geometry

FOLDER = Path(__file__).parent  # of the libraries
SUFFIXES = {torch.float32: "_f32", torch.float64: "_f64"}
GENERAL, CYCLIC4, DIHEDRAL4 = 0, 4, 8
MAX_TAPS, MAX_STRIDE, MAX_ORDER = 49, 3, 8


class Problem(ctypes.Structure):
    """One convolution, as kernels.c declares it."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("batch", "in_channels", "out_channels", "height", "width", "out_height", "out_width"),
            *("stride_y", "stride_x", "padding_y", "padding_x", "taps", "kind"),
            *("threads", "order", "blocks", "transform"),
        )
    ] + [(name, ctypes.c_void_p) for name in ("block", "moved", "basis", "irreps")]


# The fast transforms of kernels.c, row by row.
_FAST = {
    CYCLIC4: [[1, 1, 1, 1], [1, -1, 1, -1], [1, 0, -1, 0], [0, 1, 0, -1]],
    DIHEDRAL4: [
        [1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, -1, -1, -1, -1],
        [1, -1, 1, -1, 1, -1, 1, -1],
        [1, -1, 1, -1, -1, 1, -1, 1],
        [1, 0, -1, 0, 1, 0, -1, 0],
        [0, 1, 0, -1, 0, 1, 0, -1],
        [0, -1, 0, 1, 0, 1, 0, -1],
        [1, 0, -1, 0, -1, 0, 1, 0],
    ],
}


@lru_cache(maxsize=64)
def _transform(group: PointGroup) -> tuple[int, NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
    """Return which transform the kernels take, the blocks, H, and the irreps scaled to go with it."""
    basis = fourier_basis(group)
    kind, matrix, scale = GENERAL, basis.matrix, np.ones(group.order)
    for fast, rows in _FAST.items():
        unscaled = np.array(rows, dtype=np.float64)
        norms = np.linalg.norm(unscaled, axis=1)
        if len(rows) == group.order and np.allclose(unscaled / norms[:, None], basis.matrix):
            kind, matrix, scale = fast, unscaled, 1 / norms
    blocks = np.array([(b.start, b.size, b.copies) for b in basis.blocks], dtype=np.int32)
    irreps = [b.irrep.reshape(-1, group.order) * scale[b.start] ** 2 for b in basis.blocks]
    return kind, blocks, np.ascontiguousarray(matrix), np.concatenate(irreps)


@lru_cache(maxsize=256)
def _moved_taps(group: PointGroup, geometry: Geometry) -> NDArray[np.int32]:
    """Return row and column, in pixels, of each tap after each element has moved it; shape (taps, order, 2)."""
    kernel, table = geometry.kernel_size, action_table(group, geometry.kernel_size)
    moved = np.empty((table.shape[1], group.order, 2), dtype=np.int32)
    for g, sources in enumerate(table):
        size = moved_size(group.arrays[g], kernel)
        rows, columns = np.unravel_index(np.arange(len(sources)), size)
        moved[sources, g, 0], moved[sources, g, 1] = rows * geometry.dilation[0], columns * geometry.dilation[1]
    return moved


@dataclass(frozen=True)
class Kernels:
    """The loaded library, or why there is none."""

    library: Any
    summary: str

    def __bool__(self) -> bool:
        return self.library is not None


@lru_cache(maxsize=1)
def kernels() -> Kernels:
    """Load the kernels compiled for the widest vectors that this processor has."""
    if os.environ.get("SEPGROUPY_NATIVE") == "0":
        return Kernels(None, "switched off by SEPGROUPY_NATIVE=0")
    wide = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    reasons = []
    for name in ("avx2", "baseline") if wide else ("baseline",):
        path = FOLDER / f"_{name}.so"
        try:
            if path.exists():
                return Kernels(_load(path), f"C kernels, {name}")
        except (OSError, AttributeError) as error:  # no library, or not of these kernels
            reasons.append(str(error))
    missing = "not compiled: pip install sepgroupy where there is a C compiler (gcc or clang)"
    return Kernels(None, "; ".join(reasons) or missing)


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for suffix in SUFFIXES.values():
        getattr(library, f"workspace{suffix}").restype = ctypes.c_int64
        for function, count in (("forward", 9), ("backward", 12)):
            getattr(library, function + suffix).argtypes = [ctypes.c_void_p] * count
        for function, count in (("statistics", 3), ("add_affine", 4)):
            getattr(library, function + suffix).argtypes = [ctypes.c_int64] * 4 + [ctypes.c_void_p] * count
    library.problem_size.restype = ctypes.c_int64
    if library.problem_size() != ctypes.sizeof(Problem):
        raise OSError(f"{path} is of another version: install sepgroupy again")
    return library


def serves(group: PointGroup, geometry: Geometry) -> str:
    """Return "" if the kernels compute such convolutions, else what they would need."""
    needs = {
        "groups=1": geometry.groups == 1,
        f"strides up to {MAX_STRIDE}": max(geometry.stride) <= MAX_STRIDE,
        f"kernels of up to {MAX_TAPS} taps": geometry.kernel_size[0] * geometry.kernel_size[1] <= MAX_TAPS,
        f"a group of order up to {MAX_ORDER}": group.order <= MAX_ORDER,
    }
    return ", ".join(need for need, holds in needs.items() if not holds)


@lru_cache(maxsize=1024)
def call_for(group: PointGroup, geometry: Geometry) -> Call:
    """Return what convolves under this group and geometry."""
    return Call(group, geometry)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel of maps (N, C, Y, X)."""
    if not (x.dtype in SUFFIXES and x.device.type == "cpu" and x.is_contiguous() and x.ndim == 4 and x.numel()):
        raise ArgumentError(f"x is {x.dtype} of shape {tuple(x.shape)} on {x.device}: no maps that the kernels read")
    mean, var = x.new_empty(x.shape[1]), x.new_empty(x.shape[1])
    sizes = (x.shape[0], x.shape[1], x.shape[2] * x.shape[3], torch.get_num_threads())
    function = getattr(kernels().library, f"statistics{SUFFIXES[x.dtype]}")
    function(*sizes, *(t.data_ptr() for t in (x, mean, var)))
    return mean, var


class Call:
    """One convolution: maps (B, |H|, C, Y, X), weight (O, I, |H|, k, k) or a gc layer's pair of factors."""

    def __init__(self, group: PointGroup, geometry: Geometry) -> None:
        self.group, self.geometry = group, geometry
        if missing := serves(group, geometry):
            raise ArgumentError(f"the kernels need {missing}")
        self._settle = lru_cache(maxsize=64)(self._settle_anew)

    def output_shape(self, x: tuple[int, ...], weight: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the output for an input and a filter of these shapes."""
        if len(x) != 5 or len(weight) != 5:
            raise ArgumentError(f"x has shape {x} and weight {weight}; the kernels read five axes of each")
        self.geometry.check_size(x[0] * x[1] * x[2], *x[-2:])
        return (x[0], x[1], weight[0], *self.geometry.output_size(*x[-2:]))

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        depthwise: Tensor | None,
        bias: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
    ) -> Tensor:
        """Convolve x, or max(0, scale·x + shift) if there is a scale."""
        y = x.new_empty(self.output_shape(tuple(x.shape), tuple(weight.shape)))
        computes = bool(y.numel() and x.numel())
        self._run("forward", (x, scale, shift, weight, depthwise, bias, y), computes)
        if not computes:
            y.zero_() if bias is None else y.copy_(bias.view(-1, 1, 1))
        return y

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        depthwise: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Return the gradients of x, weight, depthwise and (scale, shift)."""
        dx, dw = torch.empty_like(x), torch.empty_like(weight)
        dd = None if depthwise is None else torch.empty_like(depthwise)
        dn = x.new_empty(2, *x.shape[2:3])
        computes = bool(grad.numel() and x.numel())
        self._run("backward", (x, scale, shift, weight, depthwise, grad, dx, dw, dd, dn), computes)
        if not computes:
            for gradient in (dx, dw, dd, dn):
                if gradient is not None:
                    gradient.zero_()
        return dx, dw, dd, dn

    def add_affine(self, dx: Tensor, x: Tensor, slope: Tensor, offset: Tensor) -> None:
        """Add slope·x + offset, (I,), to dx in place; all as :meth:`backward` has checked."""
        batch, order, channels, height, width = x.shape
        sizes = (batch * order, channels, height * width, torch.get_num_threads())
        tensors = (x, slope.contiguous(), offset.contiguous(), dx)
        getattr(kernels().library, f"add_affine{SUFFIXES[x.dtype]}")(*sizes, *(t.data_ptr() for t in tensors))

    def _run(self, name: str, tensors: tuple[Tensor | None, ...], computes: bool) -> None:
        # The kernels trust what they are given: a tensor that does not fit would be read past its end.
        x = tensors[0]
        assert x is not None
        for tensor in tensors:
            if tensor is not None and not (
                tensor.device.type == "cpu"
                and tensor.dtype is x.dtype
                and x.dtype in SUFFIXES
                and tensor.is_contiguous()
            ):
                raise ArgumentError(
                    f"the kernels read contiguous CPU tensors of one type, float32 or float64, not {tensor.dtype} on "
                    f"{tensor.device} beside x of {x.dtype}"
                )
        shapes = tuple(None if t is None else tuple(t.shape) for t in tensors)
        problem, rooms = self._settle(shapes, torch.get_num_threads(), SUFFIXES[x.dtype])
        if computes:
            space = x.new_empty(rooms[name == "backward"])
            pointers = [None if t is None else t.data_ptr() for t in (*tensors, space)]
            getattr(kernels().library, f"{name}{SUFFIXES[x.dtype]}")(problem, *pointers)

    def _settle_anew(self, shapes: tuple[Any, ...], threads: int, suffix: str) -> tuple[Any, tuple[int, int]]:
        """Check the shapes and return the problem, by reference, with the values of work space it needs."""
        x, scale, _, weight, depthwise, *rest = shapes
        y, kernel = self.output_shape(x, weight), self.geometry.kernel_size
        (batch, order, inputs, height, width), (outputs, *sizes) = x, y[2:]
        names = ["x", "scale", "shift", "weight", "depthwise"]
        expected: list[tuple[int, ...] | None] = [
            (batch, self.group.order, inputs, height, width),
            None if scale is None else (inputs,),
            None if scale is None else (inputs,),
            (outputs, inputs, self.group.order, *(kernel if depthwise is None else (1, 1))),
            None if depthwise is None else (outputs, 1, 1, *kernel),
        ]
        if len(rest) == 2:
            names += ["bias", "y"]
            expected += [None if rest[0] is None else (outputs,), y]
        else:
            names += ["the output's gradient", "dx", "dweight", "ddepthwise", "dnorm"]
            expected += [y, x, expected[3], expected[4], (2, inputs)]
        for name, shape, fitting in zip(names, shapes, expected, strict=True):
            if shape != fitting:
                raise ArgumentError(f"{name} has shape {shape}, not {fitting}, for {self.group} and {self.geometry}")
        library = kernels().library
        if library is None:
            raise ArgumentError(f"algorithm (='native') is not to be had here: {kernels().summary}")
        transform, blocks, basis, irreps = _transform(self.group)
        moved = _moved_taps(self.group, self.geometry)
        problem = Problem(
            batch, inputs, outputs, height, width, *sizes, *self.geometry.stride, self.geometry.padding[0],
            self.geometry.padding[2], len(moved), depthwise is not None, threads, order, len(blocks), transform,
            *(array.ctypes.data for array in (blocks, moved, basis, irreps)),
        )  # fmt: skip
        problem.arrays = (blocks, moved, basis, irreps)  # they live as long as it does
        reference = ctypes.byref(problem)
        if 0 in (*x, outputs):  # there is nothing to compute
            return reference, (0, 0)
        workspace = getattr(library, f"workspace{suffix}")
        return reference, (workspace(reference, 0), workspace(reference, 1))
