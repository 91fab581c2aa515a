"""The settings of a run on user images, and the recipes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass

from ..errors import ArgumentError
from ..groups import PointGroup, as_group
from ..image_models import ImageModel, build_image_model, model_dimension
from ..models import DEFAULT_GROUPS
from ._config import TrainingConfig
from ._fields import STRICT, Count, Text, raises_argument_error
from ._image_facts import ImageFacts, Normalize, Rescale
from ._tasks import register_tasks

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ._run_data import RunData

_log = logging.getLogger(__name__)

_SHARED: dict[str, Any] = {
    "epochs": 50,
    "batch_size": 64,
    "test_batch_size": 64,
    "optimizer": "adamw",
    "lr": 2e-3,
    "momentum": 0.0,
    "weight_decay": 0.01,
    "milestones": (1,),
    "log_every": 1,
    "schedule": "cosine",
    "warmup": 2,
    "select": "best",
    "patience": 15,
}
_MODERN: dict[str, Any] = _SHARED | {
    "hflip": True,
    "vflip": True,
    "rotation": 180.0,
    "shift": 0.05,
    "scale": 0.1,
    "ema": 0.99,
}
_SMOOTHING = {"classification": 0.1, "regression": 0.0, "segmentation": 0.0}

IMAGE_RECIPES = {
    "modern": {task: _MODERN | {"label_smoothing": smoothing} for task, smoothing in _SMOOTHING.items()},
    "plain": {task: _SHARED | {"label_smoothing": 0.0} for task in _SMOOTHING},
}
"""Values of the fields by recipe and task. plain has no augmentation, no label smoothing and no averaged weights."""

_MODELS = {"classification": "p4m-resnet", "regression": "p4m-resnet", "segmentation": "p4m-unet"}
for _values in IMAGE_RECIPES.values():
    for _task, _model in _MODELS.items():
        _values[_task]["model"] = _model


@raises_argument_error
@dataclass(frozen=True, kw_only=True, config=STRICT)
class ImageConfig(TrainingConfig):
    """Everything that decides the outcome of a training on user images; :meth:`for_task` fills in a recipe.

    Raises:
        ArgumentError: a value cannot be right.

    >>> ImageConfig.for_task("segmentation", data_path="cells").model
    'p4m-unet'
    """

    recipes: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = IMAGE_RECIPES

    task: Literal["classification", "regression", "segmentation"]
    """What is predicted: a class, numbers (from a CSV file), or the class of each pixel."""
    model: Text
    """Network: p4m-resnet (or p4m-resnet44-w32: layers, width), for masks p4m-unet, for volumes o-resnet; timm/NAME;
    torchvision/NAME."""
    data_path: Text | None = None
    """Folder of class folders (or images and masks), CSV file of paths and labels, or MedMNIST archive (.npz)."""
    weights: Text | None = None
    """Start from these parameters: folder of a run, state dict, or for timm and torchvision a name, as pretrained."""
    folder: Text | None = None
    """Folder of the run; None for runs/<task>-<model>-<digest of this configuration>."""
    labels: Text | None = None
    """CSV file of paths, relative to data_path, and labels; with the columns split and group if there are such."""
    size: Count | None = None
    """Rows and columns to which images are resized; None if all are square and of one size."""
    group: Text | None = None
    """Point group, such as p4 (rotations by 90°). None for p4m (also reflections), of volumes O (rotations)."""
    kind: Literal["dense", "g", "gc", "plain"] = "gc"
    """Kind of group convolution; plain for the plain network, to compare."""
    match: Literal["params", "macs", "width"] = "params"
    """What is as in the plain network: the number of parameters or multiplications, or the width of each layer."""
    skip_broken: bool = False
    """Leave out files that cannot be read, and name them. Otherwise they are an error before the first epoch."""
    vflip: bool = False
    """Flip each training image upside down with probability 1/2."""
    class_weights: bool = False
    """Weight the loss of each class by the inverse of its number of training images."""
    balanced_sampling: bool = False
    """Draw the training images of an epoch so that all classes are equally frequent."""

    def __post_init__(self) -> None:
        if self.data_path is None:
            raise ArgumentError("data_path is missing: name a folder of images, a CSV file or a MedMNIST archive")
        if self.dimension == 3 and self.crop:
            raise ArgumentError(f"crop (={self.crop}) is for images, and {self.model} reads volumes: use shift")
        for name in ("class_weights", "balanced_sampling"):
            if getattr(self, name) and self.task != "classification":
                raise ArgumentError(f"{name} (=True) needs the task classification, not {self.task}")

    @property
    def run_folder(self) -> Path:
        """The folder of the run; without ``folder``, equal configurations share one and others do not."""
        if self.folder is not None:
            return Path(self.folder)
        usual = {field.name: field.default for field in fields(self)} | IMAGE_RECIPES["modern"][self.task]
        unusual = {name: value for name, value in asdict(self).items() if value != usual[name]}
        digest = hashlib.sha256(json.dumps(unusual, sort_keys=True).encode()).hexdigest()[:8]
        return Path("runs") / f"{self.task}-{self.model.replace('/', '-')}-{digest}"

    @property
    def dimension(self) -> int:
        """The spatial axes of what the network reads: 2 of images, 3 of volumes."""
        return model_dimension(self.model)

    @property
    def point_group(self) -> PointGroup:
        """The point group of the network; of a plain one, that with which it is compared."""
        return as_group(DEFAULT_GROUPS[self.dimension] if self.group is None else self.group, self.dimension)

    def export_metadata(self, facts: Any = None) -> dict[str, str]:
        """Facts that an exported file names; its input are images in 0..1."""
        outputs = json.dumps(facts.classes or facts.target_names, ensure_ascii=False)
        return {
            "model": self.model,
            "task": self.task,
            "group": self.point_group.name,
            "kind": self.kind,
            "outputs": outputs,
        }

    @property
    def least_batch(self) -> int:
        """The fewest images that a training step of the network can normalize."""
        return 2

    def input_shape(self, facts: Any = None) -> tuple[int, ...]:
        """Channels, rows and columns of an image, or channels and three sizes of a volume."""
        return facts.channels, *(facts.input_size,) * self.dimension

    def load_data(self, workers: int | None = None, folder: Path | None = None, progress: bool = False) -> RunData:
        """Open the images in the splits that the folder of the run holds, or in new ones."""
        from ._image_data import open_run_images

        return open_run_images(self, workers, self.run_folder if folder is None else folder, progress)

    def read_facts(self, folder: Path) -> ImageFacts:
        """Read the facts of the data.

        Raises:
            DataError: they are missing or broken.
        """
        return ImageFacts.read(folder)

    def image_model(self, channels: int, outputs: int, size: int, weights: str | None = None) -> ImageModel:
        """Build the network for images that are scaled and normalized."""
        return build_image_model(
            self.model, channels=channels, outputs=outputs, size=size, group=self.group, kind=self.kind,
            match=self.match, task=self.task, weights=weights,
        )  # fmt: skip

    def build_model(self, facts: Any = None) -> nn.Module:
        """Build the network for images in 0..1: it normalizes them, and returns numbers in the units of the targets."""
        return self._whole(self.image_model(facts.channels, facts.outputs, facts.size).module, facts)

    def pretrained_model(self, facts: Any = None) -> nn.Module | None:
        """Build the network with lifted weights of timm or torchvision, if ``weights`` are such."""
        if self.weights is None or Path(self.weights).is_dir() or "/" not in self.model:
            return None
        return self._whole(self.image_model(facts.channels, facts.outputs, facts.size, self.weights).module, facts)

    def expected_state(self, facts: Any = None) -> Mapping[str, Tensor]:
        """Return a state dict with the names and shapes of the network's; conversions cannot be built on "meta"."""
        with torch.random.fork_rng(devices=[]):
            return self.build_model(facts).state_dict()

    def _whole(self, network: nn.Module, facts: ImageFacts) -> nn.Module:
        modules = {"normalize": Normalize(facts.mean, facts.std, self.dimension), "network": network}
        if self.task == "regression":
            modules["rescale"] = Rescale(facts.target_mean, facts.target_std)
        return torch.nn.Sequential(OrderedDict(modules))


register_tasks(ImageConfig, *IMAGE_RECIPES["modern"])
