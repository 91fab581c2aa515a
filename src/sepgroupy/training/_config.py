"""The settings that every run has, as one frozen value that determines the result."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import torch
from pydantic import BeforeValidator, Field, FiniteFloat
from pydantic.dataclasses import dataclass

from ..errors import ArgumentError
from ._fields import STRICT, Count, CountFrom0, Epochs, Positive, Text, parse_object, raises_argument_error

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ._run_data import RunData

_FIELDS = "__pydantic_fields__"


def _padding(value: object) -> object:
    """Read what older versions wrote: True for a padding of 4 pixels, False for none."""
    return 4 * value if isinstance(value, bool) else value


@raises_argument_error
@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingConfig:
    """The settings that every run has. A subclass adds those of its data and networks, and builds both.

    Fields are validated. They become the options of ``sepgroupy train``.

    Raises:
        ArgumentError: a value is out of range.
    """

    recipes: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {}
    """Values of the fields by recipe and task, the usual recipe first; a field that is missing has its default."""

    task: str
    """The task."""
    model: str
    """Name of the network."""
    epochs: Count
    """Passes over the training images."""
    batch_size: Count
    """Images in a training step."""
    test_batch_size: Count
    """Images in a step of the evaluation."""
    optimizer: Literal["adam", "sgd", "adamw"]
    """Optimizer. adamw decouples the weight decay from the gradient."""
    lr: Positive
    """Base learning rate, before warmup and schedule."""
    momentum: Annotated[FiniteFloat, Field(ge=0, lt=1)]
    """Momentum of SGD; Adam has none."""
    weight_decay: Annotated[FiniteFloat, Field(ge=0)]
    """Factor of the parameters that is added to the gradient; with adamw, that a step of lr 1 subtracts from them."""
    milestones: Epochs
    """Of schedule step: the learning rate is multiplied by 0.1 after each of these epochs."""
    log_every: Count
    """Epochs between two evaluations. The last epoch is always evaluated."""
    data_path: Text | None = None
    """Path of the data."""
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
    elastic: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.0
    """Deform each training image by smooth random displacements of this deviation, in parts of its height and width."""
    label_smoothing: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 0.0
    """Part of the target probability that is spread over all classes. It is in train_loss, not in the test loss."""
    schedule: Literal["step", "cosine"] = "step"
    """Learning rate: step drops it at the milestones, cosine lets it fall to 0 along half a cosine wave."""
    ema: Annotated[FiniteFloat, Field(gt=0, lt=1)] | None = None
    """Evaluate an exponential moving average of parameters with this decay a step, smaller at first. None: no."""
    select: Literal["last", "best"] = "last"
    """Parameters to test and to save: those of the last epoch, or of the lowest error on the validation images."""
    patience: Count | None = None
    """Stop after this many epochs without a lower error on the validation images. None to do all epochs."""
    accumulate: Count = 1
    """Parts of a batch that are computed one after another, to need less memory; their gradients are added."""
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    """Precision of the training steps."""
    compile: bool = False
    """Compile the network of the training steps (torch.compile), which takes a minute or more at the start."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device."""
    seed: CountFrom0 = 1
    """Seed of the initial parameters, the order of the images and their augmentation."""
    warmup: CountFrom0 = 0
    """Epochs over which the learning rate rises to lr, by the same amount in each step; at most a third of all."""
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
    """Folder of the run."""

    @classmethod
    def for_task(cls: type[C], task: str, recipe: str | None = None, **overrides: Any) -> C:
        """Return the configuration of a task by a recipe; an override that is None leaves the recipe's value.

        Args:
            task: the task.
            recipe: a name of ``recipes``; None for the usual one.
            **overrides: values of other fields.

        Raises:
            ArgumentError: the task, the recipe or a name is unknown, or a value is out of range.
        """
        recipe = next(iter(cls.recipes)) if recipe is None else recipe
        if recipe not in cls.recipes:
            raise ArgumentError(f"recipe (={recipe!r}) must be one of {', '.join(cls.recipes)}")
        given = {name: value for name, value in overrides.items() if value is not None}
        usual = cls.recipes[recipe].get(task, {}) if isinstance(task, str) else {}
        return cls(**{"task": task, **usual, **given})

    @classmethod
    def describe(cls, name: str) -> str:
        """Return the description of a field, the text below it in the source."""
        texts = [known[name].description for base in cls.__mro__ if name in (known := vars(base).get(_FIELDS, {}))]
        return " ".join(next(filter(None, texts), "").split())  # on one line

    @classmethod
    def from_json(cls: type[C], text: str) -> C:
        """Read what :meth:`to_json` wrote.

        Raises:
            ArgumentError: the text is not a JSON object of these fields, or a value is out of range. A field with a
                default may be missing: it is younger than the file.
        """
        return cls.from_values(parse_object(text))

    @classmethod
    def from_values(cls: type[C], values: dict[str, Any]) -> C:
        """Return the configuration of stored values."""
        return cls(**values)

    def to_json(self) -> str:
        """Return all fields as a JSON object, for :meth:`from_json`."""
        return json.dumps(asdict(self), indent=2)

    @property
    def run_folder(self) -> Path:
        """The folder of the run."""
        raise NotImplementedError

    def learning_rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 0 over the whole run; an epoch has ``steps`` steps."""
        if self.schedule == "cosine":
            factor = (1 + math.cos(math.pi * step / (self.epochs * steps))) / 2
        else:
            factor = float(0.1 ** bisect_right(self.milestones, step // steps))
        rising = min(self.warmup * steps, self.epochs * steps / 3)
        return self.lr * factor * min(1.0, (step + 1) / rising if rising else 1.0)

    def input_shape(self, facts: Any = None) -> tuple[int, ...]:
        """Channels, rows and columns of an image, as the network reads it."""
        raise NotImplementedError

    def export_metadata(self, facts: Any = None) -> dict[str, str]:
        """Properties that an exported file names."""
        return {"model": self.model}

    @property
    def least_batch(self) -> int:
        """The fewest images that a training step of the network can normalize."""
        return 1

    def load_data(self, workers: int | None = None, folder: Path | None = None, progress: bool = False) -> RunData:
        """Read the images.

        Args:
            workers: processes that read them, if they are not in memory.
            folder: the folder of the run, if it is another than ``run_folder``.
            progress: draw a progress bar.
        """
        raise NotImplementedError

    def read_facts(self, folder: Path) -> Any:
        """Return the ``facts`` of the data from the folder of a run; None if the configuration has them."""
        return None

    def pretrained_model(self, facts: Any = None) -> nn.Module | None:
        """Build the network with the parameters that ``weights`` names, if that is neither a run nor a state dict."""
        return None

    def expected_state(self, facts: Any = None) -> Mapping[str, Tensor]:
        """Return a state dict with the names and shapes of the network's; nothing is allocated."""
        with torch.device("meta"):
            return self.build_model(facts).state_dict()

    def build_model(self, facts: Any = None) -> nn.Module:
        """Build the network; its parameters are drawn from torch's random numbers.

        Args:
            facts: of the data, see :class:`RunData`.
        """
        raise NotImplementedError


C = TypeVar("C", bound=TrainingConfig)
