"""The experiments of Lengyel & van Gemert (ICIP 2021): protocol, recipes, published results, sweeps and the report.

This package has what is specific to these experiments: the rotated MNIST data, the settings of each task, the paper's
figures, the published grids (``sweep``), the comparison with the paper (``report``) and the demonstration (``demo``).
Code for any image data set belongs to ``sepgroupy.training``, which may not import this package.
"""

from __future__ import annotations

from ._compress_run import CompressedRun as CompressedRun
from ._compress_run import compress_run as compress_run
from ._config import PAPER as PAPER
from ._config import RECIPES as RECIPES
from ._config import RunConfig as RunConfig
from ._config import milestones_every as milestones_every
from ._config import read_run_config as read_run_config
from ._data import load_data as load_data
from ._digits import load_digits as load_digits
from ._idx import load_idx as load_idx
from ._published import PAPER_RESULTS as PAPER_RESULTS
from ._published import PaperResult as PaperResult
from ._rotmnist import load_rotmnist as load_rotmnist
from ._states import require_free as require_free
from ._states import save_initial_state as save_initial_state
from ._states import save_run_weights as save_run_weights
from ._states import save_trained_state as save_trained_state
from ._tables import CostRow as CostRow
from ._tables import cost_table as cost_table
from ._tables import paper_models as paper_models
from ._tables import to_csv as to_csv
from ._tables import to_markdown as to_markdown

__all__ = [
    "PAPER",
    "PAPER_RESULTS",
    "RECIPES",
    "CompressedRun",
    "CostRow",
    "PaperResult",
    "RunConfig",
    "compress_run",
    "cost_table",
    "load_data",
    "load_digits",
    "load_idx",
    "load_rotmnist",
    "milestones_every",
    "paper_models",
    "read_run_config",
    "require_free",
    "save_initial_state",
    "save_run_weights",
    "save_trained_state",
    "to_csv",
    "to_markdown",
]
