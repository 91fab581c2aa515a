"""Training on any image data set: from a configuration to the folder of a run and its :class:`Result`.

This package has the training loop, its fault tolerance, the folder of a run, evaluation, prediction and export. It
has no experiment: a protocol, published values and names of networks belong to a package above this one, which
subclasses :class:`TrainingConfig` (see ``sepgroupy.paper``).
"""

from __future__ import annotations

from ._config import TrainingConfig as TrainingConfig
from ._distributed import is_first as is_first
from ._engine import evaluate as evaluate
from ._engine import initial_model as initial_model
from ._engine import load_model as load_model
from ._engine import train as train
from ._export_run import export_run as export_run
from ._fields import STRICT as STRICT
from ._fields import Count as Count
from ._fields import CountFrom0 as CountFrom0
from ._fields import Positive as Positive
from ._fields import Text as Text
from ._fields import raises_argument_error as raises_argument_error
from ._image_config import IMAGE_RECIPES as IMAGE_RECIPES
from ._image_config import ImageConfig as ImageConfig
from ._image_evaluation import ImageEvaluation as ImageEvaluation
from ._image_evaluation import evaluate_images as evaluate_images
from ._image_predict import ImagePredictor as ImagePredictor
from ._image_predict import Prediction as Prediction
from ._image_predict import PredictionWriter as PredictionWriter
from ._image_predict import require_readable as require_readable
from ._image_scores import METRIC_NAMES as METRIC_NAMES
from ._metrics import Score as Score
from ._metrics import predict as predict
from ._metrics import score as score
from ._objective import Classification as Classification
from ._objective import Objective as Objective
from ._objective import Regression as Regression
from ._objective import Segmentation as Segmentation
from ._random import HELD_OUT as HELD_OUT
from ._random import generator as generator
from ._run_data import MemoryData as MemoryData
from ._run_data import RunData as RunData
from ._run_directory import CHECKPOINT as CHECKPOINT
from ._run_directory import CONFIG as CONFIG
from ._run_directory import RESULT as RESULT
from ._run_directory import Result as Result
from ._run_directory import read_config as read_config
from ._run_directory import read_result as read_result
from ._tasks import parse_config as parse_config
from ._tasks import register_tasks as register_tasks

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "HELD_OUT",
    "IMAGE_RECIPES",
    "METRIC_NAMES",
    "RESULT",
    "STRICT",
    "Classification",
    "Count",
    "CountFrom0",
    "ImageConfig",
    "ImageEvaluation",
    "ImagePredictor",
    "MemoryData",
    "Objective",
    "Positive",
    "Prediction",
    "PredictionWriter",
    "Regression",
    "Result",
    "RunData",
    "Score",
    "Segmentation",
    "Text",
    "TrainingConfig",
    "evaluate",
    "evaluate_images",
    "export_run",
    "generator",
    "initial_model",
    "is_first",
    "load_model",
    "parse_config",
    "predict",
    "raises_argument_error",
    "read_config",
    "read_result",
    "register_tasks",
    "require_readable",
    "score",
    "train",
]
