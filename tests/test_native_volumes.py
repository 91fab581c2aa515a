"""The kernels know no plane and no group: volumes and orders up to 48, stated to them directly, computed by numpy.

Then layers on the symmetries of a cube, whose transforms have functions of their own.
"""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sepgroupy.backends import ConvSpec
from sepgroupy.backends.native import launch, library, transform
from sepgroupy.backends.native import problem as native_problem
from sepgroupy.backends.native.library import Problem, kernels
from sepgroupy.groups import PointGroup, as_group
from stress import native as stress

pytestmark = pytest.mark.skipif(not kernels(), reason=kernels().summary)
Array = np.ndarray[Any, np.dtype[np.float64]]

# Sizes of the irreducible representations, each as often as it is large.
IRREPS = {5: (1, 2), 24: (1, 1, 2, 3, 3), 48: (1, 1, 1, 1, 2, 2, 3, 3, 3, 3)}
KINDS = {
    "dense": native_problem.DENSE,
    "gc": native_problem.SEPARABLE,
    "g": native_problem.FACTORED,
    "lifting": native_problem.DIRECT,
}


@dataclass
class Convolution:
    """A convolution with any orthogonal basis, blocks of any values, and any place for each kernel element.

    ``y[o,g](q) = Σ_k u_k[o,g](stride·q + offset[k,g] - padding)`` with ``u_k = Hᵀ W_k H x``.
    """

    kind: str
    order: int
    size: tuple[int, int, int]
    kernel: tuple[int, int, int] = (3, 3, 3)
    stride: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[int, int, int] = (1, 1, 1)
    batch: int = 2
    channels: tuple[int, int] = (3, 4)
    threads: int = 1
    dtype: torch.dtype = torch.float64
    seed: int = 0
    keep: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.inputs, self.outputs = self.channels
        self.elements = int(np.prod(self.kernel))
        grid = np.array(list(np.ndindex(self.kernel)), dtype=np.int32)
        self.offset = np.stack([rng.permutation(grid) for _ in range(self.order)], 1)
        self.basis = np.linalg.qr(rng.standard_normal((self.order, self.order)))[0]
        sizes = IRREPS[self.order]
        starts = np.cumsum([0, *(d * d for d in sizes)])
        self.blocks = np.array([(s, d, d) for s, d in zip(starts, sizes, strict=False)], dtype=np.int32)
        self.irreps = rng.standard_normal((sum(d * d for d in sizes), self.order)) / self.order
        pairs = zip(self.size, self.padding, self.kernel, self.stride, strict=True)
        self.out_size = tuple((n + 2 * p - k) // s + 1 for n, p, k, s in pairs)
        lifting = self.kind == "lifting"
        shapes = {
            "x": (self.batch, 1 if lifting else self.order, self.inputs, *self.size),
            "weight": (self.outputs, self.inputs, *([] if lifting else [self.order]), self.elements),
            "depthwise": (self.outputs, *([self.inputs] if self.kind == "g" else []), self.elements),
            "grad": (self.batch, self.order, self.outputs, *self.out_size),
        }
        if self.kind in ("g", "gc"):
            shapes["weight"] = shapes["weight"][:3]
        else:
            del shapes["depthwise"]
        self.tensors = {name: self.draw(shape, rng) for name, shape in shapes.items()}

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape)).to(self.dtype)

    def defined(self, x: Tensor, weight: Tensor, depthwise: Tensor | None) -> Array:
        """Compute y by numpy in float64."""
        w, values = weight.double().numpy(), x.double().numpy()
        if depthwise is not None:
            factor = depthwise.double().numpy()
            w = w[..., None] * (factor[:, :, None] if self.kind == "g" else factor[:, None, None])
        pads = [(p, p) for p in self.padding]
        y = np.zeros((self.batch, self.order, self.outputs, *self.out_size))
        for k, g in itertools.product(range(self.elements), range(self.order)):
            if self.kind == "lifting":
                u = np.einsum("oi,bi...->bo...", w[:, :, k], values[:, 0])
            else:
                row = np.zeros((self.outputs, self.inputs, self.order))
                for (start, d, copies), first in zip(
                    self.blocks, np.cumsum([0, *self.blocks[:, 1] ** 2]), strict=False
                ):
                    irrep = self.irreps[first : first + d * d].reshape(d, d, self.order)
                    blocks = np.einsum("ach,oih->oiac", irrep, w[..., k])
                    for copy in range(copies):
                        rows = self.basis[start + copy * d : start + copy * d + d]
                        row = row + np.einsum("a,oiac,ch->oih", rows[:, g], blocks, rows)
                u = np.einsum("oih,bhi...->bo...", row, values)
            u = np.pad(u, [(0, 0), (0, 0), *pads])
            window = zip(self.offset[k, g], self.stride, self.out_size, strict=True)
            y[:, g] += u[(..., *(slice(a, a + s * (n - 1) + 1, s) for a, s, n in window))]
        return y

    def run(self, name: str, tensors: dict[str, Tensor | None]) -> None:
        """Launch a kernel."""
        products = np.zeros((self.order, self.order), dtype=np.int32)  # read where there are blocks of channels
        offset, basis = map(np.ascontiguousarray, (self.offset, self.basis))
        arrays = (self.blocks, offset, products, basis, self.irreps)
        problem = Problem(
            library.DTYPES[self.dtype], KINDS[self.kind], transform.GENERAL, self.threads,
            self.batch, self.order, self.inputs, self.outputs, self.tensors["x"].shape[1], 1,
            self.size, self.out_size, self.stride, self.padding,
            self.elements, len(self.blocks), False, 0.0, 0.0, 0.0, (1, 1, 1), *(a.ctypes.data for a in arrays),
        )  # fmt: skip
        size = kernels().library.workspace_bytes(ctypes.byref(problem), native_problem.PASSES[name])
        space = torch.full((size // 4 + 4096,), float("nan"))
        launch.launch(name, ctypes.byref(problem), {**tensors, "workspace": space.view(torch.uint8)})
        assert space[size // 4 :].isnan().all(), "written past the end of the workspace"

    def forward(self, **changed: Tensor) -> Tensor:
        given = {name: t for name, t in self.tensors.items() if name != "grad"} | changed
        y = torch.full_like(self.tensors["grad"], float("nan"))
        self.run("forward", {**given, "y": y})
        return y

    def backward(self) -> dict[str, Tensor]:
        """Return the gradients of the tensors that have one."""
        names = [name for name in self.tensors if name != "grad" and (name, self.kind) != ("x", "lifting")]
        found = {name: torch.full_like(self.tensors[name], float("nan")) for name in names}
        self.run("backward", {**self.tensors, **{f"d{name}": t for name, t in found.items()}})
        return found

    def check(self) -> None:
        """Compare y with the definition, and each gradient with the differential of y, linear in each argument."""
        inputs = {name: t for name, t in self.tensors.items() if name != "grad"}
        expected = torch.from_numpy(self.defined(**{"depthwise": None, **inputs}))
        tolerance = 1e-4 if self.dtype is torch.float32 else 1e-11
        scale = float(expected.abs().max())
        torch.testing.assert_close(self.forward().double(), expected, rtol=0, atol=tolerance * scale)
        rng = np.random.default_rng(1)
        for name, gradient in self.backward().items():
            assert gradient.isfinite().all()
            step = self.draw(tuple(gradient.shape), rng)
            along = torch.from_numpy(self.defined(**{"depthwise": None, **inputs, name: step}))
            terms = along * self.tensors["grad"].double()
            ours = (gradient.double() * step.double()).sum()
            assert abs(float(ours - terms.sum())) < tolerance * float(terms.abs().sum()), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", IRREPS)
def test_any_basis_of_order_5_24_or_48_is_as_defined_on_images(order: int, kind: str) -> None:
    """Of images: one slice."""
    dtype = torch.float32 if order == 24 else torch.float64
    plane: dict[str, Any] = {"size": (1, 4, 9), "kernel": (1, 3, 3), "padding": (0, 1, 1), "channels": (2, 3)}
    Convolution(kind, order, **plane, batch=1, dtype=dtype).check()


@pytest.mark.parametrize("kind", KINDS)
def test_volumes_of_every_size_and_stride_are_as_defined(kind: str) -> None:
    """Rows that fill vectors and others, every stride, bands of a volume, threads."""
    one = (1, 1, 1)
    for size, stride, kernel, threads in (
        ((4, 5, 6), one, (3, 3, 3), 1),
        ((3, 4, 16), one, (3, 3, 3), 2),
        ((1, 12, 16), one, (3, 3, 3), 1),
        ((5, 4, 7), (2, 1, 3), (3, 2, 3), 1),
        ((7, 6, 16), (2, 2, 2), (2, 2, 2), 2),
        ((19, 7, 8), one, (1, 3, 3), 2),
    ):
        if kind == "lifting" and stride != one:
            continue
        padding = (0, 1, 1) if kernel[0] == 1 else one
        Convolution(kind, 5, size, kernel, stride, padding, channels=(2, 3), threads=threads).check()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_slices_without_zeros_between_them(kind: str) -> None:
    """A slice may end within a vector of its rows; the next one begins at a vector of its own."""
    for size, kernel in (
        ((3, 5, 5), (1, 1, 1)),
        ((4, 3, 4), (2, 2, 1)),
        ((3, 5, 7), (3, 3, 3)),
        ((33, 1, 6), (2, 1, 1)),
    ):
        Convolution(kind, 5, size, kernel, padding=(0, 0, 0), channels=(2, 3)).check()


ROTATIONS = as_group("O")
REVERSED = PointGroup((ROTATIONS.elements[0], *reversed(ROTATIONS.elements[1:])), "reversed O")
SIZES = (((3, 4, 8), torch.float32, 1), ((4, 2, 3), torch.float64, 2))


@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
@pytest.mark.parametrize("group", [ROTATIONS, REVERSED, as_group("Oh")], ids=lambda group: group.name)
def test_symmetries_of_a_cube(group: PointGroup, kind: str) -> None:
    """Outputs, statistics and all gradients, with norm and residual; whole vectors and others; tiles that are bands."""
    for size, dtype, stride in SIZES[1:] if group.order > 24 else SIZES:
        spec = ConvSpec.parse(group, "dense", 3, stride, 1)
        problem = stress.Problem(spec, 1, 2, 3, size, dtype, kind, True, True, 1, residual=True, batch_stats=True)
        assert problem.check() < 1


def test_a_group_in_another_order_has_the_general_transform() -> None:
    assert transform.kernel_transform(REVERSED)[0] == transform.GENERAL


def test_volumes_cut_into_bands_are_as_defined() -> None:
    """Tall volumes are cut into bands of slices; the 3×3×3 kernel of a gc layer reads beyond its band."""
    spec = ConvSpec.parse(as_group("Cs", 3), "dense", 3, 1, 1)
    for kind in ("dense", "gc"):
        assert stress.Problem(spec, 1, 2, 2, (50, 9, 8), torch.float64, kind, True, False, 2).check() < 1
