"""An orbit of pictures on its way through a network, watched at every leaf module."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..groups import PointGroup
from ..nn import GroupConvolution
from ..testing import TOLERANCES
from ._readings import Orbit, Reading, read, stack_orbit

OUTPUT, INPUT = "output", " (input)"


@dataclass(frozen=True, eq=False)
class Step:
    """A tensor on its way: what a module returns, or gets from steps between modules."""

    name: str
    module: nn.Module | None
    """The module that returned it; None for what happens between modules."""
    reading: Reading
    errors: tuple[float, ...]
    """Of the identity and every other element; if the trace is corrected, those that this step introduces."""
    broken: bool
    before: Reading | None = None
    """How the step before was read."""
    inputs: tuple[Any, ...] = ()
    """What a broken module got."""


class Subject:
    """A network made ready to be audited: a copy in evaluation mode, watched by hooks.

    The copy's parameters and running statistics that are constant, such as the ones and zeros of a new norm, get
    small random numbers, for these would hide what training makes of them.
    """

    def __init__(self, model: nn.Module, group: PointGroup, shape: Sequence[int], dtype: torch.dtype, seed: int):
        if dtype not in TOLERANCES:
            raise ArgumentError(f"dtype (={dtype}) must be one of {', '.join(map(str, TOLERANCES))}")
        self.model = copy.deepcopy(model).to(dtype).eval()
        self.group, self.shape, self.dtype, self.seed = group, tuple(shape), dtype, seed
        fibers = _group_of_maps(model, group)
        self.orbit = Orbit(fibers, tuple(fibers.elements.index(element) for element in group.elements), 1)
        self.tolerance = TOLERANCES[dtype]
        self.names = {module: name for name, module in self.model.named_modules() if not [*module.children()]}
        self.device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        generator = torch.Generator().manual_seed(seed)
        norms = ("running_mean", "running_var")
        buffers = [b for name, b in self.model.named_buffers() if name.rpartition(".")[2] in norms]
        for values in [*(p.data for p in self.model.parameters() if p.requires_grad), *buffers]:
            if values.numel() > 1 and bool((values == values.flatten()[0]).all()):
                values += 0.2 * torch.rand(values.shape, generator=generator, dtype=torch.float64).to(values)

    def picture(self, shape: Sequence[int]) -> Tensor:
        """Return random numbers of a shape (C, Y, X) or (C, |H|, Y, X), a batch of one."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(1, *shape, generator=generator, dtype=torch.float64).to(self.device, self.dtype)

    def trace(self, shape: Sequence[int] | None = None, steps: Sequence[Step] | None = None) -> list[Step]:
        """Send the orbit of one picture through the network.

        Args:
            shape: of the picture, by default the subject's own.
            steps: if given, their readings are used and errors pile up from step to step. Otherwise each step is
                corrected after it has been measured, so that the next one starts from an exact input.

        Raises:
            ArgumentError: the network does not take such a picture, returns something else than tensors with the
                batch first, or went another way than before.
        """
        shape = self.shape if shape is None else tuple(shape)
        x = stack_orbit(self.picture(shape), self.orbit, fiber=len(shape) == 4)
        watch = _Watch(self.orbit, self.tolerance, steps)
        watch.last, watch.version = x, x._version
        with self.hooks(watch.before, watch.after):
            output = self(x)
        outputs = list(output.values()) if isinstance(output, Mapping) else output
        for tensor in outputs if isinstance(outputs, (list, tuple)) else [outputs]:
            if not isinstance(tensor, Tensor) or watch.see(OUTPUT, None, tensor) is None:
                found = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
                raise ArgumentError(f"model returns {found}; it must be a tensor, or some, with the batch first")
        self.tolerance = watch.tolerance
        return watch.steps

    def __call__(self, x: Tensor) -> Any:
        """Return what the network makes of x."""
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


class _Watch:
    def __init__(self, orbit: Orbit, tolerance: float, known: Sequence[Step] | None) -> None:
        self.orbit, self.tolerance, self.known = orbit, tolerance, known
        self.steps: list[Step] = []
        self.last: Tensor | None = None
        self.version = 0

    def before(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Look at the tensors that a module gets, unless it is what the module before it returned."""
        seen = [self.see(name + INPUT, None, a) if self._is_new(a) else a for a in args]
        return tuple(a if b is None else b for a, b in zip(args, seen, strict=True))

    def after(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Look at what a module returns."""
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        self.last = self.see(name, module, output, args)
        if self.last is None:
            return None
        self.version = self.last._version
        return self.last

    def see(self, name: str, module: nn.Module | None, y: Tensor, inputs: tuple[Any, ...] = ()) -> Tensor | None:
        """Add a step and return what the network is to go on with, None if the tensor cannot be read."""
        if not self.orbit.holds(y):
            return None
        if y.numel() == 0:
            raise ArgumentError(f"{name} is an empty map, {tuple(y.shape)}: input_size is too small")
        self.tolerance = max(self.tolerance, TOLERANCES.get(y.dtype, 0.0))  # some modules compute in float32
        before = self.steps[-1].reading if self.steps else None
        if self.known is None:
            reading, errors = read(y, self.orbit, self.tolerance, before, strict=module is None and name == OUTPUT)
        else:
            step = next(iter(self.known[len(self.steps) :]), None)
            if step is None or (step.name, prod(step.reading.sizes)) != (name, y.numel()):
                raise ArgumentError("model goes another way through its modules each time: it cannot be audited")
            reading, errors = step.reading, step.reading.errors(y, self.orbit)
        broken = max(errors) > self.tolerance
        self.steps.append(Step(name, module, reading, errors, broken, before, inputs if broken else ()))
        return reading.corrected(y, self.orbit) if broken and self.known is None else y

    def _is_new(self, x: Any) -> bool:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return False
        return x is not self.last or x._version != self.version


def _group_of_maps(model: nn.Module, group: PointGroup) -> PointGroup:
    """Return the group that the network's fibers run over: its own if the audited one lies in it."""
    own = [m.group for m in model.modules() if isinstance(m, GroupConvolution)]
    return next((g for g in own if group.is_subgroup_of(g)), group)
