"""Hold the compiled kernels to the definition over random problems, every access of theirs watched by sanitizers.

    python -m tests.stress.native --problems 400

The kernels are compiled with AddressSanitizer and UndefinedBehaviorSanitizer (gcc), for each instruction set and
once without OpenMP, and called through the same checks as ever. Inputs, outputs and work space are buffers of exactly
the values that the kernels are told, filled with NaN where nothing has been written: an access outside of one ends the
process, a value that is read before it is written spoils the result.
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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sepgroupy.errors import ArgumentError
from sepgroupy.functional._affine import Affine
from sepgroupy.functional._geometry import Geometry
from sepgroupy.functional._native import _call, _library, _maps
from sepgroupy.functional._native._operator import Inputs, _definition
from sepgroupy.groups import C1, C2, C4, D1, D2, D4, PointGroup

SOURCE = Path(_library.__file__).with_name("kernels.c")
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover"]
COMPILE = ["gcc", "-std=gnu11", "-O1", "-g", "-fPIC", "-shared", "-Wno-psabi", "-fno-math-errno", *SANITIZERS]
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
GEOMETRIES = (
    (1, 2, 3, 3, 3, 4, 5, 6, 7),
    (1, 1, 2, 3),
    (0, 0, 1, 1, 2, 3, 9),
    (1, 1, 1, 2),
)  # kernel, stride, padding, dilation
USUAL = ((1, 3, 3, 5), (1,), (0, 1, 1, 2), (1,))
MULTIPLICATIONS = 3e7  # of the largest problem


@dataclass(frozen=True)
class Problem:
    """A convolution and the sizes of its tensors."""

    group: PointGroup
    geometry: Geometry
    batch: int
    inputs: int
    outputs: int
    size: tuple[int, int]
    dtype: torch.dtype
    kind: str
    bias: bool
    norm: bool
    threads: int
    shortcut: bool = False
    own: bool = False  # whether the norm's statistics are those of x

    @property
    def is_fused(self) -> bool:
        """Whether the kernels keep products and transform in registers, where vectors are of 64 bytes."""
        usual = self.group == D4 and self.kind == "gc" and self.dtype is torch.float32
        return usual and self.geometry.stride == (1, 1) and self.size[1] % 16 == 0

    @classmethod
    def draw(cls, chance: random.Random) -> Problem:
        """Draw a problem that is not too long; one in ten is empty, and images are tiny, wide, tall or large.

        One in five is of what networks are made of, for which the kernels have ways of their own.
        """
        usual = chance.random() < 0.2
        while True:
            group, large = D4 if usual else chance.choice(GROUPS), chance.random() < 0.2
            sizes = [chance.choice((1, 2, 3, 5, 8, 9, 16, 17, 31, 32)) for _ in range(2)]
            if large:
                sizes[chance.randrange(2)] = chance.randrange(60, 400)
            if usual:
                sizes[1] = -(-sizes[1] // 16) * 16  # rows fill vectors of any width
            channels = [chance.choice((1, 2, 3, 5, 8, 13) if large else (1, 3, 4, 6, 9, 25, 40)) for _ in range(2)]
            counts = [chance.choice((1, 1, 2, 3, 7, 40)), *channels]
            if chance.random() < 0.1:
                counts[chance.randrange(3)] = 0
            kernel, stride, padding, dilation = (
                (a, chance.choice((a, a, b)))
                for a, b in (chance.choices(known, k=2) for known in (USUAL if usual else GEOMETRIES))
            )
            try:
                geometry = Geometry.parse(group, kernel, stride, padding, dilation)
                geometry.check_size(1, *sizes)
            except ArgumentError:
                continue
            rows, columns = geometry.output_size(*sizes)
            if math.prod((rows, columns, *kernel, *counts)) * group.order**2 < MULTIPLICATIONS:
                dtype = chance.choice((torch.float32, torch.float32 if usual else torch.float64))
                kind = chance.choice(("dense", "g", "gc"))
                bias, norm, shortcut, own = (chance.random() < 0.5 for _ in range(4))
                batch, inputs, outputs = counts
                size, threads = (sizes[0], sizes[1]), chance.choice((1, 2))
                options = kind, bias, norm, threads, shortcut, norm and own
                return cls(group, geometry, batch, inputs, outputs, size, dtype, *options)

    def check(self) -> float:
        """Compute outputs and gradients by the kernels and return how far they are from the definition in float64.

        The error is relative to the largest value of each tensor, that of a norm's gradients to the larger of the two.
        """
        torch.set_num_threads(self.threads)
        inputs, call = self._inputs(), _call.Call(self.group, self.geometry)
        x = inputs.x
        y, *moments = call.forward(inputs, moments=True)
        grad, more = torch.randn(y.shape).to(y), torch.randn(x.shape).to(x) if self.shortcut else None
        gradients = call.backward(grad, inputs, batch=self.own, more=more)
        dx = gradients[0]
        assert dx is not None
        errors = [_error(_join_norm((y, *gradients)), _join_norm(self._defined(inputs, grad, more, call)))]
        errors.append(self._moments_error(y, moments))
        if x.numel():
            errors += [self._statistics_error(x.flatten(0, 1)), self._pooling_error(x.flatten(0, 1))]
        if _call.lifts(self.group, self.geometry, self.inputs):
            errors.append(self._lifting_error(x[:, :1].contiguous()))
        return math.nan if any(map(math.isnan, errors)) else max(errors)

    def _defined(self, inputs: Inputs, grad: Tensor, more: Tensor | None, call: _call.Call) -> list[Tensor | None]:
        """Return the output, and the gradients of x, weight, depthwise, gamma and beta."""
        copies = [None if t is None else t.double().clone() for t in inputs]
        exact = Inputs(*copies)  # type: ignore[arg-type]
        x, weight, depthwise, bias, gamma, beta, *_ = exact
        wanted = [t for t in (x, weight, depthwise, gamma, beta) if t is not None]
        for leaf in wanted:
            leaf.requires_grad_()
        if x.numel() and grad.numel():
            y = _definition(exact, 0.0, False, call)
            gradients = iter(torch.autograd.grad(y, wanted, grad.double()))
        else:  # torch has no convolution of these
            y = torch.zeros(grad.shape) if bias is None else bias.view(-1, 1, 1).expand(grad.shape)
            y = y if exact.shortcut is None else y + exact.shortcut
            gradients = map(torch.zeros_like, wanted)
        found = [None if t is None else next(gradients) for t in (x, weight, depthwise, gamma, beta)]
        dx, *_, dgamma, dbeta = found
        assert dx is not None
        if self.own and dgamma is not None and dbeta is not None and gamma is not None and x.numel() and grad.numel():
            count = x.numel() // x.shape[2]  # mean 0 and variance 1 stand for the statistics of x
            factors = -gamma.detach() / count
            dx = dx + (factors * dbeta).view(-1, 1, 1) + (factors * dgamma).view(-1, 1, 1) * x.detach()
        return [y.detach(), dx if more is None else dx + more, *found[1:]]

    def _moments_error(self, y: Tensor, moments: list[Tensor | None]) -> float:
        if None in moments:
            return 0.0 if y.numel() == 0 or self.inputs == 0 or 0 in self.size or self.batch == 0 else math.nan
        values = y.double().movedim(2, 0).flatten(1)
        return _error(moments, (values.mean(1), values.var(1, correction=0)))

    def _statistics_error(self, x: Tensor) -> float:
        expected = x.double().movedim(1, 0).flatten(1)
        return _error(_maps.statistics(x), [expected.mean(1), expected.var(1, correction=0)])

    def _pooling_error(self, x: Tensor) -> float:
        if min(x.shape[-2:]) < 2:  # no window
            return 0.0
        exact, gamma, beta = x.double(), self._drawn(self.inputs, digits=True), self._drawn(self.inputs, digits=True)
        leaves, exact_leaves = [x, gamma, beta], [exact, gamma.double(), beta.double()]
        for leaf in leaves + exact_leaves:
            leaf.requires_grad_()
        mean, var = torch.zeros_like(gamma.detach()), torch.ones_like(gamma.detach())
        y = _maps.NormReluPool.apply(*leaves, mean, var, 0.0, False)
        norm = Affine(mean.double(), var.double(), *exact_leaves[1:], 0.0, False)
        expected = F.max_pool2d(norm.relu(exact), 2)
        grad = torch.randn(y.shape).to(y)
        found = torch.autograd.grad(y, leaves, grad)
        error = _error([y, *found], [expected, *torch.autograd.grad(expected, exact_leaves, grad.double())])
        x.requires_grad_(False)
        return error

    def _lifting_error(self, x: Tensor) -> float:
        call = _call.Call(self.group, self.geometry, lifting=True)
        weight = self._drawn(self.outputs, self.inputs, 1, *self.geometry.kernel_size)
        bias = self._drawn(self.outputs) if self.bias else None
        y, *moments = call.forward(Inputs(x, weight, bias=bias), moments=True)
        grad = torch.randn(y.shape).to(y)
        found = call.backward_of_lifting(grad, x, weight)
        if not (x.numel() and grad.numel()):
            return _error(found, [torch.zeros_like(weight), torch.zeros(self.outputs)])
        leaves = [weight.double().requires_grad_(), (torch.zeros_like(weight[:, 0, 0, 0, 0]) if bias is None else bias)]
        leaves[1] = leaves[1].double().requires_grad_()
        expected = _definition(Inputs(x.double(), leaves[0], bias=leaves[1]), 0.0, False, call)
        error = _error([y, *found], [expected, *torch.autograd.grad(expected, leaves, grad.double())])
        return max(error, self._moments_error(y, moments))

    def _drawn(self, *shape: int, digits: bool = False) -> Tensor:
        values = torch.randn(shape)
        return ((values * 8).round() / 8 if digits else values).to(self.dtype)

    def _inputs(self) -> Inputs:
        """Draw them; x and the norm of few digits, so that no rounding moves a value across zero."""
        drawn = self._drawn
        order, kernel = self.group.order, self.geometry.kernel_size
        x = drawn(self.batch, order, self.inputs, *self.size, digits=True)
        weight = drawn(self.outputs, self.inputs, order, *(kernel if self.kind == "dense" else (1, 1)))
        inputs = {"g": self.inputs, "gc": 1}.get(self.kind)
        depthwise = None if inputs is None else drawn(self.outputs, inputs, 1, *kernel)
        bias = drawn(self.outputs) if self.bias else None
        shape = (self.batch, order, self.outputs, *self.geometry.output_size(*self.size))
        shortcut = drawn(*shape) if self.shortcut else None
        if not self.norm:
            return Inputs(x, weight, depthwise, bias, shortcut=shortcut)
        scale, shift = drawn(self.inputs, digits=True), drawn(self.inputs, digits=True)
        mean, var = torch.zeros_like(scale), torch.ones_like(scale)
        return Inputs(x, weight, depthwise, bias, scale, shift, mean, var, shortcut)


def _join_norm(found: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Join the gradients of gamma and beta: sums of as many terms, either of which may cancel to next to nothing."""
    *others, dgamma, dbeta = found
    return [*others, None if dgamma is None or dbeta is None else torch.stack((dgamma, dbeta))]


def _error(found: Iterable[Tensor | None], expected: Iterable[Tensor | None]) -> float:
    errors = [0.0]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None and ours.numel():
            assert ours.shape == theirs.shape
            errors.append((ours.double() - theirs).abs().max().item() / max(1.0, theirs.abs().max().item()))
    return max(errors) if not any(map(math.isnan, errors)) else math.nan


def check(problems: int, seed: int = 0) -> Counter[str]:
    """Check so many random problems, and count what they were.

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
            assert error < (1e-4 if problem.dtype is torch.float32 else 1e-11), (error, problem)
            counts[problem.kind] += 1
            counts[f"stride {problem.geometry.stride}"] += 1
            counts[f"on {problem.group.name}"] += 1
            counts[str(problem.dtype)] += 1
            counts[f"{problem.threads} threads"] += 1
            counts["with norm"] += problem.norm
            counts["with shortcut"] += problem.shortcut
            counts["lifted"] += _call.lifts(problem.group, problem.geometry, problem.inputs)
            counts["empty"] += 0 in (problem.batch, problem.inputs, problem.outputs)
            counts["of a pixel"] += problem.size == (1, 1)
            counts["gc of long rows"] += problem.is_fused
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
        help="hold the _baseline.so in this folder to the definition, as it is: of another compiler or machine",
    )  # fmt: skip
    options = parser.parse_args()
    if options.library is None:
        sys.exit(_watch(sys.argv[1:]))
    _library.FOLDER = options.library
    assert _library.kernels(), _library.kernels().summary
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
        if name in set(_library.VARIANTS) - set(_library.variants()):
            continue
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder, "_baseline.so")
            subprocess.run([*COMPILE, *flags, str(SOURCE), "-o", str(library)], check=True)
            print(f"{name}: ", end="", flush=True)
            command = [sys.executable, "-m", "tests.stress.native", *arguments, "--library", folder]
            if code := subprocess.run(command, env=environment, check=False).returncode:
                return code
    return 0


if __name__ == "__main__":
    main()
