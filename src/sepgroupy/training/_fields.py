"""Types of the fields of configurations, and errors that name field, value and remedy."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from itertools import pairwise
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, FiniteFloat, ValidationError
from pydantic_core import PydanticCustomError

from ..errors import ArgumentError

T = TypeVar("T")


def _increasing(values: tuple[int, ...]) -> tuple[int, ...]:
    if not all(a < b for a, b in pairwise((0, *values))):
        raise PydanticCustomError("increasing", "Input should be increasing whole numbers from 1")
    return values


Count = Annotated[int, Field(ge=1, lt=2**32)]
CountFrom0 = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
Text = Annotated[str, Field(min_length=1)]
Epochs = Annotated[tuple[Annotated[int, Field(strict=True)], ...], Field(strict=False), AfterValidator(_increasing)]


def raises_argument_error(cls: type[T]) -> type[T]:
    """Let the constructor of a pydantic dataclass raise ArgumentError in place of pydantic's error."""
    validate = cls.__init__

    @functools.wraps(validate)
    def construct(self: T, **values: Any) -> None:
        try:
            validate(self, **values)
        except ValidationError as error:
            raise _refusal(cls, error, values) from None

    cls.__init__ = construct  # type: ignore[method-assign, assignment]
    return cls


def _refusal(cls: Any, error: ValidationError, values: Mapping[str, Any]) -> ArgumentError:
    """Return the first problem that pydantic has found as an error that names argument, value and remedy."""
    first = error.errors(include_url=False)[0]
    if isinstance(known := first.get("ctx", {}).get("error"), ArgumentError):
        return known
    name, *place = first["loc"]
    if first["type"] == "unexpected_keyword_argument":
        known_names = ", ".join(sorted(field.name for field in fields(cls)))
        return ArgumentError(f"unknown setting {name!r}: a run has {known_names}")
    if name not in values:
        return ArgumentError(f"the configuration is incomplete: {name} is missing")
    named = f"{name}{''.join(f'[{index}]' for index in place)} (={first['input']!r})"
    return ArgumentError(f"{named} {re.sub('^.*? should ', 'must ', first['msg'])}")


STRICT = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True)
"""How pydantic reads the fields of a configuration, and finds their descriptions below them."""


def parse_object(text: str) -> dict[str, Any]:
    """Return the JSON object that a text is.

    Raises:
        ArgumentError: it is not a JSON object.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"the configuration is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ArgumentError(f"the configuration must be a JSON object, not {type(values).__name__}")
    return values
