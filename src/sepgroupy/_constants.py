"""Values that ``torch.compile`` hands from a compiled program to functions of constants."""

from __future__ import annotations

from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch

_values: WeakValueDictionary[str, Constant] = WeakValueDictionary()
_numbers = count()


class Constant:
    """Base of immutable values with a name, the attribute ``constant_name``.

    Dynamo passes no frozen dataclass to a function of constants, but it passes strings. A program is compiled again for
    another name, so the same name always stands for the same value. A value names itself at its creation, unless
    Dynamo traces that; such a value has no name.
    """

    constant_name: str

    def name_constant(self) -> None:
        """Set the name."""
        if torch.compiler.is_dynamo_compiling():
            return
        name = f"{type(self).__name__} #{next(_numbers)}"
        object.__setattr__(self, "constant_name", name)
        _values[name] = self


def constant_named(value: Any) -> Any:
    """Return the value that a name stands for; return anything else as it is."""
    return _values.get(value, value) if isinstance(value, str) else value
