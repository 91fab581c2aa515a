"""The ``sepgroupy`` command.

This package parses arguments and prints results. Functions that a program may call belong to the library.
"""

from __future__ import annotations

from ._commands import app as app
from ._commands import exit_code as exit_code
from ._commands import main as main
from ._train import run as run

__all__ = ["app", "exit_code", "main", "run"]
