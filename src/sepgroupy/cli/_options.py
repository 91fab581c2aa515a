"""The options of ``sepgroupy train``, made from the fields of :class:`sepgroupy.paper.RunConfig`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from ..paper import PAPER, RECIPES, RunConfig

__all__ = ["takes_run_options"]


def takes_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of RunConfig that is not among its parameters, in place of ``**values``.

    The option of a field that holds several values is repeatable and named in the singular. An option that is not given
    is None, which :meth:`RunConfig.for_task` replaces by the paper's value.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    made = [_option(field) for field in fields(RunConfig) if field.name not in signature.parameters]

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> None:
        # A repeatable option that is not given is an empty list in some versions of Typer.
        command(**{name: None if value == [] else value for name, value in arguments.items()})

    wrapped.__signature__ = signature.replace(parameters=[*own, *made])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *made)}
    return wrapped


def _option(field: Field[Any]) -> inspect.Parameter:
    """Return the option of a field: its name, type, default and description."""
    hint = get_type_hints(RunConfig)[field.name]
    kind = next((part for part in get_args(hint) if type(None) in get_args(hint)), hint)  # without "| None"
    flag, metavar = f"--{field.name.replace('_', '-')}", None
    if get_origin(kind) is Literal:
        kind, metavar = str, "|".join(get_args(kind))
    elif get_origin(kind) is tuple:
        kind, flag = list[get_args(kind)[0]], flag.removesuffix("s")  # type: ignore[misc]
    elif kind is bool:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    option = typer.Option(
        flag, help=RunConfig.describe(field.name), metavar=metavar, show_default=_usual(field) or False
    )
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _usual(field: Field[Any]) -> str:
    """Return the value of a field by each recipe as text, task by task where they differ; empty if it is none."""
    values = {}
    for task in PAPER:
        paper, *others = (_text(tasks[task].get(field.name, field.default)) for tasks in RECIPES.values())
        more = [f"{name} {text}" for name, text in zip(list(RECIPES)[1:], others, strict=True) if text != paper]
        values[task] = ", ".join(([paper] if paper else []) + more)
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return "; ".join(f"{task}: {text}" for task, text in values.items())


def _text(value: Any) -> str:
    if value is None or value is False or value is MISSING:
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
