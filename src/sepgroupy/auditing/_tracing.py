"""Send an orbit of images through a network and measure every leaf module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._nested import map_leaves
from .._plain_weights import copy_with_plain_weights
from ..errors import ArgumentError
from ..groups import PointGroup
from ..nn import GroupConvolution
from ..testing import TOLERANCES
from ._axis_layout import AxisLayout, Orbit, find_layout, split_orbit, stack_orbit

INPUT = " (input)"
"""Suffix of a module's name that means its input, where that is computed between modules."""


@dataclass(frozen=True)
class Resize:
    """A call of ``torch.nn.functional.interpolate``, by a module or between modules."""

    mode: str
    scale_factor: float | None
    """None if the size was given, or if the scale is computed from the sizes."""
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def is_symmetric(self) -> bool:
        """Whether a flip of the input flips the output, on both axes."""
        return all(self._is_symmetric(n, m) for n, m in zip(self.before, self.after, strict=True))

    def _is_symmetric(self, n: int, m: int) -> bool:
        if self.mode.startswith("nearest"):
            step = n / m if self.scale_factor is None else 1 / self.scale_factor
            offset = 0.5 if self.mode == "nearest-exact" else 0.0
            sources = [min(int((i + offset) * step), n - 1) for i in range(m)]
            return sources == [n - 1 - source for source in reversed(sources)]
        return self.mode == "area" or self.scale_factor is None or n * self.scale_factor == m


@dataclass(frozen=True, eq=False)
class Step:
    """A measured tensor: the output of a module or of the network, or an input computed between modules."""

    name: str
    module: nn.Module | None
    """The module that returned it; None for an output of the network and for steps between modules."""
    layout: AxisLayout
    errors: tuple[float, ...]
    """For every element, the identity first; in a corrected trace, the errors that this step adds."""
    broken: bool
    is_output: bool = False
    before: AxisLayout | None = None
    """The layout of the step before."""
    orbit: Orbit | None = None
    """The orbit, or the part of it, that went through the network."""
    inputs: tuple[Any, ...] = ()
    """The arguments of a broken module."""
    resizes: tuple[Resize, ...] = ()
    """The resizes since the step before."""


class Subject:
    """A network prepared for the audit: a copy in inference mode, observed by hooks.

    The copy's parameters and running statistics that are constant, such as the ones and zeros of a new batch norm,
    are replaced by small random numbers: constants would hide errors that appear after training.
    """

    def __init__(self, model: nn.Module, group: PointGroup, shape: Sequence[int], dtype: torch.dtype, seed: int):
        if dtype not in TOLERANCES:
            raise ArgumentError(f"dtype (={dtype}) must be one of {', '.join(map(str, TOLERANCES))}")
        self.model = copy_with_plain_weights(model).to(dtype).eval()
        self.group, self.shape, self.dtype, self.seed = group, tuple(shape), dtype, seed
        network_group = _group_of_feature_maps(model, group)
        elements = tuple(network_group.elements.index(element) for element in group.elements)
        self.orbit = Orbit(network_group, elements, 1)
        self.tolerance = TOLERANCES[dtype]
        self.names = {module: name for name, module in self.model.named_modules() if not [*module.children()]}
        self.device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        generator = torch.Generator().manual_seed(seed)
        statistics = ("running_mean", "running_var")
        buffers = [b for name, b in self.model.named_buffers() if name.rpartition(".")[2] in statistics]
        for values in [*(p.data for p in self.model.parameters() if p.requires_grad), *buffers]:
            if values.numel() > 1 and bool((values == values.flatten()[0]).all()):
                values += 0.2 * torch.rand(values.shape, generator=generator, dtype=torch.float64).to(values)

    def image(self, shape: Sequence[int]) -> Tensor:
        """Draw an image (C, Y, X), or volume, or a group feature map (C, |H|, Y, X), as a batch of one."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(1, *shape, generator=generator, dtype=torch.float64).to(self.device, self.dtype)

    def trace(self, shape: Sequence[int] | None = None, steps: Sequence[Step] | None = None) -> list[Step]:
        """Send the orbit of one image through the network.

        Args:
            shape: of the image, by default that of the subject.
            steps: if given, their layouts are used and errors accumulate from step to step. Otherwise each step is
                corrected after it has been measured, so that the next one starts from an exact input.

        Raises:
            ArgumentError: the network does not take such an image, returns anything but tensors with the
                batch first, or calls other modules than before.
        """
        shape = self.shape if shape is None else tuple(shape)
        orbits = split_orbit(self.orbit)
        parts = [self._trace_part(shape, orbits[0], steps, correct=steps is None)]
        for orbit in orbits[1:]:  # one after the other: all elements at once might not fit in memory
            parts.append(self._trace_part(shape, orbit, parts[0], correct=steps is None))
            if len(parts[-1]) != len(parts[0]):
                raise ArgumentError("model calls other modules each time: it cannot be audited")
        return [_merge_parts(self.orbit, orbits, found) for found in zip(*parts, strict=True)]

    def _trace_part(
        self, shape: tuple[int, ...], orbit: Orbit, known: Sequence[Step] | None, correct: bool
    ) -> list[Step]:
        x = stack_orbit(self.image(shape), orbit, group_axis=len(shape) == 2 + self.group.dimension)
        observer = _Observer(orbit, self.tolerance, known, correct)
        observer.last, observer.version = x, x._version
        with self.hooks(observer.before, observer.after), observer:
            output = self(x)
        observer.add_outputs(output)
        self.tolerance = observer.tolerance
        return observer.steps

    def __call__(self, x: Tensor) -> Any:
        """Return the network's output for x."""
        try:
            with torch.no_grad():
                return self.model(x)
        except Stop:
            raise
        except Exception as error:  # the user's code can raise anything
            raise ArgumentError(f"model does not take an input of shape {tuple(x.shape)}: {error}") from error

    @contextmanager
    def hooks(self, before: Any, after: Any = None) -> Iterator[None]:
        """Call ``before(name, module, args)`` and ``after(name, module, args, output)`` around every leaf module."""
        handles = []
        try:
            for module, name in self.names.items():
                handles.append(module.register_forward_pre_hook(lambda m, args, n=name: before(n, m, args)))
                if after is not None:
                    handles.append(module.register_forward_hook(lambda m, args, y, n=name: after(n, m, args, y)))
            yield
        finally:
            for handle in handles:
                handle.remove()


class Stop(Exception):  # noqa: N818
    """Raised in a hook to leave the network early."""


class _Observer(TorchFunctionMode):
    """Measures the tensors of one pass, and records the resizes between them."""

    def __init__(self, orbit: Orbit, tolerance: float, known: Sequence[Step] | None, correct: bool) -> None:
        super().__init__()
        self.orbit, self.tolerance, self.known, self.correct = orbit, tolerance, known, correct
        self.steps: list[Step] = []
        self.last: Tensor | None = None
        self.version = 0
        self.resizes: list[Resize] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.interpolate and isinstance(result, Tensor) and result.ndim == 2 + self.orbit.group.dimension:
            self.resizes.append(_resize(result, *args, **(kwargs or {})))
        return result

    def before(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Measure the arguments of a module, unless they are the output of the module before it."""
        seen = [self.add(name + INPUT, None, a) if self._is_new(a) else a for a in args]
        return tuple(a if b is None else b for a, b in zip(args, seen, strict=True))

    def after(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Measure the output of a module."""
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        self.last = self.add(name, module, output, args)
        if self.last is None:
            return None
        self.version = self.last._version
        return self.last

    def add_outputs(self, output: Any) -> None:
        """Measure every tensor that the network returns; numbers, None and strings are left out."""

        def add(name: str, leaf: Any) -> None:
            if leaf is None or isinstance(leaf, (bool, int, float, complex, str, bytes)):
                return
            if not isinstance(leaf, Tensor) or self.add(name, None, leaf, is_output=True) is None:
                found = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
                raise ArgumentError(f"model returns {found} as {name}; it must return tensors with the batch first")

        map_leaves(add, output, "output")
        if not any(step.is_output for step in self.steps):
            raise ArgumentError(f"model returns {type(output).__name__}; it must return tensors with the batch first")

    def add(
        self, name: str, module: nn.Module | None, y: Tensor, inputs: tuple[Any, ...] = (), is_output: bool = False
    ) -> Tensor | None:
        """Add a step and return the tensor to continue with, or None if the first axis is not a batch of the orbit."""
        if not self.orbit.is_batch_of(y):
            return None
        if y.numel() == 0:
            raise ArgumentError(f"{name} is an empty feature map, {tuple(y.shape)}: input_size is too small")
        if not y.is_floating_point():  # only an output, such as the classes of pixels
            y = y.double()
        self.tolerance = max(self.tolerance, TOLERANCES.get(y.dtype, 0.0))  # some modules compute in float32
        before = self.steps[-1].layout if self.steps else None
        if self.known is None:
            layout, errors = find_layout(y, self.orbit, self.tolerance, before, strict=is_output)
        else:
            step = next(iter(self.known[len(self.steps) :]), None)
            if step is None or (step.name, prod(step.layout.sizes)) != (name, y.numel()):
                raise ArgumentError("model calls other modules each time: it cannot be audited")
            layout, errors = step.layout, step.layout.errors(y, self.orbit)
        broken = max(errors) > self.tolerance
        resizes, self.resizes = tuple(self.resizes), []
        inputs = inputs if broken else ()
        self.steps.append(Step(name, module, layout, errors, broken, is_output, before, self.orbit, inputs, resizes))
        return layout.corrected(y, self.orbit) if broken and self.correct else y

    def _is_new(self, x: Any) -> bool:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return False
        return x is not self.last or x._version != self.version


def _merge_parts(orbit: Orbit, orbits: Sequence[Orbit], parts: Sequence[Step]) -> Step:
    """Return one step with the errors of all elements; other fields are those of the first broken part."""
    errors: dict[int, float] = {}
    for part, of in zip(parts, orbits, strict=True):
        errors |= zip(of.elements, part.errors, strict=True)
    worst = next((part for part in parts if part.broken), parts[0])
    return replace(worst, errors=tuple(errors[element] for element in orbit.elements))


def _resize(
    result: Tensor,
    input: Tensor,  # noqa: A002  # the names of torch's own arguments
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Resize:
    """Describe a call of ``F.interpolate``, whose arguments these are."""
    if isinstance(scale_factor, (tuple, list)):
        scale_factor = scale_factor[0]
    given = scale_factor if size is None and not recompute_scale_factor and not align_corners else None
    return Resize(mode, given, tuple(input.shape[2:]), tuple(result.shape[2:]))


def _group_of_feature_maps(model: nn.Module, group: PointGroup) -> PointGroup:
    """Return the group of the network's group axes: that of its layers if the audited group is a subgroup."""
    found = [m.group for m in model.modules() if isinstance(m, GroupConvolution)]
    return next((g for g in found if group.is_subgroup_of(g)), group)
