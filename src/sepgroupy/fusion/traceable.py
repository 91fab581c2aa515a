"""Find the forwards that do the same in every call, so that a recorded graph can replace them.

torch.fx runs a forward once and records the tensor operations. Everything else happens only in that run: a
random number, an append to a list, a branch on an attribute. The code of a forward is therefore inspected first. It is
recorded only if it consists of calls of submodules, methods of tensors and functions of torch, and of reads of values
that can be compared in every call.
"""

from __future__ import annotations

import builtins
import dis
import math
from collections.abc import Iterable
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..backends import merge_group, split_group

_BUILTINS = {"range", "len", "enumerate", "zip", "reversed", "sum", "int", "float", "bool", "tuple", "list"}
_MODULES = (torch, torch.nn, F, torch.jit, math)
_OPCODES = (
    *("STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL", "STORE_SUBSCR", "DELETE_SUBSCR"),  # side effects
    *("IMPORT_NAME", "YIELD_VALUE", "BEFORE_WITH", "SETUP_WITH", "GET_AWAITABLE"),
    *("SETUP_FINALLY", "PUSH_EXC_INFO"),  # an except clause could hide an error of the recording
    *("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_CLOSURE", "LOAD_NAME"),  # values from elsewhere, which may change
)
_PREFIXES = ("rand", "is_", "get_", "set_", "register_", "_")
_STATE = {"is_scripting", "is_tracing"}  # constant wherever a recorded graph is used
_NAMES = {
    *("normal", "normal_", "bernoulli", "bernoulli_", "multinomial", "poisson", "uniform_", "exponential_"),
    *("manual_seed", "seed", "print"),
    *("zeros", "ones", "full", "empty", "eye", "arange", "linspace", "logspace", "tensor", "as_tensor", "from_numpy"),
    *("append", "extend", "insert", "remove", "pop", "clear", "add", "update", "setdefault", "sort", "write", "save"),
}  # fmt: skip
"""Attributes that draw random numbers, create tensors on the device of the recording, or change an object.
``torch.add`` is refused together with ``set.add``."""
_CAST = {"to", "float", "half", "double", "type", "bfloat16", "cpu", "cuda", "forward"}
"""Names that tensors share with modules."""


def is_traceable(module: nn.Module) -> bool:
    """Whether a recorded graph of the module's code is equivalent to its forward, as long as :func:`reads` agree."""
    if is_trusted(module):
        return True
    cls = original_class(module)
    values = (module.__dict__[name] for name in names_read(cls) if name in module.__dict__)
    return _class_is_traceable(cls) and all(map(_is_plain, values))


def is_trusted(module: nn.Module) -> bool:
    """Whether the forward is that of ``nn.Sequential`` or of this library, whose code need not be inspected."""
    cls = original_class(module)
    return cls.forward is nn.Sequential.forward or cls.__module__.startswith("sepgroupy.models.")


def reads(model: nn.Module, traced: Iterable[nn.Module]) -> list[tuple[dict[str, Any], str]]:
    """Return the places of values that the code of the traced modules may read, besides tensors and submodules.

    Args:
        model: the model; all of its modules may have such values.
        traced: modules whose code was recorded.
    """
    names = {name for m in traced if not is_trusted(m) for name in names_read(original_class(m))}
    return [(m.__dict__, name) for m in model.modules() for name in sorted(names & m.__dict__.keys())]


def comparable(places: list[tuple[dict[str, Any], str]]) -> tuple[Any, ...]:
    """Return the current values at the places of :func:`reads`; objects that are not plain values by identity."""
    values = (values.get(name) for values, name in places)
    return tuple(value if _is_plain(value) else id(value) for value in values)


def original_class(module: nn.Module) -> Any:
    """Return the original class of a fused module, or the class of another module."""
    return getattr(type(module), "_original_class", type(module))


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device)


@cache
def _class_is_traceable(cls: type[nn.Module]) -> bool:
    untouched = ("__call__", "__getattr__", "__getattribute__")
    if any(getattr(cls, name) is not getattr(nn.Module, name) for name in untouched):
        return False
    return not _is_of_torch(cls) and _reads_only(cls.forward, cls, set())


def _is_of_torch(cls: type) -> bool:
    return cls.__module__ == "torch" or cls.__module__.startswith("torch.")


@cache
def names_read(cls: type[nn.Module]) -> frozenset[str]:
    """Return the names of attributes that the forward, or a method or function that it calls, may read."""
    seen: set[CodeType] = set()
    _reads_only(cls.forward, cls, seen)
    return frozenset(name for code in seen for name in code.co_names)


def _reads_only(function: Any, cls: type[nn.Module], seen: set[CodeType]) -> bool:
    """Whether a Python function, and whatever it calls, is free of side effects and of reads that may change."""
    if not isinstance(function, FunctionType) or function.__closure__:
        return False  # of a decorator, such as torch.no_grad
    return _code_reads_only(function.__code__, function.__globals__, cls, seen)


def _code_reads_only(code: CodeType, namespace: dict[str, Any], cls: type[nn.Module], seen: set[CodeType]) -> bool:
    if code in seen:
        return True
    seen.add(code)
    previous: Any = None
    for instruction in dis.get_instructions(code):
        name = instruction.opname
        if name in _OPCODES:
            return False
        if name == "LOAD_GLOBAL" and not _global_is_constant(str(instruction.argval), namespace, cls, seen):
            return False
        if name in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR") and not _attribute_is_constant(
            str(instruction.argval), cls, seen
        ):
            return False
        if name == "IS_OP" and not (previous.opname == "LOAD_CONST" and previous.argval is None):
            return False  # a recorded value is not a dtype, for example
        previous = instruction
    nested = [const for const in code.co_consts if isinstance(const, CodeType)]
    return all(_code_reads_only(inner, namespace, cls, seen) for inner in nested)


def _global_is_constant(name: str, namespace: dict[str, Any], cls: type[nn.Module], seen: set[CodeType]) -> bool:
    if name not in namespace:
        return name in _BUILTINS or (name.endswith("Error") and hasattr(builtins, name))
    value = namespace[name]
    if any(value is known for known in (*_MODULES, merge_group, split_group)):  # these two are nodes of the graph
        return True
    if any(getattr(module, name, None) is value for module in _MODULES):
        return _attribute_is_constant(name, cls, seen)
    return _reads_only(value, cls, seen)


def _attribute_is_constant(name: str, cls: type[nn.Module], seen: set[CodeType]) -> bool:
    if name in _STATE:
        return True
    own = getattr(cls, name, None)
    inherited = getattr(nn.Module, name, None)
    if own is not None and own is not inherited:
        # A method that the forward calls; other attributes of a class are compared in every call.
        return _reads_only(own, cls, seen) if isinstance(own, FunctionType) else _is_plain(own)
    if name in _NAMES or name.startswith(_PREFIXES):
        return False
    return inherited is None or name in _CAST or name == "training"
