"""The graph of a network: layers of :mod:`sepgroupy.nn`, reshapes of the group axis, and operations of torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import FunctionType
from typing import Any

from torch import fx, nn

from .. import functional
from .._plain_weights import copy_with_plain_weights
from ..errors import ArgumentError
from ..models import check_images
from ..nn import GroupBatchNorm, GroupConvolution, GroupPool, PerElement

BATCH_NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_LEAVES = (GroupConvolution, GroupPool)
_STEPS = {check_images, *(getattr(functional, name) for name in functional.__all__)}
"""Functions of sepgroupy that are single nodes: the checks of their input are not traced."""


class _RefusalError(ArgumentError):
    """An error whose message is complete."""


def trace(model: nn.Module) -> tuple[nn.Module, fx.Graph]:
    """Return a copy of the network in inference mode, its weights plain parameters, and its graph.

    Raises:
        ArgumentError: ``torch.fx`` cannot trace a module. The message names the module.
    """
    root = copy_with_plain_weights(model).eval().requires_grad_(False)
    if isinstance(root, (*_LEAVES, PerElement, GroupBatchNorm)) or is_hooked(
        root
    ):  # torch.fx traces only the class's forward of a root
        root = nn.Sequential(root)
    norms = {m for m in root.modules() if isinstance(m, GroupBatchNorm)}
    dimensions: dict[nn.Module, int] = {norm: norm.dimension for norm in norms}
    for norm in norms:  # standard ones, of feature maps whose group axis is merged into the batch
        norm.__class__ = BATCH_NORMS[norm.dimension]
    tracer = _Tracer(dimensions)
    try:
        return root, tracer.trace(root)
    except _RefusalError:
        raise
    except Exception as error:  # the user's code can raise anything
        kind = type(root.get_submodule(tracer.at)).__name__
        raise ArgumentError(
            f"{describe_module(tracer.at)} ({kind}) cannot be traced by torch.fx: {error}. Its forward must consist of "
            "calls whose order and number do not depend on its input"
        ) from error


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of the module runs anything besides the forward of its class."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def describe_location(node: fx.Node) -> str:
    """Name the module whose forward contains a node."""
    return describe_module(next(reversed(node.meta.get("nn_module_stack", {})), ""))


def describe_module(name: str) -> str:
    """Return the description of a module for a message."""
    return f"module {name!r}" if name else "model"


def origin_outside_torch(function: Any) -> str:
    """Return the module that defines a function, or "" if it is part of torch or of Python."""
    origin = str(getattr(function, "__module__", None) or "torch")
    first, *others = origin.split(".")
    registered = others[:1] == ["_ops"] and others[1] not in ("aten", "prims")  # by another library
    return origin if registered or first not in ("torch", "_operator", "builtins", "math") else ""


class _Tracer(fx.Tracer):
    """Traces a network."""

    def __init__(self, norms: Mapping[nn.Module, int]) -> None:
        super().__init__((math, functional))  # type: ignore[arg-type]  # it says: one module
        self.norms, self.at = norms, ""

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        """Record a node, or trace into it: functions wrapped by other packages may consist of plain nodes."""
        if (
            kind == "call_function"
            and isinstance(target, FunctionType)
            and target not in _STEPS
            and origin_outside_torch(target)
        ):
            return target(*args, **kwargs)
        return super().create_proxy(kind, target, args, kwargs, *rest, **options)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _LEAVES) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before, self.at = self.at, self.path_of_module(m)
        if isinstance(m, PerElement) or m in self.norms:
            if (isinstance(m, PerElement) and type(m).forward is not PerElement.forward) or is_hooked(m):
                raise _RefusalError(
                    f"{describe_module(self.at)} ({type(m).__name__}) has hooks or its own forward, which an exported "
                    "network would not run: remove them before the export"
                )
            dimension = m.dimension if isinstance(m, PerElement) else self.norms[m]
            merged = self._step(functional.merge_group, *args, dimension)
            result = m.module(merged) if isinstance(m, PerElement) else super().call_module(m, forward, (merged,), {})
            result = self._step(functional.split_group, result, *args)
        elif isinstance(m, _LEAVES) and len(args) + len(kwargs) != 1:
            raise _RefusalError(
                f"{describe_module(self.at)} ({type(m).__name__}) is called with more than one argument"
            )
        else:
            result = super().call_module(m, forward, args, kwargs)
        self.at = before  # not after an error, whose message names this module
        return result

    def _step(self, function: Any, *args: Any) -> Any:
        return self.create_proxy("call_function", function, args, {})
