"""What a run is: one frozen value that says everything which decides its outcome."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import ArgumentError
from ..models import published_model_names

# The paper's training (sections 4.1 and 4.2), task by task.
PAPER: dict[str, dict[str, Any]] = {
    "rotmnist": {
        "model": "gc-p4cnn",
        "data": "digits",
        "epochs": 50,
        "batch_size": 256,
        "test_batch_size": 256,
        "optimizer": "adam",
        "lr": 0.01,
        "momentum": 0.0,
        "weight_decay": 1e-5,
        "milestones": (40,),
        "log_every": 50,
    },
    "cifar10": {
        "model": "gc-p4m-resnet44",
        "data": "cifar10",
        "epochs": 300,
        "batch_size": 128,
        "test_batch_size": 128,
        "optimizer": "sgd",
        "lr": 0.05,
        "momentum": 0.9,
        "weight_decay": 1e-5,
        "milestones": (50, 100, 150),
        "log_every": 50,
    },
}

_NETWORKS = {"rotmnist": "cnn", "cifar10": "resnet"}  # what the names of a task's networks have in common

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
STRATEGIES = ("auto", "ddp")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the outcome of a training run; :meth:`for_task` fills in the paper's values.

    Args:
        task: ``"rotmnist"`` or ``"cifar10"``.
        model: a name of :func:`sepgroupy.models.published_model_names`.
        width: channels of the first layers, None for the published widths. The stages of a ResNet then have
            width, 2·width and 4·width channels.
        data: where the pictures come from: ``"digits"``, ``"amat"`` or ``"idx"`` for rotmnist, ``"cifar10"`` or
            ``"synthetic"`` for cifar10.
        data_path: the folder of their files; None for the sources without, and to have CIFAR-10 fetched into ``data``.
        samples: train on the first so many pictures only, None for all.
        crop: move each training picture by up to 4 pixels, zeros coming in.
        hflip: mirror each training picture left to right with probability ½.
        epochs: passes over the training pictures.
        batch_size: pictures a training step.
        test_batch_size: pictures a step of the evaluation.
        optimizer: ``"adam"`` or ``"sgd"``.
        lr: learning rate of the first epoch.
        warmup: the learning rate rises to that, in equal parts a step, over so many epochs.
        clip: gradients longer than this are shortened to it, all parameters taken together; None for any length.
        momentum: of SGD; Adam has none.
        weight_decay: factor of the squared norm's gradient.
        milestones: the learning rate is multiplied by 0.1 after each of these epochs.
        log_every: the test set is evaluated every so many epochs, and always at the end.
        precision: ``"32-true"``, or ``"16-mixed"`` or ``"bf16-mixed"`` for the training steps.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        devices: processes on each machine, one for each of its devices; together they share every batch.
        nodes: machines.
        strategy: ``"ddp"``, distributed data parallel, or ``"auto"``, which is that if there is more than one process.
        sync_batchnorm: take the statistics of batch norm from the whole batch, not from each process's part.
        weights: the folder of a run, or a file with the state dict of such a network, whose parameters are those to
            start from; None to draw them.
        seed: of the initial parameters, the order of the pictures and their augmentation.
        init: how the parameters of group convolutions are drawn, ``"published"`` or ``"variance"``, see
            :class:`sepgroupy.nn.GroupConv2d`. A stored configuration without this field is of ``"variance"``.
        folder: where the run is kept, None for ``runs/<task>-<model>-<digest of this configuration>``.

    Raises:
        ArgumentError: a value cannot be right.
    """

    task: str
    model: str
    data: str
    epochs: int
    batch_size: int
    test_batch_size: int
    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    milestones: tuple[int, ...]
    log_every: int
    width: int | None = None
    data_path: str | None = None
    samples: int | None = None
    crop: bool = False
    hflip: bool = False
    precision: str = "32-true"
    device: str = "auto"
    seed: int = 1
    warmup: int = 0
    clip: float | None = None
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    sync_batchnorm: bool = False
    weights: str | None = None
    folder: str | None = None
    init: str = "published"

    @classmethod
    def for_task(cls, task: str, **overrides: Any) -> RunConfig:
        """Return the paper's configuration of a task; an override that is None leaves the paper's value.

        >>> RunConfig.for_task("rotmnist", epochs=2).milestones
        (40,)

        Raises:
            ArgumentError: the task or a name is unknown, or a value cannot be right.
        """
        if task not in PAPER:
            raise ArgumentError(f"task (={task!r}) must be one of {', '.join(PAPER)}")
        given = {name: value for name, value in overrides.items() if value is not None}
        return cls._from_fields({"task": task} | PAPER[task] | given)

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        """Read what :meth:`to_json` wrote.

        Raises:
            ArgumentError: the text is no JSON object of these fields, or a value cannot be right. A field with a
                default may be missing: it is younger than the file.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArgumentError(f"the configuration is no JSON: {error}") from None
        if not isinstance(values, dict):
            raise ArgumentError(f"the configuration must be a JSON object, not {type(values).__name__}")
        return cls._from_fields({"init": "variance"} | values)

    @classmethod
    def _from_fields(cls, values: dict[str, Any]) -> RunConfig:
        known = {field.name for field in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ArgumentError(f"unknown setting {unknown[0]!r}: a run has {', '.join(sorted(known))}")
        if isinstance(values.get("milestones"), list):  # JSON has no tuples
            values = values | {"milestones": tuple(values["milestones"])}
        try:
            return cls(**values)
        except TypeError as error:  # a field without default is missing
            raise ArgumentError(f"the configuration is incomplete: {error}") from None

    def to_json(self) -> str:
        """Return all fields as a JSON object, for :meth:`from_json`."""
        return json.dumps(asdict(self), indent=2)

    def __post_init__(self) -> None:
        for name, (holds, wanted) in _RULES.items():
            value = getattr(self, name)
            if not holds(value):
                raise ArgumentError(f"{name} (={value!r}) must be {wanted}")
        fitting = [name for name in published_model_names() if _NETWORKS[self.task] in name]
        if self.model not in fitting:
            raise ArgumentError(f"model (={self.model!r}) must be one of {', '.join(fitting)} for {self.task}")

    @property
    def run_folder(self) -> Path:
        """The folder of the run; without ``folder``, equal configurations share one and others do not."""
        if self.folder is not None:
            return Path(self.folder)
        # Of what is not as usual alone, so that a later field leaves the names as they are.
        usual = {field.name: field.default for field in fields(self)} | PAPER[self.task] | {"init": "variance"}
        unusual = {name: value for name, value in asdict(self).items() if value != usual[name]}
        digest = hashlib.sha256(json.dumps(unusual, sort_keys=True).encode()).hexdigest()[:8]
        return Path("runs") / f"{self.task}-{self.model}-{digest}"


def _one_of(*choices: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: isinstance(value, str) and value in choices, f"one of {', '.join(choices)}"


def _is_whole(value: object, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**32


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_increasing(values: object) -> bool:
    return (
        isinstance(values, tuple)
        and all(_is_whole(value) for value in values)
        and all(a < b for a, b in pairwise(values))
    )


_COUNT = _is_whole, "a whole number in 1..2³²-1"
_OPTIONAL_COUNT = (lambda value: value is None or _is_whole(value)), "a whole number in 1..2³²-1, or None"
_OPTIONAL_TEXT = (lambda value: value is None or (isinstance(value, str) and value != "")), "a path, or None"
_SWITCH = (lambda value: isinstance(value, bool)), "True or False"

_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "task": _one_of(*PAPER),
    "model": ((lambda value: isinstance(value, str)), "the name of a model"),
    "width": _OPTIONAL_COUNT,
    "data": ((lambda value: isinstance(value, str)), "the name of a source"),
    "data_path": _OPTIONAL_TEXT,
    "samples": _OPTIONAL_COUNT,
    "crop": _SWITCH,
    "hflip": _SWITCH,
    "epochs": _COUNT,
    "batch_size": _COUNT,
    "test_batch_size": _COUNT,
    "optimizer": _one_of("adam", "sgd"),
    "lr": ((lambda value: _is_number(value) and value > 0), "a positive number"),
    "momentum": ((lambda value: _is_number(value) and 0 <= value < 1), "in [0, 1)"),
    "weight_decay": ((lambda value: _is_number(value) and value >= 0), "a number from 0"),
    "milestones": (_is_increasing, "increasing whole numbers from 1"),
    "log_every": _COUNT,
    "precision": _one_of(*PRECISIONS),
    "device": _one_of(*DEVICES),
    "seed": ((lambda value: _is_whole(value, 0)), "a whole number in 0..2³²-1"),
    "warmup": ((lambda value: _is_whole(value, 0)), "a whole number in 0..2³²-1"),
    "clip": ((lambda value: value is None or (_is_number(value) and value > 0)), "a positive number, or None"),
    "devices": _COUNT,
    "nodes": _COUNT,
    "strategy": _one_of(*STRATEGIES),
    "sync_batchnorm": _SWITCH,
    "weights": _OPTIONAL_TEXT,
    "folder": _OPTIONAL_TEXT,
    "init": _one_of("published", "variance"),
}
