"""The configuration of a run: one frozen value that holds everything which decides the outcome."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

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

# What differs in a recipe for lower errors, chosen on held-out training images; everything else is as in the paper.
MODERN: dict[str, dict[str, Any]] = {
    "rotmnist": {
        "epochs": 100,
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "schedule": "cosine",
        "warmup": 2,
        "rotation": 180.0,
        "shift": 0.04,
        "scale": 0.1,
        "label_smoothing": 0.05,
        "ema": 0.99,
    },
    "cifar10": {
        "epochs": 200,
        "lr": 0.1,
        "weight_decay": 5e-4,
        "schedule": "cosine",
        "warmup": 5,
        "crop": 4,
        "hflip": True,
        "label_smoothing": 0.1,
        "ema": 0.999,
    },
}

RECIPES = {"paper": PAPER, "modern": {task: PAPER[task] | MODERN[task] for task in PAPER}}
"""Values of all fields by recipe and task; a field that is missing has its default."""

# Channels of the first layer of the published networks. That of p4m-resnet44 is missing: its stages have 11, 23 and 45
# channels, those of width 11 have 11, 22 and 44.
_WIDTHS = {
    "z2cnn": 20, "c-z2cnn": 57, "p4cnn": 10, "g-p4cnn-small": 10, "g-p4cnn": 17, "gc-p4cnn-small": 10, "gc-p4cnn": 30,
    "resnet44": 32, "g-p4m-resnet44": 19, "gc-p4m-resnet44": 28,
}  # fmt: skip

_NETWORKS = {"rotmnist": "cnn", "cifar10": "resnet"}  # a part of the names of all networks of a task

T = TypeVar("T")


def _increasing(values: tuple[int, ...]) -> tuple[int, ...]:
    if not all(a < b for a, b in pairwise((0, *values))):
        raise PydanticCustomError("increasing", "Input should be increasing whole numbers from 1")
    return values


def _padding(value: object) -> object:
    """Read what older versions wrote: True for a padding of 4 pixels, False for none."""
    return 4 * value if isinstance(value, bool) else value


def milestones_every(step: int, epochs: int) -> tuple[int, ...]:
    """Return the milestones of a learning rate that drops after every ``step`` epochs of a training of ``epochs``.

    >>> milestones_every(20, 50), milestones_every(40, 50), milestones_every(40, 10)
    ((20, 40), (40,), (40,))

    Raises:
        ArgumentError: step is not positive.
    """
    if step < 1:
        raise ArgumentError(f"step (={step}) must be at least 1")
    return tuple(range(step, epochs, step)) or (step,)


Count = Annotated[int, Field(ge=1, lt=2**32)]
CountFrom0 = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
Text = Annotated[str, Field(min_length=1)]
Epochs = Annotated[tuple[Annotated[int, Field(strict=True)], ...], Field(strict=False), AfterValidator(_increasing)]


def _raises_argument_error(cls: type[T]) -> type[T]:
    """Let the constructor of a pydantic dataclass raise ArgumentError in place of pydantic's error."""
    validate = cls.__init__

    @functools.wraps(validate)
    def construct(self: T, **values: Any) -> None:
        try:
            validate(self, **values)
        except ValidationError as error:
            raise _refusal(error, values) from None

    cls.__init__ = construct  # type: ignore[method-assign, assignment]
    return cls


def _refusal(error: ValidationError, values: Mapping[str, Any]) -> ArgumentError:
    """Return the first problem that pydantic has found as an error that names argument, value and remedy."""
    first = error.errors(include_url=False)[0]
    if isinstance(known := first.get("ctx", {}).get("error"), ArgumentError):
        return known
    name, *place = first["loc"]
    if first["type"] == "unexpected_keyword_argument":
        known_names = ", ".join(sorted(field.name for field in fields(RunConfig)))
        return ArgumentError(f"unknown setting {name!r}: a run has {known_names}")
    if name not in values:
        return ArgumentError(f"the configuration is incomplete: {name} is missing")
    named = f"{name}{''.join(f'[{index}]' for index in place)} (={first['input']!r})"
    return ArgumentError(f"{named} {re.sub('^.*? should ', 'must ', first['msg'])}")


@_raises_argument_error
@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True))
class RunConfig:
    """Everything that decides the outcome of a training run; :meth:`for_task` fills in the paper's values.

    The fields are validated, and the options of ``sepgroupy train`` are made from them.

    Raises:
        ArgumentError: a value cannot be right.
    """

    task: Literal["rotmnist", "cifar10"]
    """The task, and with it the paper's values of all other fields."""
    model: str
    """Name of a published network of the task, such as z2cnn, gc-p4cnn, resnet44 or gc-p4m-resnet44."""
    data: str
    """Source of the images. For rotmnist: digits (bundled), amat or idx. For cifar10: cifar10 or synthetic."""
    epochs: Count
    """Passes over the training images."""
    batch_size: Count
    """Images in a training step."""
    test_batch_size: Count
    """Images in a step of the evaluation."""
    optimizer: Literal["adam", "sgd", "adamw"]
    """Optimizer. adamw decouples the weight decay from the gradient."""
    lr: Positive
    """Learning rate of the first epoch."""
    momentum: Annotated[FiniteFloat, Field(ge=0, lt=1)]
    """Momentum of SGD; Adam has none."""
    weight_decay: Annotated[FiniteFloat, Field(ge=0)]
    """Factor of the parameters that is added to the gradient; with adamw, that a step of lr 1 subtracts from them."""
    milestones: Epochs
    """Of schedule step: the learning rate is multiplied by 0.1 after each of these epochs."""
    log_every: Count
    """Epochs between two evaluations. The last epoch is always evaluated."""
    width: Count | None = None
    """Channels of the first layers; None for the published widths. A ResNet has width, 2·width and 4·width channels."""
    data_path: Text | None = None
    """Folder of the files that data names. None for sources without files, and to download CIFAR-10 into data/."""
    samples: Count | None = None
    """Train on the first images only, this many; None for all."""
    crop: Annotated[int, Field(ge=0, le=32), BeforeValidator(_padding)] = 0
    """Pad each training image with this many zeros on every side and crop it at random to its size. The paper: 4."""
    hflip: bool = False
    """Flip each training image left to right with probability 1/2."""
    rotation: Annotated[FiniteFloat, Field(ge=0, le=180)] = 0.0
    """Rotate each training image by a random angle up to this many degrees; 180 for every orientation."""
    shift: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.0
    """Shift each training image at random by up to this part of its height and width."""
    scale: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 0.0
    """Scale each training image by a random factor in 1 ± scale."""
    label_smoothing: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 0.0
    """Part of the target probability that is spread over all classes. It is in train_loss, not in the test loss."""
    schedule: Literal["step", "cosine"] = "step"
    """Learning rate: step drops it at the milestones, cosine lets it fall to 0 along half a cosine wave."""
    ema: Annotated[FiniteFloat, Field(gt=0, lt=1)] | None = None
    """Evaluate an exponential moving average of parameters and batch statistics with this decay a step. None: no."""
    validation: CountFrom0 = 0
    """Training images to hold out, drawn by seed. Before the last epoch they stand in for the test set."""
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    """Precision of the training steps."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device."""
    seed: CountFrom0 = 1
    """Seed of the initial parameters, the order of the images and their augmentation."""
    warmup: CountFrom0 = 0
    """Epochs over which the learning rate rises to lr, by the same amount in each step."""
    clip: Positive | None = None
    """Largest norm of the gradient of all parameters together; a longer one is scaled down. None for no limit."""
    devices: Count = 1
    """Processes on each machine, one for each of its devices. All processes share every batch."""
    nodes: Count = 1
    """Machines."""
    strategy: Literal["auto", "ddp"] = "auto"
    """How several processes train: ddp (distributed data parallel), or auto, which selects it for more than one."""
    sync_batchnorm: bool = False
    """Compute the statistics of batch norm from the whole batch, not from each process's part."""
    weights: Text | None = None
    """Start from these parameters: the folder of a run, or a file with a state dict. None to draw them."""
    folder: Text | None = None
    """Folder of the run; None for runs/<task>-<model>-<digest of this configuration>."""
    init: Literal["published", "variance"] = "published"
    """How the parameters of group convolutions are drawn. A stored configuration without this field means variance."""

    @classmethod
    def for_task(cls, task: str, recipe: str = "paper", **overrides: Any) -> RunConfig:
        """Return the configuration of a task by a recipe; an override that is None leaves the recipe's value.

        Args:
            task: ``"rotmnist"`` or ``"cifar10"``.
            recipe: ``"paper"``, or ``"modern"`` for AdamW or SGD with a cosine schedule, more augmentation, label
                smoothing and averaged weights.
            **overrides: values of other fields.

        >>> RunConfig.for_task("rotmnist", epochs=2).milestones
        (40,)

        Raises:
            ArgumentError: the task, the recipe or a name is unknown, or a value cannot be right.
        """
        if recipe not in RECIPES:
            raise ArgumentError(f"recipe (={recipe!r}) must be one of {', '.join(RECIPES)}")
        given = {name: value for name, value in overrides.items() if value is not None}
        usual = RECIPES[recipe].get(task, {}) if isinstance(task, str) else {}
        return cls(task=task, **(usual | given))  # type: ignore[arg-type]  # validated

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
        values.setdefault("init", "variance")
        return cls(**values)

    def to_json(self) -> str:
        """Return all fields as a JSON object, for :meth:`from_json`."""
        return json.dumps(asdict(self), indent=2)

    def __post_init__(self) -> None:
        fitting = [name for name in published_model_names() if _NETWORKS[self.task] in name]
        if self.model not in fitting:
            raise ArgumentError(f"model (={self.model!r}) must be one of {', '.join(fitting)} for {self.task}")

    @property
    def run_folder(self) -> Path:
        """The folder of the run; without ``folder``, equal configurations share one and others do not."""
        if self.folder is not None:
            return Path(self.folder)
        # A digest of the values that differ from the usual ones only, so that a new field changes no folder's name.
        usual = {field.name: field.default for field in fields(self)} | PAPER[self.task] | {"init": "variance"}
        unusual = {name: value for name, value in asdict(self).items() if value != usual[name]}
        if self.crop == 4:
            unusual["crop"] = True  # as in the versions that knew no other padding
        digest = hashlib.sha256(json.dumps(unusual, sort_keys=True).encode()).hexdigest()[:8]
        return Path("runs") / f"{self.task}-{self.model}-{digest}"

    @property
    def canonical(self) -> RunConfig:
        """The configuration of the same training with the usual name of its network.

        A network that has the width of a published one is named as that one and has no width.

        >>> config = RunConfig.for_task("rotmnist", model="g-p4cnn", width=10).canonical
        >>> config.model, config.width
        ('g-p4cnn-small', None)
        """
        if self.width is None:
            return self
        kind = self.model.removesuffix("-small")
        names = {width: name for name, width in _WIDTHS.items() if name.removesuffix("-small") == kind}
        if self.width in names:
            return replace(self, model=names[self.width], width=None)
        return replace(self, model=kind)
