"""The options of ``sepgroupy train``, made from the fields of a configuration."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from ..training import TrainingConfig

Command = Callable[..., None]

Workers = Annotated[
    int | None,
    typer.Option(
        help="Processes that read images; 0 for none. The result does not depend on them.",
        show_default="one less than the processors, at most 8",
    ),
]

_OTHER_FLAGS = {"folder": ["--run-dir"]}


def takes_run_options(config: type[TrainingConfig], tasks: tuple[str, ...]) -> Callable[[Command], Command]:
    """Give a command an option for each field of a configuration that is not a parameter, in place of ``**values``.

    The option of a field that holds several values is repeatable and named in the singular. An option that is not given
    is None, which :meth:`TrainingConfig.for_task` replaces by the recipe's value. A field that has one value only for
    the tasks, as ``task`` has for one task, has no option.

    Args:
        config: the class of the configuration.
        tasks: those of the command, whose usual values the help shows.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        absent = {*signature.parameters, *(["task"] if len(tasks) == 1 else [])}
        made = [_option(config, tasks, field) for field in fields(config) if field.name not in absent]

        @functools.wraps(command)
        def wrapped(**arguments: Any) -> None:
            # A repeatable option that is not given is an empty list in some versions of Typer.
            command(**{name: None if value == [] else value for name, value in arguments.items()})

        wrapped.__signature__ = signature.replace(parameters=[*own, *made])  # type: ignore[attr-defined]
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *made)}
        return wrapped

    return decorate


def _option(config: type[TrainingConfig], tasks: tuple[str, ...], field: Field[Any]) -> inspect.Parameter:
    """Return the option of a field: its name, type, default and description."""
    hint = get_type_hints(config)[field.name]
    kind = next((part for part in get_args(hint) if type(None) in get_args(hint)), hint)  # without "| None"
    flag, metavar = f"--{field.name.replace('_', '-')}", None
    if get_origin(kind) is Literal:
        kind, metavar = str, "|".join(get_args(kind))
    elif get_origin(kind) is tuple:
        kind, flag = list[get_args(kind)[0]], flag.removesuffix("s")  # type: ignore[misc]
    elif kind is bool:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    text, usual = config.describe(field.name), _usual(config, tasks, field) or False
    flags = [flag, *_OTHER_FLAGS.get(field.name, [])]
    option = typer.Option(*flags, help=text, metavar=metavar, show_default=usual)
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _usual(config: type[TrainingConfig], tasks: tuple[str, ...], field: Field[Any]) -> str:
    """Return the value of a field by each recipe as text, task by task where they differ; empty if it is none."""
    if field.name == "task":
        return tasks[0]
    values = {}
    for task in tasks:
        first, *others = (_text(by_task[task].get(field.name, field.default)) for by_task in config.recipes.values())
        names = list(config.recipes)[1:]
        more = [f"{name} {text or 'none'}" for name, text in zip(names, others, strict=True) if text != first]
        values[task] = ", ".join(([first] if first else []) + more)
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return "; ".join(f"{task}: {text}" for task, text in values.items())


def _text(value: Any) -> str:
    if value is None or value is False or value is MISSING:
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
