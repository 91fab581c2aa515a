"""Pages of text, tables and figures as values, written as one HTML file or as Markdown.

Here lives what every page shares: its parts, the two templates, and figures as SVG. What a page says belongs to the
package that knows it, such as ``training`` for the page of a run.
"""

from __future__ import annotations

from ._page import Chapter as Chapter
from ._page import Page as Page
from ._page import Plot as Plot
from ._page import Section as Section
from ._page import Table as Table
from ._page import to_html as to_html
from ._page import to_markdown as to_markdown
from ._svg import STYLE as STYLE
from ._svg import to_svg as to_svg

__all__ = ["STYLE", "Chapter", "Page", "Plot", "Section", "Table", "to_html", "to_markdown", "to_svg"]
