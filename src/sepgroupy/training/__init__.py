"""Training runs: a :class:`RunConfig` in, a folder and a :class:`Result` out."""

from __future__ import annotations

from ._config import RunConfig as RunConfig
from ._config import milestones_every as milestones_every
from ._engine import evaluate as evaluate
from ._engine import initial_model as initial_model
from ._engine import load_model as load_model
from ._engine import train as train
from ._folder import Result as Result
from ._parallel import is_first as is_first
from ._score import Score as Score
from ._score import predict as predict
from ._score import score as score
from ._states import require_free as require_free
from ._states import save_initial_state as save_initial_state
from ._states import save_run_weights as save_run_weights
from ._states import save_trained_state as save_trained_state

__all__ = [
    "Result",
    "RunConfig",
    "Score",
    "evaluate",
    "initial_model",
    "is_first",
    "load_model",
    "milestones_every",
    "predict",
    "require_free",
    "save_initial_state",
    "save_run_weights",
    "save_trained_state",
    "score",
    "train",
]
