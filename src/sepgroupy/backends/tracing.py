"""Support for ``torch.compile``: functions of constants that it calls during tracing, and objects that it can find.

Dynamo passes numbers and strings to and from a function of constants. A specification or a group is passed by its name
(:class:`Constant`). Dynamo guards every other result and must know its source. Such an object is therefore stored as an
attribute of one global, under a name that the function returns.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, TypeVar

import torch

from .._constants import Constant, constant_named

F = TypeVar("F", bound=Callable[..., Any])


def constant_to_dynamo(function: F) -> F:
    """Let ``torch.compile`` call a function of constants during tracing without tracing into it."""

    def of_names(*args: Any) -> Any:
        return function(*map(constant_named, args))

    of_names._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compiler.assume_constant_result,
    # which would import the compiler

    @wraps(function)
    def outer(*args: Any) -> Any:
        if not torch.compiler.is_dynamo_compiling():
            return function(*args)
        return of_names(*[getattr(arg, "constant_name", arg) if isinstance(arg, Constant) else arg for arg in args])

    return outer  # type: ignore[return-value]


@constant_to_dynamo  # Dynamo of PyTorch 2.11 would take torch.compiler.is_exporting() to be always true
def is_exporting() -> bool:
    """Whether ``torch.export`` is tracing (its programs use standard operations only), not ``torch.compile``."""
    return torch.compiler.is_exporting()


@constant_to_dynamo
def may_break_graph() -> bool:
    """Whether a program that ``torch.compile`` traces may consist of several graphs, without ``fullgraph=True``."""
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        translator = InstructionTranslator.current_tx()
        is_one = translator.one_graph or getattr(translator, "error_on_graph_break", False)
        is_nested = translator.output.current_tracer.parent is not None  # such as the branch of a torch.cond
        return not (is_one or is_nested)
    except (ImportError, AttributeError):  # of a PyTorch that has it elsewhere
        return False


class _Traced:
    """Objects that compiled programs read, as attributes."""


_traced = _Traced()
_names: dict[Hashable, str] = {}


def name_for_tracing(what: str, key: Hashable, value: object) -> str:
    """Store an object for compiled programs; return the name for :func:`traced_value`, the same for equal keys."""
    name = _names.setdefault((what, key), f"{what}_{len(_names)}")
    setattr(_traced, name, value)
    return name


def traced_value(name: str) -> Any:
    """Return the object stored under a name."""
    return getattr(_traced, name)
