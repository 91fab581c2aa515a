"""Runs that are there already, known by their configuration and not by the name of their folder."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from ...errors import ArgumentError, DataError
from ...training import CONFIG, RESULT, Result, read_result
from .._config import RunConfig, read_run_config

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run in a folder.

    Args:
        folder: where it is.
        config: what it is.
        result: what came out, None as long as it is unfinished.
    """

    folder: Path
    config: RunConfig
    result: Result | None

    @property
    def identity(self) -> RunConfig:
        """The configuration without the folder and by the usual name: equal for runs that would come out the same."""
        return replace(self.config.canonical, folder=None)


def find_runs(paths: Iterable[str | PathLike[str]]) -> list[Run]:
    """Find all runs in folders, at any depth, each configuration once; a finished run goes before an unfinished one.

    What is broken is named in the log and left out.

    Args:
        paths: folders of runs, or folders that hold such.

    Returns:
        the runs, ordered by task, model, width, number of training images and seed.

    Raises:
        ArgumentError: one of the paths is no folder.
    """
    runs: dict[RunConfig, Run] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise ArgumentError(f"folder (={str(path)!r}) is not there: it must hold runs")
        for file in sorted(path.rglob(CONFIG)):
            try:
                run = _read(file.parent)
            except DataError as error:
                _log.warning("left out: %s", error)
                continue
            other = runs.setdefault(run.identity, run)
            if other.result is None and run.result is not None:
                runs[run.identity] = run
    return sorted(runs.values(), key=_order)


def to_csv(runs: Iterable[Run]) -> str:
    """Lay finished runs out as one tidy CSV, a row a run: its configuration, its result, its time and versions."""
    rows = [_row(run) for run in runs if run.result is not None]
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _read(folder: Path) -> Run:
    return Run(folder, read_run_config(folder), read_result(folder) if (folder / RESULT).exists() else None)


def _row(run: Run) -> dict[str, Any]:
    result = asdict(run.result) if run.result is not None else {}
    versions = {f"version_{name}": version for name, version in result.pop("versions", {}).items()}
    config = asdict(run.config) | {"milestones": " ".join(map(str, run.config.milestones))}
    named = {"dataset" if name == "data" else name: value for name, value in result.items()}
    return config | named | versions


def _order(run: Run) -> tuple[Any, ...]:
    config = run.config
    return config.task, config.model, config.width or 0, config.samples or float("inf"), config.seed, str(run.folder)
