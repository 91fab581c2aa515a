"""Fuse a model, report the fused modules, and undo the fusion."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..backends import can_bypass_dispatcher
from ..backends.native.library import kernels
from ..backends.tracing import constant_to_dynamo, is_exporting, may_break_graph, name_for_tracing, traced_value
from ..errors import ArgumentError
from .program import Program
from .traceable import comparable, is_traceable, original_class, reads
from .tracing import is_bypassable, reason_to_call, recordable_modules, trace

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class FusionReport:
    """The result of :func:`fuse` for a model.

    Args:
        fused: names of modules; each tuple is computed by one kernel.
        not_fused: names of modules that are called without fusion, each with the reason.
    """

    fused: tuple[tuple[str, ...], ...]
    not_fused: dict[str, str]

    def __str__(self) -> str:
        title = f"{len(self.fused)} fused kernel{'s' if len(self.fused) != 1 else ''}"
        lines = [title, *("  " + " + ".join(names) for names in self.fused)]
        if self.not_fused:
            lines += ["called as they are", *(f"  {name}: {reason}" for name, reason in self.not_fused.items())]
        return "\n".join(lines)


def fuse(model: Model) -> Model:
    """Let one kernel compute several consecutive modules of a model, in training and inference.

    On a CPU, each of these then takes one pass over memory: batch norm -> ReLU -> group convolution -> + residual;
    batch norm -> + residual -> ReLU or ReLU6 after a group convolution; batch norm -> ReLU -> 2×2 max-pooling. Batch
    statistics are computed while a convolution writes its result. The model itself is returned: parameters, submodules
    and state dict are the same objects, and results are equal to rounding. In inference, batch norm after a group
    convolution is folded into its filters. This holds for the networks of
    :mod:`sepgroupy.models`, for every ``nn.Sequential``, and for any other network, or part of one, whose forward only
    calls submodules, functions of torch and methods of tensors, without side effects and without branches on tensors.

    Modules that are hooked (themselves or globally), patched, parametrized, wrapped or offloaded, now or later, are
    called without fusion. So is everything under ``torch.export``, function transforms and dispatch modes, and on
    devices other than CPUs. On a CPU ``torch.compile`` calls the model as it is, between two graphs, whether a kernel
    was found or not; with ``fullgraph=True`` it compiles the model without fusion.

    Args:
        model: any module.

    Returns:
        The model. :func:`restore` undoes the fusion, :func:`fusion_report` lists the fused modules.

    Raises:
        ArgumentError: the model is not a module.

    >>> import sepgroupy
    >>> net = sepgroupy.fuse(sepgroupy.build_model("gc-p4cnn"))
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model (={model!r:.80}) must be a torch.nn.Module")
    for module in _outermost(model):
        module.__class__ = _fused_class(original_class(module))
    return model


def restore(model: Model) -> Model:
    """Undo :func:`fuse`; return the model."""
    for module in model.modules():
        if isinstance(module, _Fused):
            module.__class__ = original_class(module)
            module.__dict__.pop("_fusion", None)
    return model


def fusion_report(model: nn.Module) -> FusionReport:
    """Return the modules of a model that are fused, and those that are not, in its present state."""
    fused: list[tuple[str, ...]] = []
    not_fused: dict[str, str] = {}
    for prefix, module in model.named_modules():
        if not isinstance(module, _Fused):
            continue
        dot = f"{prefix}." if prefix else ""
        fusion = _fusion_of(module)
        program = fusion.program()
        names = [step.names for step in program.fused] if program is not None else []
        fused += [tuple(dot + name for name in group) for group in names]
        known = {"", *(name for group in names for name in group)}
        for name, part in module.named_modules():
            if name in known or part not in fusion.watched:
                continue
            reason = reason_to_call(part)
            if reason is not None or is_bypassable(part):
                not_fused[dot + name] = reason or "no kernel for it together with its neighbours"
    fusible = {part for outermost in _outermost(model) for part in outermost.modules()}
    covered = {name for group in fused for name in group} | not_fused.keys()
    for name, part in model.named_modules():
        if name not in covered and is_bypassable(part):
            elsewhere = "called by a forward that cannot be recorded"
            not_fused[name] = "sepgroupy.fuse was not called" if part in fusible else elsewhere
    return FusionReport(tuple(fused), not_fused)


def _outermost(model: nn.Module) -> list[nn.Module]:
    """Return the outermost modules whose forward can be recorded and has something to fuse."""
    recordable = recordable_modules(model)

    def find(module: nn.Module) -> list[nn.Module]:
        if module in recordable or isinstance(module, _Fused):
            return [module]
        return [found for child in module.children() for found in find(child)]

    return [module for module in find(model) if any(map(is_bypassable, module.modules()))]


class _Fusion:
    """The programs of one model, one for each state of its modules so far."""

    def __init__(self, model: nn.Module) -> None:
        self.model = weakref.ref(model)
        self.modules = model._modules
        self.structure = _structure(model)
        self.programs: dict[Any, Program | None] = {}
        self.recordable = recordable_modules(model)
        self.watched = [m for m in model.modules() if m in self.recordable or is_bypassable(m)]
        self.reads = reads(model, self.recordable)

    def is_of(self, model: nn.Module) -> bool:
        """Whether this belongs to the model, and not to the model that it was copied from."""
        return self.modules is model._modules and all(
            container.get(name) is module for container, name, module in self.structure
        )

    def program(self) -> Program | None:
        """Return the steps for the present state of the modules, or None if they cannot be recorded."""
        model = self.model()
        assert model is not None
        called = {m for m in self.watched if m is not model and reason_to_call(m) is not None}
        training = tuple(m.training for m in self.watched if m in self.recordable)
        key = (frozenset(map(id, called)), training, comparable(self.reads))
        if key not in self.programs:
            recorded = self.recordable - called
            program = None
            if model in recorded and all(map(is_traceable, recorded)):
                program = Program(trace(model, recorded), dict(model.named_modules()), called)
            self.programs[key] = program
        return self.programs[key]


def _structure(model: nn.Module) -> list[tuple[dict[str, nn.Module | None], str, nn.Module | None]]:
    return [(m._modules, name, child) for m in model.modules() for name, child in m._modules.items()]


def _fusion_of(model: nn.Module) -> _Fusion:
    fusion: _Fusion | None = model.__dict__.get("_fusion")
    if fusion is None or not fusion.is_of(model):
        fusion = _Fusion(model)
        model.__dict__["_fusion"] = fusion
    return fusion


class _Fused(nn.Module):
    """Mixin of the class of a fused model."""

    _original_class: type[nn.Module]

    def restore(self) -> nn.Module:
        """Undo the fusion; return the model."""
        return restore(self)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        state = {name: value for name, value in self.__dict__.items() if name != "_fusion"}
        return _new_fused, (self._original_class,), state


def _new_fused(original: Any) -> nn.Module:
    module = original.__new__(original)
    module.__class__ = _fused_class(original)  # type: ignore[assignment]
    return module


@constant_to_dynamo
def _name_of_uncompiled_call() -> str | None:
    """Return the name of a function that calls a fused model and is not compiled; None where one graph is wanted.

    Its kernels are faster than what the compiler makes of the model (benchmarks/modes.py).
    """
    transformed = torch._C._are_functorch_transforms_active()
    uncompiled = kernels() and may_break_graph() and not transformed
    return name_for_tracing("fused", (), _uncompiled_call()) if uncompiled else None


@cache
def _uncompiled_call() -> Any:
    return torch.compiler.disable(lambda model, x: model.forward(x))


@cache
def _fused_class(original: Any) -> Any:
    @wraps(original.forward)  # tools such as torch.export read its signature
    def forward(self: _Fused, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if len(args) == 1 and not kwargs else None
        if isinstance(x, Tensor) and x.device.type == "cpu":
            if torch.compiler.is_dynamo_compiling():
                if not is_exporting() and (name := _name_of_uncompiled_call()) is not None:
                    return traced_value(name)(self, x)
            elif can_bypass_dispatcher(x) and (program := _fusion_of(self).program()) is not None:
                return program(x)
        return original.forward(self, *args, **kwargs)

    names = {"__module__": original.__module__, "__doc__": original.__doc__, "__qualname__": original.__qualname__}
    return type(original.__name__, (_Fused, original), {**names, "_original_class": original, "forward": forward})
