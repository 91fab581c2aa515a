"""Open every page of the built site in headless Chromium, at the width of a phone and of a desktop: ``make docs``.

    python tests/check_site.py site [--screenshots FOLDER]

It names pages that are wider than the screen, images that are not there, equations that are no MathML, links to
files or headings that do not exist, and errors in the console; it exits with 1 if there are any. Without a browser it
says so.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlsplit

from browser import BROWSER
from browser_page import Page

WIDTHS = (390, 1200)

FINDINGS = """(() => {
  const name = e => `${e.tagName.toLowerCase()} ${(e.textContent || e.src || "").trim().slice(0, 60)}`;
  const all = selector => [...document.querySelectorAll(selector)];
  const may = e => e.closest("pre, table, math, p:has(> math)");
  const scrolls = e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== "visible";
  return {
    width: document.documentElement.scrollWidth,
    wide: all("article, article *, .bd-main *").filter(e => scrolls(e) && !may(e)).map(name),
    images: [...document.images].filter(e => !e.naturalWidth).map(e => e.src),
    equations: all("merror, .math-error").map(name),
    links: all("a[href]").map(e => e.href),
  };
})()"""
"""Program text, tables and equations may scroll by themselves; nothing else may."""


def findings(page: Page, width: int) -> Iterator[str]:
    """Yield what is wrong with the page that is open."""
    found: dict[str, Any] = page.evaluate(FINDINGS.replace("WIDTH", str(width)))
    if found["width"] > width:
        yield f"{found['width']} px wide"
    yield from (f"too wide: {text}" for text in found["wide"])
    yield from (f"no image {url}" for url in found["images"])
    yield from (f"no equation: {text}" for text in found["equations"])
    yield from (f"dead link {url}" for url in sorted(set(found["links"])) if not leads_somewhere(url))
    yield from page.failures


def leads_somewhere(url: str) -> bool:
    """Return whether a link to a file leads to a heading that exists; links to other sites are not tried."""
    parts = urlsplit(url)
    if parts.scheme != "file":
        return True
    path = Path(unquote(parts.path))
    return path.is_file() and (not parts.fragment or unquote(parts.fragment) in anchors(path))


@cache
def anchors(path: Path) -> frozenset[str]:
    """Return the names of all places in a page that a link can lead to."""
    return frozenset(re.findall(r'\bid="([^"]+)"', path.read_text(encoding="utf-8")))


def main() -> int:
    """Read the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path)
    parser.add_argument("--screenshots", type=Path, help="a folder for a PNG file of each page")
    given = parser.parse_args()
    if BROWSER is None:
        print("no Chromium: the pages were not opened")
        return 0
    if given.screenshots is not None:
        given.screenshots.mkdir(parents=True, exist_ok=True)
    root = given.site.resolve()
    pages = [path for path in sorted(root.rglob("*.html")) if path.relative_to(root).parts[0] != "_static"]
    problems: list[str] = []
    for width in WIDTHS:
        with TemporaryDirectory() as profile, Page("about:blank", Path(profile), (width, 900)) as page:
            for path in pages:
                name = path.relative_to(root).with_suffix("").as_posix()
                page.open(path.as_uri(), seconds=120)
                problems += [f"{name} at {width} px: {text}" for text in findings(page, width)]
                if given.screenshots is not None:
                    page.screenshot(given.screenshots / f"{name.replace('/', '-')}-{width}.png")
    print(*problems, f"{len(pages)} pages opened at {WIDTHS} px: {len(problems)} problems", sep="\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
