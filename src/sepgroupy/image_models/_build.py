"""A network for images by name, and the size of image at which it is exactly equivariant."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike, fspath

import torch
from torch import nn

from ..errors import ArgumentError
from ..groups import PointGroup, as_group
from ..models import DEFAULT_GROUPS, check_choice, check_counts
from ._builtin import build_builtin, builtin_size, is_builtin, model_dimension
from ._from_library import LIBRARIES, convert_from_library

TASKS = ("classification", "regression", "segmentation")


@dataclass(frozen=True, eq=False)
class ImageModel:
    """A network and the images that it reads."""

    name: str
    module: nn.Module
    """From (B, channels, input_size, input_size) to (B, outputs), or for masks (B, outputs, input_size, input_size);
    volumes have one more axis."""
    input_size: int
    """Rows and columns, and slices, at which equivariance is exact: the nearest to the size that was asked for."""
    reason: str = ""
    """Why input_size is not that size; empty if it is."""


def build_image_model(
    name: str,
    *,
    channels: int,
    outputs: int,
    size: int,
    group: PointGroup | str | None = None,
    kind: str = "gc",
    match: str = "params",
    task: str = "classification",
    weights: str | PathLike[str] | None = None,
) -> ImageModel:
    """Build a network for images.

    Built in, with an invariant head and equivariant downsampling: ``p4m-resnet`` of three stages (20 layers, the first
    stage of 16 channels), ``p4m-resnet44-w32`` with another number of layers (6n + 2) and of channels; and for masks
    ``p4m-unet``, ``p4m-unet4-w8`` with another depth (3) and width (16). The numbers are those of the plain network of
    the same architecture. ``o-resnet`` (``o-resnet8-w8``) is the ResNet for volumes. ``timm/NAME`` and
    ``torchvision/NAME`` are converted (:func:`sepgroupy.convert`). The names are not those of
    :func:`sepgroupy.models.build_model`: there ``p4m-resnet44`` is the published dense network.

    A classification or regression is invariant, a mask is transformed like its image, exactly at ``input_size``.

    Args:
        name: of the network.
        channels: of the images.
        outputs: classes, or numbers of a regression.
        size: rows and columns of the images, and slices of volumes.
        group: the point group, whatever the name begins with; None for p4m, of volumes O.
        kind: "dense", "g" or "gc", as :class:`sepgroupy.nn.GroupConv2d`; or "plain" for the plain network, to compare.
        match: what is as in the plain network: "width", the channels of each layer; "params" or "macs", the number of
            parameters or multiplications, by one factor of all widths.
        task: "classification", "regression" or "segmentation".
        weights: for networks of timm and torchvision: "pretrained", the name of a set of weights (torchvision's
            ``IMAGENET1K_V2``, timm's tag ``a1_in1k``), or a file with a state dict. The filters are lifted, which needs
            match="width", and kind "dense" or "g" where a convolution is neither 1×1 nor depthwise. A last layer with
            another number of outputs is drawn; the first is adapted to the number of channels.

    Raises:
        ArgumentError: an argument has an unsupported value, the network cannot be converted or has no exact size near
            ``size``, or weights cannot be lifted: the message says why.
        DataError: weights cannot be fetched or read, or do not fit.

    >>> model = build_image_model("p4m-resnet8-w8", channels=1, outputs=3, size=30)
    >>> model.input_size, model.reason
    (32, 'the network halves the image 2 times: its size must be a multiple of 4')
    """
    check_counts(channels=channels, outputs=outputs, size=size)
    check_choice("kind", kind, ("dense", "g", "gc", "plain"))
    check_choice("match", match, ("params", "macs", "width"))
    check_choice("task", task, TASKS)
    if not isinstance(name, str):
        raise ArgumentError(f"model (={name!r}) must be a name")
    dimension = model_dimension(name)
    group = as_group(DEFAULT_GROUPS[dimension] if group is None else group, dimension)
    library = name.partition("/")[0]
    if is_builtin(name, task):
        if weights is not None:
            raise ArgumentError(
                f"weights (={fspath(weights)!r}) are for networks of timm and torchvision: there are none for {name}"
            )
        input_size, reason = builtin_size(name, size)
        model = build_builtin(name, channels, outputs, input_size, group, kind, match)
    elif library in LIBRARIES and "/" in name:
        model, input_size, reason = convert_from_library(
            name, channels, outputs, size, group, kind, match, task, None if weights is None else fspath(weights)
        )
    else:
        raise ArgumentError(
            f"model (={name!r}) is unknown: use p4m-resnet, p4m-resnet44-w32 or the like, for masks p4m-unet, for "
            "volumes o-resnet; or timm/NAME or torchvision/NAME, such as timm/resnet18"
        )
    _check_output(name, model, channels, outputs, input_size, task)
    return ImageModel(name, model, input_size, reason)


@torch.no_grad()
def _check_output(name: str, model: nn.Module, channels: int, outputs: int, size: int, task: str) -> None:
    training = model.training
    found = model.eval()(torch.zeros(1, channels, *(size,) * model_dimension(name)))
    model.train(training)
    wanted = (1, outputs, size, size) if task == "segmentation" else (1, outputs)
    shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
    if shape != wanted:
        raise ArgumentError(f"model (={name!r}) returns {shape} for an image, not {wanted}: it is not for {task}")
