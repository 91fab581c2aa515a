"""The ``sepgroupy`` command.

Here live arguments, options and what is printed. A command parses its arguments, calls a function of the library and
prints the result; anything that a program would want to call may not live here.
"""

from __future__ import annotations

from ._commands import app as app
from ._commands import exit_code as exit_code
from ._commands import main as main
from ._train import run as run

__all__ = ["app", "exit_code", "main", "run"]
