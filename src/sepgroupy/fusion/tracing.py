"""The calls that a network makes, as a torch.fx graph; and which of its modules must be called as they are."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch.fx
from torch import nn
from torch.nn.modules import module as torch_module

from ..nn import GroupBatchNorm2d, GroupConv2d, LiftingConv2d, PerElement

BYPASSED = (GroupConv2d, LiftingConv2d, nn.BatchNorm2d, GroupBatchNorm2d, nn.ReLU, nn.MaxPool2d, PerElement)
"""Modules that a fused kernel may stand for; exactly these classes, or subclasses with the same ``forward``."""


def has_traceable_forward(module: nn.Module) -> bool:
    """Whether what the forward does depends on its submodules alone: those of nn.Sequential and of our networks.

    Of any other class tracing could record a number that is drawn, or a branch that is taken, in every call.
    """
    home = type(module).__module__
    return type(module).forward is nn.Sequential.forward or home.startswith("sepgroupy.models.")


def reason_to_call(module: nn.Module) -> str | None:
    """Return why a module must be called as it is, or None if nobody can tell whether it was called."""
    if torch_module._has_any_global_hook():
        return "a global module hook"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "hooks"
    if "forward" in module.__dict__ or "__call__" in module.__dict__ or "_hf_hook" in module.__dict__:
        return "a patched or offloaded forward"
    if "parametrizations" in module._modules:
        return "a parametrization"
    return None


def is_bypassable(module: nn.Module) -> bool:
    """Whether the module computes what its library class does."""
    return any(isinstance(module, known) and type(module).forward is known.forward for known in BYPASSED)


class _Tracer(torch.fx.Tracer):
    def __init__(self, called: Collection[nn.Module]) -> None:
        super().__init__()
        self.called = called
        self.containers: list[nn.Module] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m in self.called or not has_traceable_forward(m):
            return True
        self.containers.append(m)
        return False


def trace(model: nn.Module, called: Collection[nn.Module]) -> tuple[torch.fx.Graph, list[nn.Module]]:
    """Return the graph of a model's forward, and the containers whose forward the graph stands for.

    Args:
        model: with a traceable forward.
        called: modules that are to be called as they are.
    """
    tracer = _Tracer(called)
    graph = tracer.trace(_Shell(model))
    return graph, [model, *tracer.containers]


class _Shell(nn.Module):
    """The model as a submodule would be traced: ``forward`` of its class, whatever stands around its call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.__dict__["_modules"] = model._modules
        self.__dict__["_model"] = model

    def forward(self, x: Any) -> Any:
        model = self.__dict__["_model"]
        return original_class(model).forward(model, x)


def original_class(model: nn.Module) -> Any:
    """Return the class that a fused model was made of, or its class."""
    return getattr(type(model), "_original_class", type(model))
