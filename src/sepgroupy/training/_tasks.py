"""The configuration class of each task, so that a stored run is read as the class that wrote it."""

from __future__ import annotations

import importlib

from ..errors import ArgumentError
from ._config import TrainingConfig
from ._fields import parse_object

_HOMES = {
    **dict.fromkeys(("rotmnist", "cifar10"), "sepgroupy.paper"),
    **dict.fromkeys(("classification", "regression", "segmentation"), "sepgroupy.training"),
}
"""The packages whose import registers the configuration of a task, so that a stored run finds it."""

_CLASSES: dict[str, type[TrainingConfig]] = {}


def register_tasks(cls: type[TrainingConfig], *tasks: str) -> None:
    """Let :func:`parse_config` read configurations of these tasks as this class."""
    _CLASSES.update(dict.fromkeys(tasks, cls))


def parse_config(text: str) -> TrainingConfig:
    """Read what :meth:`TrainingConfig.to_json` wrote, as the class of its task.

    Raises:
        ArgumentError: the text is not a JSON object, its task is unknown, or a value is out of range.
    """
    values = parse_object(text)
    task = values.get("task")
    if isinstance(task, str) and task in _HOMES:
        importlib.import_module(_HOMES[task])
    if not isinstance(task, str) or task not in _CLASSES:
        raise ArgumentError(f"task (={task!r}) must be one of {', '.join(sorted(_HOMES | _CLASSES))}")
    return _CLASSES[task].from_values(values)
