"""One page with the results of a set of runs beside the paper's."""

from __future__ import annotations

from ._write import HTML as HTML
from ._write import MARKDOWN as MARKDOWN
from ._write import write_report as write_report

__all__ = ["HTML", "MARKDOWN", "write_report"]
