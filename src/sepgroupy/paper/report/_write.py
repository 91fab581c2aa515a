"""Write the report on runs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from ... import __version__
from ..._files import atomic
from ...errors import ArgumentError, DataError
from ...pages import Page, to_html, to_markdown
from ..sweep import TABLE, Run, find_runs, to_csv
from ._run_groups import group_runs
from ._sections import chapter

_PROGRAMS = ("sepgroupy", "torch")
HTML, MARKDOWN = "report.html", "report.md"

_log = logging.getLogger(__name__)


def write_report(
    runs: Iterable[str | PathLike[str]], folder: str | PathLike[str] = "report", rotations: int = 1
) -> Path:
    """Compare finished runs with the paper.

    The report has a chapter for each protocol: test error (mean ± standard deviation over seeds) beside the paper's,
    against parameters, training images and angle; redundancy of the filters; cost. Protocols are read from the
    configurations of the runs. Unfinished runs are counted and left out. Errors by angle and redundancy need the
    parameters of a run.

    Args:
        runs: folders of runs, folders of these, or tables of runs (``runs.csv``), see
            :func:`sepgroupy.paper.sweep.find_runs`. The errors by angle are cached in each run's folder.
        folder: for ``report.html``, which needs no other file; ``report.md`` with the same tables, and its figures as
            SVG files; and ``runs.csv``, a row for each run. Files of these names are replaced.
        rotations: if more than 1, also show the test error with class probabilities averaged over this many rotations
            (:func:`sepgroupy.training.predict`); it is measured once and cached in each run's folder.

    Returns:
        the path of ``report.html``.

    Raises:
        ArgumentError: one of the paths is neither a folder nor a table, or ``rotations`` is not a positive integer.
        DataError: none of the runs is finished, or the files of one cannot be read.
    """
    if not isinstance(rotations, int) or rotations < 1:
        raise ArgumentError(f"rotations (={rotations!r}) must be an integer from 1")
    found = find_runs(runs)
    done = [run for run in found if run.result is not None]
    if not done:
        raise DataError(f"there is no finished run to report on; {len(found)} are unfinished")
    chapters, stems = [], Counter[str]()
    for protocol in group_runs(done):
        stem = f"{protocol.config.task}-{protocol.config.data}"
        stems[stem] += 1
        name = stem if stems[stem] == 1 else f"{stem}-{stems[stem]}"
        _log.info("chapter %s: %d groups of runs", name, len(protocol.groups))
        chapters.append(chapter(protocol, name, rotations))
    page = Page("What separable group convolutions gain", _facts(found, done), chapters)
    files = {f"{plot.name}.svg": plot.svg for plot in page.plots}
    files |= {HTML: to_html(page), MARKDOWN: to_markdown(page), TABLE: to_csv(found)}
    for name, text in files.items():
        with atomic(Path(folder) / name) as path:
            path.write_text(text, encoding="utf-8")
    return Path(folder) / HTML


def _facts(found: list[Run], done: list[Run]) -> list[str]:
    versions = sorted({f"{name} {run.result.versions.get(name)}" for run in done if run.result for name in _PROGRAMS})
    facts = [f"{len(done)} runs, trained with {', '.join(versions)}; report by sepgroupy {__version__}."]
    if missing := len(found) - len(done):
        facts.append(f"{missing} more {'run is' if missing == 1 else 'runs are'} unfinished and left out.")
    return facts
