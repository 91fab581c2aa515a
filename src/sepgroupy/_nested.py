"""The tensors in the output of a network: alone, or in nested mappings, sequences and dataclasses."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any


def map_leaves(function: Callable[[str, Any], Any], value: Any, path: str) -> Any:
    """Return a copy of a value with ``function(path, leaf)`` in place of every leaf, in order.

    Mappings, lists, (named) tuples and dataclasses are traversed and copied; anything else is a leaf.

    Args:
        function: called once for each leaf.
        value: the output of a network.
        path: the name of the value. The leaf ``["a"][0].b`` of "output" has the path ``output['a'][0].b``.
    """
    if isinstance(value, Mapping):
        items = {key: map_leaves(function, item, f"{path}[{key!r}]") for key, item in value.items()}
        if not isinstance(value, MutableMapping):
            return items
        new = copy.copy(value)
        new.update(items)
        return new
    if isinstance(value, (list, tuple)):
        names = [f".{name}" for name in getattr(value, "_fields", ())] or [f"[{i}]" for i in range(len(value))]
        new_items = [map_leaves(function, item, path + name) for name, item in zip(names, value, strict=True)]
        return type(value)(*new_items) if hasattr(value, "_fields") else type(value)(new_items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        copied = copy.copy(value)
        for field in dataclasses.fields(value):
            item = map_leaves(function, getattr(value, field.name), f"{path}.{field.name}")
            object.__setattr__(copied, field.name, item)  # frozen or not
        return copied
    return function(path, value)
