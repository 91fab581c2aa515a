"""Training runs: a :class:`RunConfig` in, a folder and a :class:`Result` out."""

from __future__ import annotations

from ._compress_run import CompressedRun as CompressedRun
from ._compress_run import compress_run as compress_run
from ._config import PAPER as PAPER
from ._config import RECIPES as RECIPES
from ._config import RunConfig as RunConfig
from ._config import milestones_every as milestones_every
from ._data import load_data as load_data
from ._engine import evaluate as evaluate
from ._engine import initial_model as initial_model
from ._engine import load_model as load_model
from ._engine import train as train
from ._export_run import export_run as export_run
from ._folder import CONFIG as CONFIG
from ._folder import RESULT as RESULT
from ._folder import Result as Result
from ._folder import read_config as read_config
from ._folder import read_result as read_result
from ._parallel import is_first as is_first
from ._score import Score as Score
from ._score import predict as predict
from ._score import score as score
from ._states import require_free as require_free
from ._states import save_initial_state as save_initial_state
from ._states import save_run_weights as save_run_weights
from ._states import save_trained_state as save_trained_state

__all__ = [
    "CONFIG",
    "PAPER",
    "RECIPES",
    "RESULT",
    "CompressedRun",
    "Result",
    "RunConfig",
    "Score",
    "compress_run",
    "evaluate",
    "export_run",
    "initial_model",
    "is_first",
    "load_data",
    "load_model",
    "milestones_every",
    "predict",
    "read_config",
    "read_result",
    "require_free",
    "save_initial_state",
    "save_run_weights",
    "save_trained_state",
    "score",
    "train",
]
