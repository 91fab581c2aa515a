"""Train the missing runs of a grid."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from os import PathLike
from pathlib import Path
from typing import Any

from ..._files import atomic
from ...errors import ArgumentError, RunError, SepgroupyError
from ...training import train
from .._config import RunConfig
from ._runs import Run, find_runs, to_csv

TABLE = "runs.csv"
JOBS = "jobs"  # folder of submitit's files

_log = logging.getLogger(__name__)


def grid(
    task: str,
    models: Iterable[str],
    widths: Iterable[int | None] = (None,),
    samples: Iterable[int | None] = (None,),
    seeds: Iterable[int] = (1, 2, 3),
    **settings: Any,
) -> list[RunConfig]:
    """Return the configurations of all combinations, seeds outermost, so that half a sweep has half of all seeds.

    Args:
        task: ``"rotmnist"`` or ``"cifar10"``.
        models: names of models.
        widths: channels of the first layers, None for the published widths.
        samples: numbers of training images, None for all.
        seeds: of the runs.
        **settings: values of other fields, for all runs:
            :class:`sepgroupy.paper.RunConfig`.

    Raises:
        ArgumentError: a value is out of range.
    """
    if mine := settings.keys() & {"model", "width", "samples", "seed", "folder"}:
        raise ArgumentError(f"{min(mine)} is not the same for all runs of a sweep: it has an argument of its own")
    axes = product(*map(dict.fromkeys, (seeds, samples, widths, models)))
    return [
        RunConfig.for_task(task, model=model, width=width, samples=count, seed=seed, **settings)
        for seed, count, width, model in axes
    ]


def sweep(
    configs: Sequence[RunConfig],
    folder: str | PathLike[str],
    *,
    cluster: str | None = None,
    jobs: int = 1,
    parameters: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> list[Run]:
    """Train all runs that are not finished in the folder, and write ``runs.csv``, a row for each run in the folder.

    A run is identified by its configuration. A run that is finished anywhere in the folder, whatever the name of its
    own folder, is not trained again, and an interrupted one is resumed. A sweep that was killed at any moment and is
    started again therefore does the remaining work. A run that fails does not stop the others.

    Args:
        configs: the runs, as from :func:`grid`; their ``folder`` is ignored.
        folder: where they are saved, new ones as ``<task>-<model>-<digest of the configuration>``.
        cluster: None to train one after another in this process; or a cluster of submitit: ``"slurm"``, or
            ``"local"`` for processes on this machine.
        jobs: number of jobs; each trains a part of the runs.
        parameters: of submitit's executor, such as ``{"slurm_partition": "gpu", "timeout_min": 240}``. A job that
            reaches its time limit or is preempted is queued again and resumes.
        progress: draw progress bars, if this process trains.

    Returns:
        All runs of the grid, in its order; each has a result.

    Raises:
        ArgumentError: submitit is not installed, knows no such cluster or parameter, or jobs is less than 1.
        RunError: a run has failed; the others are finished.
        KeyboardInterrupt: the sweep was interrupted; jobs of a cluster continue.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [replace(config.canonical, folder=None) for config in configs]
    there = {run.identity: run for run in find_runs([folder])}
    missing = [config for config in dict.fromkeys(wanted) if not _is_finished(there.get(config))]
    due = [_place(config, there.get(config), folder) for config in missing]
    _log.info("%d runs, of which %d are to be done", len(wanted), len(due))
    try:
        if cluster is None:
            failures = _Share(due, progress)()
        else:
            failures = _submit(due, folder / JOBS, cluster, jobs, parameters or {})
    finally:
        found = find_runs([folder])
        with atomic(folder / TABLE) as path:
            path.write_text(to_csv(found), encoding="utf-8")
    if failures:
        raise RunError(f"{len(failures)} of {len(due)} runs have failed, the first so: {failures[0]}")
    there = {run.identity: run for run in found}
    return [there[config] for config in wanted]


def _is_finished(run: Run | None) -> bool:
    return run is not None and run.result is not None


def _place(config: RunConfig, run: Run | None, folder: Path) -> RunConfig:
    """Return the configuration with its folder: that of the interrupted run, unless it was moved since."""
    if run is not None and run.config.run_folder.resolve() == run.folder.resolve():
        return run.config
    return replace(config, folder=str(folder / config.run_folder.name))


class _Share:
    """The runs of one process. A call trains them and returns a line for each that fails."""

    def __init__(self, configs: Sequence[RunConfig], progress: bool = False) -> None:
        self.configs, self.progress = configs, progress

    def __call__(self) -> list[str]:
        failures = []
        for number, config in enumerate(self.configs, start=1):
            _log.info("run %d of %d: %s", number, len(self.configs), config.run_folder)
            try:
                train(config, self.progress)
            except (SepgroupyError, OSError) as error:
                _log.warning("%s has failed: %s", config.run_folder, error)
                failures.append(f"{config.run_folder}: {error}")
        return failures

    def checkpoint(self) -> Any:
        """Tell submitit to queue the same runs when a job has to stop: finished ones return at once."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _submit(
    configs: Sequence[RunConfig], folder: Path, cluster: str, jobs: int, parameters: Mapping[str, Any]
) -> list[str]:
    """Divide the runs among jobs, wait for them, and return a line for each run or job that failed."""
    try:
        from submitit import AutoExecutor
        from submitit.core.utils import UncompletedJobError
    except ModuleNotFoundError:
        raise ArgumentError(f"cluster (={cluster!r}) needs submitit: pip install 'sepgroupy[sweep]'") from None
    if jobs < 1:
        raise ArgumentError(f"jobs (={jobs}) must be at least 1")
    try:
        executor = AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**{"name": "sepgroupy", "timeout_min": 24 * 60} | dict(parameters))
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        raise ArgumentError(f"cluster (={cluster!r}) with parameters (={dict(parameters)}): {error}") from None
    with executor.batch():
        submitted = [executor.submit(_Share(part)) for n in range(jobs) if (part := configs[n::jobs])]
    failures: list[str] = []
    for job in submitted:
        try:
            failures += job.result()
        except UncompletedJobError as error:
            failures.append(f"job {job.job_id}: {str(error).splitlines()[0]} (its log: {job.paths.stderr})")
    return failures
