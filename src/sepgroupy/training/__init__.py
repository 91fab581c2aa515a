"""Training runs: a :class:`RunConfig` in, a folder and a :class:`Result` out."""

from __future__ import annotations

from ._config import RunConfig as RunConfig
from ._engine import evaluate as evaluate
from ._engine import load_model as load_model
from ._engine import train as train
from ._folder import Result as Result
from ._parallel import is_first as is_first
from ._score import Score as Score
from ._score import predict as predict
from ._score import score as score

__all__ = ["Result", "RunConfig", "Score", "evaluate", "is_first", "load_model", "predict", "score", "train"]
