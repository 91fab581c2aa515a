"""How Sphinx builds the site: ``make docs``."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger
from sphinx.writers.html5 import HTML5Translator

import sepgroupy
from sepgroupy.play import build_page

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
from equations import typeset  # noqa: E402

logger = getLogger(__name__)

os.environ.setdefault("OMP_NUM_THREADS", "2")

project = "sepgroupy"
author = "The sepgroupy developers"
release = version = sepgroupy.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["figures", "**/.ipynb_checkpoints"]
nitpicky = False
suppress_warnings = ["mystnb.unknown_mime_type"]

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "build" / "notebooks")
nb_execution_show_traceback = True  # a cell that fails is a warning, which stops the build
nb_execution_timeout = 240
nb_merge_streams = True

autodoc_typehints = "none"
autodoc_member_order = "bysource"
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shape"]

html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = "sepgroupy"
html_static_path = ["static"]
# The page to play with, and images that pages outside this folder refer to, are part of the site as they are.
EXTRA = ROOT / "build" / "site-extra"
EXTRA.mkdir(parents=True, exist_ok=True)
(EXTRA / "play.html").write_text(build_page(), encoding="utf-8")
html_extra_path = [str(EXTRA)]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_sidebars = {"**": []}  # the pages are few enough for the header
html_theme_options = {
    "show_prev_next": True,
    "navigation_with_keys": False,
    "header_links_before_dropdown": 4,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": [],
}


def setup(app: Sphinx) -> None:
    """Adapt links and docstrings to what Sphinx reads."""

    def relink(_: Sphinx, page: str, source: list[str]) -> None:
        """Let a link to a file outside this folder, which works in a repository, lead to the page that includes it."""
        source[0] = source[0].replace("](../benchmarks/README.md)", "](benchmarks.md)")

    def prepare(_: Sphinx, kind: str, name: str, item: object, options: object, lines: list[str]) -> None:
        """Typeset equations. Let |H| be the order of a group, where reStructuredText reads a substitution."""
        text = typeset("\n".join(lines))
        parts = re.split(r"(``.*?``|:math:`.*?`|\.\. math::.*?\n|>>>.*)", text, flags=re.DOTALL)  # examples end a text
        escaped = (part if i % 2 else re.sub(r"\||\*(?=spatial)", r"\\\g<0>", part) for i, part in enumerate(parts))
        lines[:] = "".join(escaped).split("\n")

    def require_docstring(_: Sphinx, kind: str, name: str, item: object, skipped: bool, options: object) -> None:
        """Stop the build at a public function, class or property without a docstring, which autodoc would leave out."""
        code = isinstance(item, (type, property)) or inspect.isroutine(item)
        if skipped and code and not name.startswith("_") and not inspect.getdoc(item):
            place = getattr(getattr(item, "fget", item), "__qualname__", name)
            logger.warning("%s.%s has no docstring", getattr(item, "__module__", kind), place)

    def write_math(display: str) -> Callable[[HTML5Translator, nodes.math], None]:
        """Return how an equation is written: as MathML, which browsers lay out without a script."""

        def write(page: HTML5Translator, node: nodes.math) -> None:
            page.body.append(convert(node.astext(), display=display))
            raise nodes.SkipNode

        return write

    app.add_html_math_renderer("mathml", (write_math("inline"), None), (write_math("block"), None))
    app.connect("source-read", relink)
    app.connect("autodoc-process-docstring", prepare)
    app.connect("autodoc-skip-member", require_docstring)
