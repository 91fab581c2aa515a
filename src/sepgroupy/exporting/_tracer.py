"""A network as the graph of its steps: the layers of :mod:`sepgroupy.nn`, foldings, and all that is torch's."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection
from types import FunctionType
from typing import Any

from torch import fx, nn

from .. import functional
from ..errors import ArgumentError
from ..models import check_images
from ..nn import GroupBatchNorm2d, GroupConvolution, GroupPool, PerElement

_LEAVES = (GroupConvolution, GroupPool)
_STEPS = {check_images, *(getattr(functional, name) for name in functional.__all__)}
"""Functions of ours that are single steps: what they check of their input is not followed."""


def follow(model: nn.Module) -> tuple[nn.Module, fx.Graph]:
    """Return a copy of the network in evaluation mode and its graph.

    Raises:
        ArgumentError: a module, which is named, does what ``torch.fx`` cannot follow.
    """
    root = copy.deepcopy(model).eval().requires_grad_(False)
    if isinstance(root, (*_LEAVES, PerElement, GroupBatchNorm2d)):  # the root itself is always followed
        root = nn.Sequential(root)
    norms = {m for m in root.modules() if isinstance(m, GroupBatchNorm2d)}
    for norm in norms:  # ordinary ones, of feature maps whose group axis is merged into the batch
        norm.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
    tracer = _Tracer(norms)
    try:
        return root, tracer.trace(root)
    except Exception as error:  # the user's code can raise anything
        kind = type(root.get_submodule(tracer.at)).__name__
        raise ArgumentError(
            f"{_named(tracer.at)} ({kind}) cannot be followed by torch.fx: {error}. Its forward must be made of calls "
            "whose order and number do not depend on its input"
        ) from error


def named(node: fx.Node) -> str:
    """Name the module in whose forward a step was met."""
    return _named(next(reversed(node.meta.get("nn_module_stack", {})), ""))


def foreign(function: Any) -> str:
    """Return the module that a function is from, or "" if it is one of torch or of Python itself."""
    origin = str(getattr(function, "__module__", None) or "torch")
    first, *rest = origin.split(".")
    registered = rest[:1] == ["_ops"] and rest[1] not in ("aten", "prims")  # by somebody else
    return origin if registered or first not in ("torch", "_operator", "builtins", "math") else ""


class _Tracer(fx.Tracer):
    """Follows a network."""

    def __init__(self, norms: Collection[nn.Module]) -> None:
        super().__init__((math, functional))  # type: ignore[arg-type]  # it says: one module
        self.norms, self.at = norms, ""

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        """Note a step, or follow it: functions that others have wrapped for torch.fx can still be plain inside."""
        if kind == "call_function" and isinstance(target, FunctionType) and target not in _STEPS and foreign(target):
            return target(*args, **kwargs)
        return super().create_proxy(kind, target, args, kwargs, *rest, **options)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _LEAVES) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before, self.at = self.at, self.path_of_module(m)
        if isinstance(m, PerElement) or m in self.norms:
            merged = self._step(functional.merge_group, *args)
            result = m.module(merged) if isinstance(m, PerElement) else super().call_module(m, forward, (merged,), {})
            result = self._step(functional.split_group, result, *args)
        else:
            result = super().call_module(m, forward, args, kwargs)
        self.at = before  # not after an error, which is to be told where it happened
        return result

    def _step(self, function: Any, *args: Any) -> Any:
        return self.create_proxy("call_function", function, args, {})


def _named(name: str) -> str:
    return f"module {name!r}" if name else "model"
