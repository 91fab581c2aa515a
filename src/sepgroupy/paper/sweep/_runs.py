"""Existing runs, in folders or in a table, identified by their configuration."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from ...errors import ArgumentError, DataError
from ...models import load_weights
from ...training import CHECKPOINT, CONFIG, RESULT, Result, load_model, read_result
from .._config import RunConfig, read_run_config

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger(__name__)

_VERSION = "version_"  # what the column of a version begins with
_COLUMNS = {"data": "dataset"}  # of a result, where the name is taken by the configuration
_CONFIG_TYPES = get_type_hints(RunConfig, include_extras=True)
_RESULT_TYPES = {name: hint for name, hint in get_type_hints(Result).items() if name != "versions"}


@dataclass(frozen=True)
class Run:
    """A run in a folder, or in a row of a table.

    Args:
        folder: its folder. That of a row of a table has the run's name, beside the table, and may be missing.
        config: its configuration.
        result: its result, None if it is unfinished.
    """

    folder: Path
    config: RunConfig
    result: Result | None

    @property
    def identity(self) -> RunConfig:
        """The configuration with the usual name and without a folder: equal for runs with the same result."""
        return replace(self.config.canonical, folder=None)

    @property
    def has_parameters(self) -> bool:
        """Whether :meth:`load_model` finds parameters."""
        return (self.folder / CHECKPOINT).exists() or self._weights.exists()

    def load_model(self) -> nn.Module:
        """Return the trained network in inference mode, from the checkpoint or a file of ``sepgroupy weights``.

        Raises:
            DataError: neither is in the folder, or it is broken.
        """
        if (self.folder / CHECKPOINT).exists() or not self._weights.exists():
            return load_model(self.folder)
        model = self.config.build_model()
        load_weights(model, self.config.model, self._weights)
        return model.eval()

    @property
    def _weights(self) -> Path:
        return self.folder / f"{self.config.model}.npz"


def find_runs(paths: Iterable[str | PathLike[str]]) -> list[Run]:
    """Find all runs in folders, at any depth, and in tables, each configuration once.

    Of several runs of a configuration, a finished one is preferred, then one with its parameters. Broken runs are
    named in the log and left out.

    Args:
        paths: folders of runs, folders of these, or tables (``….csv``) that :func:`to_csv` wrote.

    Returns:
        the runs, ordered by task, model, width, number of training images and seed.

    Raises:
        ArgumentError: one of the paths is neither a folder nor a table.
    """
    runs: dict[RunConfig, Run] = {}
    for path in map(Path, paths):
        if path.suffix == ".csv" and path.is_file():
            found = _read_table(path)
        elif path.is_dir():
            found = (_read(file.parent) for file in sorted(path.rglob(CONFIG)))
        else:
            raise ArgumentError(f"runs (={str(path)!r}) must be a folder that holds runs, or a table of them (….csv)")
        for run in found:
            if isinstance(run, DataError):
                _log.warning("left out: %s", run)
            elif _rank(run) > _rank(runs.setdefault(run.identity, run)):
                runs[run.identity] = run
    return sorted(runs.values(), key=_order)


def to_csv(runs: Iterable[Run]) -> str:
    """Return a CSV table with a row for each finished run: configuration, result, time and versions."""
    rows = [_row(run) for run in runs if run.result is not None]
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _read(folder: Path) -> Run | DataError:
    try:
        return Run(folder, read_run_config(folder), read_result(folder) if (folder / RESULT).exists() else None)
    except DataError as error:
        return error


def _read_table(path: Path) -> Iterator[Run | DataError]:
    """Yield the runs of a table, the inverse of :func:`_row`."""
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values = {name: text for name, text in row.items() if text and name is not None}
            config = {name: values.pop(name) for name in _CONFIG_TYPES if name in values}
            result = {name: values.pop(_COLUMNS.get(name, name), "") for name in _RESULT_TYPES}
            versions = {name.removeprefix(_VERSION): values[name] for name in values if name.startswith(_VERSION)}
            try:
                milestones = tuple(map(int, config.pop("milestones", "").split()))
                typed = {name: _parsed(_CONFIG_TYPES[name], text) for name, text in config.items()}
                known = RunConfig.from_values(typed | {"milestones": milestones})
                texts = {name: text for name, text in result.items() if text}
                outcome = {name: _parsed(_RESULT_TYPES[name], text) for name, text in texts.items()}
                name = replace(known, folder=None).run_folder.name
                yield Run(path.parent / name, known, Result(**outcome, versions=versions))
            except (ArgumentError, TypeError, ValidationError, ValueError) as error:
                yield DataError(f"a row of {path} is not that of a run: {' '.join(str(error).split()):.300}")


def _parsed(hint: Any, text: str) -> Any:
    return TypeAdapter(hint).validate_strings(text)


def _rank(run: Run) -> tuple[bool, bool]:
    return run.result is not None, run.has_parameters


def _row(run: Run) -> dict[str, Any]:
    result = asdict(run.result) if run.result is not None else {}
    versions = {f"{_VERSION}{name}": version for name, version in result.pop("versions", {}).items()}
    config = asdict(run.config) | {"milestones": " ".join(map(str, run.config.milestones))}
    named = {_COLUMNS.get(name, name): value for name, value in result.items()}
    return config | named | versions


def _order(run: Run) -> tuple[Any, ...]:
    config = run.config
    return config.task, config.model, config.width or 0, config.samples or float("inf"), config.seed, str(run.folder)
