"""Figures of matplotlib as elements of a page."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "sepgroupy", "font.size": 9}
"""Settings of matplotlib with which a figure is made and written: letters that can be read on a phone."""


def to_svg(figure: Figure, name: str) -> str:
    """Return a figure as an ``<svg>`` element, the same on every call, its letters as text.

    Args:
        figure: the matplotlib figure.
        name: prefix of its ids, so that several figures can be on one page.
    """
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text[text.index("<svg") :])
