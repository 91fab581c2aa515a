"""Grids of runs: train the missing ones, here or on a cluster, and collect all in one table."""

from __future__ import annotations

from ._presets import preset as preset
from ._runs import Run as Run
from ._runs import find_runs as find_runs
from ._runs import to_csv as to_csv
from ._sweep import TABLE as TABLE
from ._sweep import grid as grid
from ._sweep import sweep as sweep

__all__ = ["TABLE", "Run", "find_runs", "grid", "preset", "sweep", "to_csv"]
