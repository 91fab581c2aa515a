"""Compare the compiled kernels with the definition over random problems, every access of theirs watched by sanitizers.

    python -m tests.stress.native --problems 400

The kernels are compiled with AddressSanitizer and UndefinedBehaviorSanitizer (gcc), for each instruction set and
once without OpenMP, and launched through the checks of the library. The definition is computed in numpy and float64.
Inputs, outputs and workspace are buffers of exactly the values that the kernels are told, filled with NaN where nothing
has been written: an access outside of one ends the process, a value that is read before it is written spoils the
result.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

if __name__ == "__main__":  # run from the repository root
    sys.path.insert(0, str(Path(__file__).parents[1]))

import oracle
from oracle import Array
from sepgroupy.backends import BatchNormReLU, ConvSpec
from sepgroupy.backends.native import (
    batch_statistics,
    library,
    max_pool,
    norm_clamp,
    norm_relu_max_pool,
    parameter_dtype,
    supports_max_pool,
)
from sepgroupy.backends.native.launch import ConvInputs, NativeConv, native_conv
from sepgroupy.backends.native.limits import is_gathered
from sepgroupy.errors import ArgumentError
from sepgroupy.groups import C1, C2, C4, D1, D2, D4, PointGroup, as_group

SOURCE = Path(__file__).parents[2] / "csrc" / "kernels.cpp"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover"]
COMPILE = [
    *("gcc", "-std=gnu++17", "-O1", "-g", "-fPIC", "-shared", "-Wno-psabi", "-fno-exceptions", "-fno-rtti"),
    *("-ffp-contract=fast", "-fno-math-errno", *SANITIZERS),
]
BUILDS = {
    "baseline": ["-fopenmp"],
    "avx2": ["-fopenmp", "-march=x86-64-v3"],
    "avx512": ["-fopenmp", "-march=x86-64-v4", "-mprefer-vector-width=256"],
    "baseline without OpenMP": [],
}

BOTH_DIAGONALS = PointGroup.generate([[[0, 1], [1, 0]], [[0, -1], [-1, 0]]], "both diagonals")
DIAGONAL = PointGroup.generate([[[0, 1], [1, 0]]], "diagonal")
SHUFFLED = PointGroup((D4.elements[0], *reversed(D4.elements[1:])), "shuffled p4m")
GROUPS = (C1, C2, C4, C4, D1, D2, D4, D4, D4, DIAGONAL, BOTH_DIAGONALS, SHUFFLED)
VOLUMES = tuple(as_group(name, 3) for name in ("Cs", "D2", "C4", "C4h"))
SIGNALS = (as_group("reflection", 1),)
GEOMETRIES = (
    (1, 2, 3, 3, 3, 4, 5, 6, 7),
    (1, 1, 2, 3),
    (0, 0, 1, 1, 2, 3, 9),
    (1, 1, 1, 2),
)  # kernel, stride, padding, dilation
USUAL = ((1, 3, 3, 5), (1,), (0, 1, 1, 2), (1,))
MULTIPLICATIONS = 3e7  # of the largest problem
EPS = 1 / 16
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-11, torch.bfloat16: 2.0**-7}  # rounded twice at most


class Definition:
    """The convolution of float64 arrays (B, |H| or 1, I, …) with a filter (O, I, |H| or 1, k, …), and its gradients.

    As ``oracle.layer``, with which it is compared, for all output channels at once. Gradients are sums over the same
    pairs of windows and kernel elements.
    """

    def __init__(self, x: Array, weight: Array, spec: ConvSpec) -> None:
        self.weight, self.spec, self.group = weight, spec, spec.group
        self.pads = [(0, 0)] * 3 + oracle.pads(spec.padding[::2], spec.kernel_size, spec.dilation)
        self.x = np.pad(x, self.pads)
        self.size = [
            (self.x.shape[3 + a] - spec.dilation[a] * (spec.kernel_size[a] - 1) - 1) // spec.stride[a] + 1
            for a in range(spec.dimension)
        ]

    def _transformed(self, weight: Array, element: int) -> Array:
        """Return g·w."""
        if self.spec.kind == "lifting":
            return oracle.move(weight, self.group.arrays[element])
        return oracle.move_feature_map(weight, self.group, element)

    def _windows(self) -> Iterator[tuple[tuple[int, ...], Any]]:
        """Yield each kernel element with the pixels of the padded input that it meets."""
        spec = self.spec
        for tap in np.ndindex(spec.kernel_size):
            starts = [place * dilation for place, dilation in zip(tap, spec.dilation, strict=True)]
            ends = (start + s * (n - 1) + 1 for start, s, n in zip(starts, spec.stride, self.size, strict=True))
            yield tap, (..., *map(slice, starts, ends, spec.stride))

    def forward(self) -> Array:
        """Return (B, |H|, O, …)."""
        y = np.zeros((len(self.x), self.group.order, len(self.weight), *self.size))
        for g in range(self.group.order):
            bank = self._transformed(self.weight, g)
            for tap, window in self._windows():
                products = np.tensordot(bank[(..., *tap)], self.x[window], axes=([1, 2], [2, 1]))
                y[:, g] += products.swapaxes(0, 1)
        return y

    def gradients(self, grad: Array) -> tuple[Array, Array]:
        """Return those of x and of the filter."""
        dx, dweight = np.zeros_like(self.x), np.zeros_like(self.weight)
        for g, matrix in enumerate(self.group.arrays):
            bank, dbank = self._transformed(self.weight, g), np.zeros_like(self.weight)
            for tap, window in self._windows():
                dx[window] += np.moveaxis(np.tensordot(grad[:, g], bank[(..., *tap)], ([1], [0])), (-1, -2), (1, 2))
                pixels = [axis + 2 for axis in range(self.spec.dimension)]
                products = np.tensordot(grad[:, g], self.x[window], ([0, *pixels], [0, *(a + 1 for a in pixels)]))
                dbank[(..., *tap)] = products.swapaxes(1, 2)
            dweight += self._transformed(dbank, oracle.index_of(self.group, matrix.T))
        inner = [slice(before, n - after) for n, (before, after) in zip(self.x.shape[3:], self.pads[3:], strict=True)]
        return dx[(..., *inner)], dweight


@dataclass(frozen=True)
class Problem:
    """A convolution and the sizes of its tensors."""

    spec: ConvSpec
    batch: int
    inputs: int
    outputs: int
    size: tuple[int, ...]
    dtype: torch.dtype  # of feature maps
    kind: str
    bias: bool
    norm: bool
    threads: int
    residual: bool = False
    batch_stats: bool = False
    affine: bool = True  # whether the norm has gamma and beta

    @property
    def is_fused(self) -> bool:
        """Whether the kernels keep products and transform in registers, where vectors are of 64 bytes."""
        usual = self.spec.group == D4 and self.kind == "gc" and self.dtype is not torch.float64
        return usual and self.spec.stride == (1, 1) and self.size[-1] % 16 == 0

    @property
    def is_packed(self) -> bool:
        """Whether the kernels pack the columns of products, which the zeros around small maps would multiply."""
        return self.inputs >= 96 and max(self.size) <= 5 and self.spec.padding != (0,) * len(self.spec.padding)

    @property
    def is_by_outputs(self) -> bool:
        """Whether threads divide the output channels, of whose filters each thread holds some at a time."""
        elements = 1 if self.kind == "gc" else math.prod(self.spec.kernel_size)
        large = self.inputs * self.outputs * self.spec.group.order * elements > 2**17
        return large and 0 < self.batch * math.prod(self.size) <= 256 and max(self.spec.kernel_size) <= 3

    @classmethod
    def draw(cls, chance: random.Random) -> Problem:
        """Draw a problem that is not too long; one in ten is empty, and images are tiny, wide, tall or large.

        Three in ten are of what networks are made of, for which the kernels have functions of their own.
        """
        usual = chance.random() < 0.3
        groups = chance.choice(((D4,), VOLUMES) if usual else (GROUPS, GROUPS, GROUPS, VOLUMES, VOLUMES, SIGNALS))
        while True:
            group, large, deep = chance.choice(groups), chance.random() < 0.2, chance.random() < 0.2
            volume = group.dimension == 3  # of few channels, or only the smallest volumes would not be too long
            sizes = [chance.choice((1, 2, 3, 5, 8, 9, 16, 17, 31, 32)) for _ in range(group.dimension)]
            if deep:
                sizes = [chance.choice((1, 2, 3, 5)) for _ in sizes]
            elif large:
                sizes[chance.randrange(group.dimension)] = chance.randrange(60, 400)
            if usual and not volume and not deep:
                sizes[1] = -(-sizes[1] // 16) * 16  # rows fill vectors of any width
            few, many = (1, 2, 3, 5, 8, 13), (1, 3, 4, 6, 9, 25, 40)
            channels = [chance.choice(few[:4] if volume else few if large else many) for _ in range(2)]
            counts = [chance.choice((1, 1, 2) if volume else (1, 1, 2, 3, 7, 40)), *channels]
            if deep:  # of more channels than pixels, as the last stages of networks
                counts[1] = chance.choice((96, 130))
                counts[2] = chance.choice((counts[2], 190))
            if chance.random() < 0.1:
                counts[chance.randrange(3)] = 0
            kernel, stride, padding, dilation = (
                (*(a,) * (group.dimension - 1), chance.choice((a, a, b)))
                for a, b in (chance.choices(known, k=2) for known in (USUAL if usual else GEOMETRIES))
            )
            try:
                spec = ConvSpec.parse(group, "dense", kernel, stride, padding, dilation)
                spec.check_size(1, *sizes)
            except ArgumentError:
                continue
            if math.prod((*spec.output_size(*sizes), *kernel, *counts)) * group.order**2 < MULTIPLICATIONS:
                dtype = chance.choice((torch.float32, torch.bfloat16, torch.float32 if usual else torch.float64))
                kind = chance.choice(("dense", "g", "gc"))
                bias, norm, residual, batch_stats = (chance.random() < 0.5 for _ in range(4))
                batch, inputs, outputs = counts
                size, threads, affine = tuple(sizes), chance.choice((1, 2)), chance.random() < 0.8
                options = kind, bias, norm, threads, residual, norm and batch_stats, affine
                return cls(spec, batch, inputs, outputs, size, dtype, *options)

    def check(self) -> float:
        """Compute outputs and gradients by the kernels and return their error against the definition in float64.

        The error is relative to the largest value of each tensor, that of a norm's gradients to the larger of the two,
        and is divided by the tolerance of the tensor's dtype.

        Raises:
            AssertionError: results that must be the same bit by bit differ: with expanded filters, or with some of the
                gradients.
        """
        torch.set_num_threads(self.threads)
        inputs, conv = self.draw_inputs(), native_conv(self.spec)
        x = inputs.x
        y, *stats = conv.forward(inputs, EPS, return_stats=True)
        grad, other_grad = torch.randn(y.shape).to(y), torch.randn(x.shape).to(x) if self.residual else None
        gradients = conv.backward(grad, inputs, EPS, self.batch_stats, other_grad)
        expected = self._defined(inputs, grad, other_grad)
        errors = [_error(_join_norm((y, *gradients)), _join_norm(expected))]
        errors += [self._stats_error(y, stats), self._transposed_error(conv, inputs, grad)]
        self._check_same_bits(conv, inputs, grad, other_grad, (y, *stats), gradients)
        if x.numel() and self.spec.dimension == 2:
            errors += [self._statistics_error(x.flatten(0, 1)), self._pooling_error(x.flatten(0, 1))]
            errors += [self._clamping_error(x.flatten(0, 1)), self._maximum_error(x.flatten(0, 1))]
        errors += map(self._direct_error, self.direct)
        return math.nan if any(map(math.isnan, errors)) else max(errors)

    @property
    def direct(self) -> list[ConvSpec]:
        """The direct convolutions of such images: lifting ones, and those of some blocks of channels."""
        blocks = 1 + (self.inputs + self.outputs) % 3
        lifting = replace(self.spec, kind="lifting", groups=blocks)
        return [lifting] if blocks == 1 else [lifting, replace(self.spec, groups=blocks)]

    def _check_same_bits(
        self,
        conv: NativeConv,
        inputs: ConvInputs,
        grad: Tensor,
        other_grad: Tensor | None,
        outputs: Sequence[Tensor | None],
        gradients: Sequence[Tensor | None],
    ) -> None:
        """Compare with expanded filters, saved products, and gradients of x and the norm or of the filters alone."""
        copies = [None if t is None else t.clone() for t in inputs]
        if inputs.weight.numel() and inputs.x.numel():
            expanded = conv.expand_filters(tuple(inputs.x.shape), inputs.weight, inputs.depthwise)
            again = conv.forward(inputs, EPS, return_stats=True, expanded=expanded)
            assert all(map(_same, again, outputs)), "expanded filters"
        dx, dweight, ddepthwise, dgamma, dbeta = gradients
        backward = (grad, inputs, EPS, self.batch_stats, other_grad)
        of_x = conv.backward(*backward, wants_filters=False)
        assert all(map(_same, of_x, (dx, None, None, dgamma, dbeta))), "gradients without the filters'"
        of_filters = conv.backward(*backward, wants_x=False)
        assert all(map(_same, of_filters, (None, dweight, ddepthwise, None, None))), "gradients of the filters alone"
        if (products := conv.new_products(inputs)) is not None:
            assert products.numel() <= inputs.weight.numel(), "more products than the filter has values"
            again = conv.forward(inputs, EPS, return_stats=True, products=products.fill_(math.nan))
            assert all(map(_same, again, outputs)), "products are saved"
            assert all(map(_same, conv.backward(*backward, products=products), gradients)), "saved products"
        assert all(map(_same, inputs, copies)), "the inputs are written"

    def _defined(self, inputs: ConvInputs, grad: Tensor, other_grad: Tensor | None) -> list[Tensor | None]:
        """Return the output, and the gradients of x, weight, depthwise, gamma and beta."""
        x, weight, depthwise, bias, gamma, beta, mean, var, residual = (
            None if t is None else t.double().numpy() for t in inputs
        )
        assert x is not None
        assert weight is not None
        by_channel = (slice(None), *(None,) * self.spec.dimension)
        axes = tuple(range(3, x.ndim))
        normalized = scale = read = x
        if mean is not None and var is not None:
            normalized = (x - mean[by_channel]) / np.sqrt(var + EPS)[by_channel]
            scale = np.ones_like(mean) if gamma is None else gamma
            read = np.maximum(normalized * scale[by_channel] + (0 if beta is None else beta[by_channel]), 0)
        kernel = weight if depthwise is None else weight * depthwise
        definition = Definition(read, kernel, self.spec)
        y = definition.forward() + (0 if bias is None else bias[by_channel]) + (0 if residual is None else residual)
        dx, dkernel = definition.gradients(grad.double().numpy())
        dweight, ddepthwise, dgamma, dbeta = dkernel, None, None, None
        if depthwise is not None:
            dweight = (dkernel * depthwise).sum(axes, keepdims=True)
            ddepthwise = (dkernel * weight).sum((2,) if self.kind == "g" else (1, 2), keepdims=True)
        if mean is not None and var is not None:
            dx = dx * (read > 0)
            dgamma, dbeta = (dx * normalized).sum((0, 1, *axes)), dx.sum((0, 1, *axes))
            factor = scale / np.sqrt(var + EPS)
            if self.batch_stats and x.size:  # as if mean and var were those of x
                count = x.size // x.shape[2]
                dx = dx - (dbeta[by_channel] + normalized * dgamma[by_channel]) / count
            dx = dx * factor[by_channel]
        dx = dx if other_grad is None else dx + other_grad.double().numpy()
        found = (y, dx, dweight, ddepthwise, None if gamma is None else dgamma, None if beta is None else dbeta)
        return [None if a is None else torch.from_numpy(np.ascontiguousarray(a)) for a in found]

    def _stats_error(self, y: Tensor, stats: Sequence[Tensor | None]) -> float:
        if None in stats:
            return 0.0 if y.numel() == 0 or self.inputs == 0 or 0 in self.size or self.batch == 0 else math.nan
        values = y.double().movedim(2, 0).flatten(1)
        return _error(stats, (values.mean(1), values.var(1, correction=0)))

    def _transposed_error(self, conv: NativeConv, inputs: ConvInputs, x: Tensor) -> float:
        """Return the error of the transposed convolution of x, which has the shape of the convolution's output."""
        bias = self._drawn(self.inputs) if self.bias else None
        y = conv.transpose(x, inputs.weight, inputs.depthwise, bias, self.size)
        kernel = inputs.weight if inputs.depthwise is None else inputs.weight.double() * inputs.depthwise
        definition = Definition(np.zeros(inputs.x.shape), kernel.double().numpy(), self.spec)
        expected = torch.from_numpy(definition.gradients(x.double().numpy())[0])
        return _error([y], [expected if bias is None else expected + bias.view(-1, *(1,) * self.spec.dimension)])

    def _statistics_error(self, x: Tensor) -> float:
        expected = x.double().movedim(1, 0).flatten(1)
        return _error(batch_statistics(x), [expected.mean(1), expected.var(1, correction=0)])

    def _pooling_error(self, x: Tensor) -> float:
        if min(x.shape[-2:]) < 2:  # no window
            return 0.0
        gamma, beta = (self._drawn(self.inputs, digits=True) if self.affine else None for _ in range(2))
        mean, var = self._drawn_stats()
        leaves = [t for t in (x, gamma, beta) if t is not None]
        for leaf in leaves:
            leaf.requires_grad_()
        y = norm_relu_max_pool(x, BatchNormReLU(mean, var, gamma, beta, EPS, self.batch_stats))
        grad = torch.randn(y.shape).to(y)
        found = torch.autograd.grad(y, leaves, grad, retain_graph=True)
        for leaf, gradient in zip(leaves, found, strict=True):  # alone
            (alone,) = torch.autograd.grad(y, leaf, grad, retain_graph=True)
            assert torch.equal(alone, gradient), "gradients of pooling, one by one"
        given = [None if t is None else t.detach().double().numpy() for t in (x, gamma, beta, mean, var, grad)]
        expected = [torch.from_numpy(a) for a in _pooled(*given, batch_stats=self.batch_stats)]  # type: ignore[arg-type]
        error = _error([y.detach(), *found], expected[: 1 + len(found)])
        x.requires_grad_(False)
        return error

    def _maximum_error(self, x: Tensor) -> float:
        """Return the error of max-pooling with its gradient, of windows that depend on the problem."""
        kernel, stride = (1 + self.outputs % 4, 2 + self.outputs % 2), (1 + self.batch % 3, 1 + self.inputs % 3)
        window = (kernel, stride, (kernel[0] // 2, kernel[1] // 2 * (self.batch % 2)))
        if not supports_max_pool(x, window):  # no window
            return 0.0
        leaf = x.clone().requires_grad_()
        y = max_pool(leaf, window)
        grad = torch.randn(y.shape).to(y)
        (found,) = torch.autograd.grad(y, leaf, grad)
        expected = _maxima(x.double().numpy(), *window, grad.double().numpy())
        return _error([y.detach(), found], [torch.from_numpy(a) for a in expected])

    def _clamping_error(self, x: Tensor) -> float:
        """Return the error of a norm with or without a residual and bounds."""
        gamma, beta = (self._drawn(self.inputs, digits=True) if self.affine else None for _ in range(2))
        mean, var = self._drawn_stats()
        residual = self._maps(*x.shape) if self.residual else None
        bounds = [(-math.inf, math.inf), (0.0, math.inf), (0.0, 1.0)][self.outputs % 3]
        leaves = [t for t in (x, gamma, beta, residual) if t is not None]
        for leaf in leaves:
            leaf.requires_grad_()
        y = norm_clamp(x, BatchNormReLU(mean, var, gamma, beta, EPS, self.batch_stats), residual, *bounds)
        given = [None if t is None else t.detach().double().numpy() for t in (x, gamma, beta, mean, var)]
        normed, gradients = _normed(*given, batch_stats=self.batch_stats)  # type: ignore[arg-type]
        total = normed if residual is None else normed + residual.detach().double().numpy()
        margin = TOLERANCES[self.dtype]
        clear = np.all([np.abs(total - bound) > margin for bound in bounds], axis=0)  # elsewhere rounding decides
        grad = (torch.randn(y.shape) * torch.from_numpy(clear)).to(y)
        found = torch.autograd.grad(y, leaves, grad)
        x.requires_grad_(False)
        of_total = grad.double().numpy() * ((total > bounds[0]) & (total < bounds[1]))
        expected = [total.clip(*bounds), *gradients(of_total)[: 1 if gamma is None else 3]]
        expected += [] if residual is None else [of_total]
        return _error([y.detach(), *found], map(torch.from_numpy, expected))

    def _direct_error(self, spec: ConvSpec) -> float:
        """Return the error of a lifting convolution, or one in blocks: of each, up to two channels to up to three."""
        drawn, blocks, separable = self._drawn, spec.groups, spec.kind != "lifting" and self.kind == "gc"
        order = 1 if spec.kind == "lifting" else spec.group.order
        inputs, outputs = min(self.inputs, 2), blocks * min(self.outputs, 3)
        one = (1,) * spec.dimension
        x = self._maps(self.batch, order, blocks * inputs, *self.size)
        weight = drawn(outputs, inputs, order, *(one if separable else spec.kernel_size))
        depthwise = drawn(outputs, 1, 1, *spec.kernel_size) if separable else None
        bias, conv = drawn(outputs) if self.bias else None, native_conv(spec)
        given = ConvInputs(x, weight, depthwise, bias)
        y, *stats = conv.forward(given, return_stats=True)
        grad, wants_x = torch.randn(y.shape).to(y), order == spec.group.order and spec.kind != "lifting"
        found = conv.backward_directly(grad, given, wants_x)
        if wants_x:
            dx, *of_filters = found
            assert all(map(_same, conv.backward_directly(grad, given, True, False), (dx, None, None, None)))
            assert all(map(_same, conv.backward_directly(grad, given, False), (None, *of_filters)))
        kernel = (weight if depthwise is None else weight * depthwise).double().numpy()
        parts = zip(*(np.split(a, blocks, axis) for a, axis in ((x.double().numpy(), 2), (kernel, 0))), strict=True)
        definitions = [Definition(*part, spec) for part in parts]
        expected = torch.from_numpy(np.concatenate([part.forward() for part in definitions], 2))
        expected = expected if bias is None else expected + bias.double().view(-1, *one)
        grads = np.split(grad.double().numpy(), blocks, 2)
        of_parts = [part.gradients(of_part) for part, of_part in zip(definitions, grads, strict=True)]
        dxs, dkernels = zip(*of_parts, strict=True)
        dx, dkernel = torch.from_numpy(np.concatenate(dxs, 2)), torch.from_numpy(np.concatenate(dkernels, 0))
        dweight, ddepthwise, axes = dkernel, None, tuple(range(3, dkernel.ndim))
        if depthwise is not None:
            dweight = (dkernel * depthwise).sum(axes, keepdim=True)
            ddepthwise = (dkernel * weight).sum((1, 2), keepdim=True)
        exact = (
            expected,
            dx if wants_x else None,
            dweight,
            ddepthwise,
            None if is_gathered(spec, inputs) else grad.double().transpose(0, 2).flatten(1).sum(1),
        )
        return max(_error([y, *found], exact), self._stats_error(y, stats))

    def _drawn(self, *shape: int, digits: bool = False) -> Tensor:
        values = torch.randn(shape)
        return ((values * 8).round() / 8 if digits else values).to(parameter_dtype(self.dtype))

    def _maps(self, *shape: int, digits: bool = False) -> Tensor:
        return self._drawn(*shape, digits=digits).to(self.dtype)

    def _drawn_stats(self) -> tuple[Tensor, Tensor]:
        """Draw mean and variance of a norm, with a standard deviation of 1/2, 1 or 2."""
        deviation = 2.0 ** torch.randint(-1, 2, (self.inputs,))
        return self._drawn(self.inputs, digits=True), (deviation**2 - EPS).to(parameter_dtype(self.dtype))

    def draw_inputs(self) -> ConvInputs:
        """Draw them; x and the norm of few digits, so that no rounding moves a value across zero."""
        drawn = self._drawn
        order, kernel = self.spec.group.order, self.spec.kernel_size
        x = self._maps(self.batch, order, self.inputs, *self.size, digits=True)
        weight = drawn(self.outputs, self.inputs, order, *(kernel if self.kind == "dense" else (1,) * len(kernel)))
        inputs = {"g": self.inputs, "gc": 1}.get(self.kind)
        depthwise = None if inputs is None else drawn(self.outputs, inputs, 1, *kernel)
        bias = drawn(self.outputs) if self.bias else None
        shape = (self.batch, order, self.outputs, *self.spec.output_size(*self.size))
        residual = self._maps(*shape) if self.residual else None
        if not self.norm:
            return ConvInputs(x, weight, depthwise, bias, residual=residual)
        gamma, beta = (drawn(self.inputs, digits=True) if self.affine else None for _ in range(2))
        return ConvInputs(x, weight, depthwise, bias, gamma, beta, *self._drawn_stats(), residual)


def _pooled(
    x: Array, gamma: Array | None, beta: Array | None, mean: Array, var: Array, grad: Array, batch_stats: bool
) -> tuple[Array, ...]:
    """Return ``max(relu(norm(x)))`` over 2×2 pixels, and the gradients of x (N, C, Y, X), gamma and beta."""
    values, gradients = _normed(x, gamma, beta, mean, var, batch_stats)
    rows, columns = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    pixels = np.stack([values[..., r:rows:2, c:columns:2] for r in range(2) for c in range(2)])
    largest = pixels.argmax(0)  # the first one, as in the kernels
    y = np.maximum(pixels.max(0), 0)
    dvalues = np.zeros_like(x)
    for k in range(4):
        dvalues[..., k // 2 : rows : 2, k % 2 : columns : 2] = grad * ((largest == k) & (y > 0))
    return y, *gradients(dvalues)


def _maxima(x: Array, kernel: Any, stride: Any, padding: Any, grad: Array) -> tuple[Array, Array]:
    """Return the maxima of windows of x (N, C, Y, X), and the gradient of x, which the first maximum takes."""
    edges = [(0, 0), (0, 0), *((pixels, pixels) for pixels in padding)]
    padded = np.pad(x, edges, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, (2, 3))[:, :, :: stride[0], :: stride[1]]
    first = windows.reshape(*windows.shape[:4], -1).argmax(-1)
    dpadded = np.zeros_like(padded)
    n, c, row, column = np.indices(first.shape)
    place = (n, c, row * stride[0] + first // kernel[1], column * stride[1] + first % kernel[1])
    np.add.at(dpadded, place, grad)
    inside = [slice(pixels, pixels + n) for pixels, n in zip(padding, x.shape[2:], strict=True)]
    return windows.max((-1, -2)), dpadded[(..., *inside)]


def _normed(
    x: Array, gamma: Array | None, beta: Array | None, mean: Array, var: Array, batch_stats: bool
) -> tuple[Array, Callable[[Array], tuple[Array, ...]]]:
    """Return ``norm(x)``, and the function from its gradient to those of x (N, C, Y, X), gamma and beta."""
    by_channel = (slice(None), None, None)
    deviation = np.sqrt(var + EPS)[by_channel]
    normalized = (x - mean[by_channel]) / deviation
    scale = 1 if gamma is None else gamma[by_channel]

    def gradients(of_values: Array) -> tuple[Array, ...]:
        dgamma, dbeta = (of_values * normalized).sum((0, 2, 3)), of_values.sum((0, 2, 3))
        if batch_stats:  # as if mean and var were those of x
            of_values = of_values - (dbeta[by_channel] + normalized * dgamma[by_channel]) / (x.size // x.shape[1])
        return of_values * scale / deviation, dgamma, dbeta

    return normalized * scale + (0 if beta is None else beta[by_channel]), gradients


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether both are missing, or the same bit by bit."""
    return a is b if a is None or b is None else a.dtype == b.dtype and torch.equal(a, b)


def _join_norm(found: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Join the gradients of gamma and beta: sums of as many terms, either of which may cancel to next to nothing."""
    *others, dgamma, dbeta = found
    return [*others, None if dgamma is None or dbeta is None else torch.stack((dgamma, dbeta))]


def _error(found: Iterable[Tensor | None], expected: Iterable[Tensor | None]) -> float:
    errors = [0.0]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert ours.shape == theirs.shape
            if ours.numel():
                error = (ours.double() - theirs).abs().max().item() / max(1.0, theirs.abs().max().item())
                errors.append(error / TOLERANCES[ours.dtype])
    return max(errors) if not any(map(math.isnan, errors)) else math.nan


def check(problems: int, seed: int = 0) -> Counter[str]:
    """Check random problems, and count what they were.

    Raises:
        AssertionError: a result is not that of the definition.
    """
    chance, counts = random.Random(seed), Counter[str]()
    torch.manual_seed(seed)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # then memory that torch allocates is filled with NaN
    try:
        for _ in range(problems):
            problem = Problem.draw(chance)
            error = problem.check()
            assert error < 1, (error, problem)
            counts[problem.kind] += 1
            counts[f"stride {problem.spec.stride}"] += 1
            counts[f"on {problem.spec.group.name}"] += 1
            counts[str(problem.dtype)] += 1
            counts[f"{problem.threads} threads"] += 1
            counts["with norm"] += problem.norm
            counts["with a norm's batch statistics"] += problem.batch_stats
            counts["with residual"] += problem.residual
            counts["in blocks"] += len(problem.direct) > 1
            counts["empty"] += 0 in (problem.batch, problem.inputs, problem.outputs)
            counts["of a pixel"] += set(problem.size) == {1}
            counts[f"in {problem.spec.dimension}-D"] += 1
            counts["gc of long rows"] += problem.is_fused
            counts["of packed columns"] += problem.is_packed
            counts["divided by outputs"] += problem.is_by_outputs
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.native", description=__doc__)
    parser.add_argument("--problems", type=int, default=400, help="how many, for each build (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the problems (%(default)s)")
    parser.add_argument(
        "--library", type=Path, metavar="FOLDER",
        help="check the _baseline.so in this folder as it is: of another compiler or machine",
    )  # fmt: skip
    options = parser.parse_args()
    if options.library is None:
        sys.exit(_watch(sys.argv[1:]))
    library.FOLDER = options.library
    assert library.kernels(), library.kernels().summary
    start = time.monotonic()
    counts = check(options.problems, options.seed)
    print(f"{options.problems} problems clean, {time.monotonic() - start:.0f} s: ", end="")
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))


def _watch(arguments: list[str]) -> int:
    """Compile each build, and run this program again with it and the sanitizers; return the first exit code not 0."""
    preloaded = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")  # which the sanitizer looks into as it starts
    ]
    leaks_of_python = "detect_leaks=0"
    environment = os.environ | {"LD_PRELOAD": ":".join(preloaded), "ASAN_OPTIONS": leaks_of_python}
    for name, flags in BUILDS.items():
        if name in set(library.VARIANTS) - set(library.variants()):
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "_baseline.so")
            subprocess.run([*COMPILE, *flags, str(SOURCE), "-o", str(path)], check=True)
            print(f"{name}: ", end="", flush=True)
            command = [sys.executable, "-m", "tests.stress.native", *arguments, "--library", folder]
            if code := subprocess.run(command, env=environment, check=False).returncode:
                return code
    return 0


if __name__ == "__main__":
    main()
