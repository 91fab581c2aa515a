"""The page as a value, which two templates lay out: HTML that holds its figures, and Markdown that links them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


@dataclass(frozen=True)
class Table:
    """A table; all but its first column are aligned to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Plot:
    """A figure: the stem of its file, what it shows in words, and its ``<svg>`` element."""

    name: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Section:
    """A heading with text, plots and tables."""

    title: str
    text: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Chapter:
    """A part of a page, with sections."""

    title: str
    text: Sequence[str]
    sections: Sequence[Section]


@dataclass(frozen=True)
class Page:
    """A page."""

    title: str
    text: Sequence[str]
    chapters: Sequence[Chapter]

    @property
    def plots(self) -> list[Plot]:
        """All figures."""
        return [plot for chapter in self.chapters for section in chapter.sections for plot in section.plots]


def to_html(page: Page) -> str:
    """Lay a page out as one HTML file that needs nothing else."""
    return _environment().get_template("page.html.j2").render(page=page)


def to_markdown(page: Page) -> str:
    """Lay a page out as Markdown, with its figures in files beside it."""
    return _environment().get_template("page.md.j2").render(page=page)


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("sepgroupy.pages", ""),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
