"""The calls of a network as a torch.fx graph, and the modules that must not be fused."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch.fx
from torch import nn
from torch.nn.modules import module as torch_module

from ..nn import GroupBatchNorm2d, GroupConv2d, LiftingConv2d, PerElement
from .traceable import is_traceable, is_trusted, original_class

BYPASSED = (GroupConv2d, LiftingConv2d, nn.BatchNorm2d, GroupBatchNorm2d, nn.ReLU, nn.ReLU6, nn.MaxPool2d, PerElement)
"""Modules that a fused kernel may replace: these classes, or subclasses with the same ``forward``."""

_GLOBAL_HOOKS = tuple(f"_global_{name}_hooks" for name in ("forward_pre", "forward", "backward_pre", "backward"))


def reason_to_call(module: nn.Module) -> str | None:
    """Return the reason why a module must be called, or None if the call has no observable effect."""
    if any(getattr(torch_module, name) for name in _GLOBAL_HOOKS):
        return "a global module hook"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "hooks"
    if "forward" in module.__dict__ or "__call__" in module.__dict__ or "_hf_hook" in module.__dict__:
        return "a patched or offloaded forward"
    if "parametrizations" in module._modules:
        return "a parametrization"
    return None


def is_bypassable(module: nn.Module) -> bool:
    """Whether a fused kernel may replace the module: its class is in `BYPASSED`, or inherits that forward."""
    return any(isinstance(module, known) and type(module).forward is known.forward for known in BYPASSED)


def recordable_modules(model: nn.Module) -> set[nn.Module]:
    """Return the modules in a model whose forward takes one tensor and can be recorded."""
    found: set[nn.Module] = set()
    for module in reversed(list(model.modules())):  # submodules first
        if is_traceable(module):
            found.add(module)
            if not is_trusted(module):
                try:
                    trace(module, found)
                except Exception:  # a user's forward can raise anything on a value without numbers
                    found.discard(module)
    return found


class _Tracer(torch.fx.Tracer):
    def __init__(self, recorded: Collection[nn.Module]) -> None:
        super().__init__()
        self.recorded = recorded

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self.recorded


def trace(model: nn.Module, recorded: Collection[nn.Module]) -> torch.fx.Graph:
    """Return the graph of a model's forward.

    Args:
        model: with a traceable forward.
        recorded: the modules whose calls are steps of the graph; others are leaf nodes.
    """
    return _Tracer(recorded).trace(_Shell(model))


class _Shell(nn.Module):
    """The model traced like a submodule: ``forward`` of its class, without hooks and patches."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.__dict__["_modules"] = model._modules
        self.__dict__["_model"] = model

    def forward(self, x: Any) -> Any:
        model = self.__dict__["_model"]
        return original_class(model).forward(model, x)
