"""The networks by name: two tables, of the published networks and of others."""

from __future__ import annotations

import inspect
from os import PathLike
from typing import Any

from torch import nn

from ..errors import ArgumentError
from ._resnet import ResNet
from ._rotmnist import RotMNISTNet
from ._unet import UNet
from ._weights import load_weights

_PUBLISHED: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "z2cnn": (RotMNISTNet, {"kind": "plain", "width": 20}),
    "c-z2cnn": (RotMNISTNet, {"kind": "c", "width": 57}),
    "p4cnn": (RotMNISTNet, {"kind": "dense", "width": 10}),
    "g-p4cnn-small": (RotMNISTNet, {"kind": "g", "width": 10}),
    "g-p4cnn": (RotMNISTNet, {"kind": "g", "width": 17}),
    "gc-p4cnn-small": (RotMNISTNet, {"kind": "gc", "width": 10}),
    "gc-p4cnn": (RotMNISTNet, {"kind": "gc", "width": 30}),
    "resnet44": (ResNet, {"kind": "plain", "widths": (32, 64, 128)}),
    "p4m-resnet44": (ResNet, {"kind": "dense", "widths": (11, 23, 45)}),
    "g-p4m-resnet44": (ResNet, {"kind": "g", "widths": (19, 38, 76)}),
    "gc-p4m-resnet44": (ResNet, {"kind": "gc", "widths": (28, 56, 112)}),
}
_NEUTRAL = ("backend", "init", "width", "widths")  # options that do not change the meaning of weights
_VOLUMES: dict[str, Any] = {"kind": "gc", "dimension": 3, "in_channels": 1}
_MODELS = _PUBLISHED | {
    "p4m-unet": (UNet, {"kind": "gc"}),
    "o-unet": (UNet, _VOLUMES | {"width": 4, "depth": 2}),
    "o-resnet8": (
        ResNet,
        _VOLUMES | {"depth": 8, "widths": (4, 8, 16), "head": "invariant", "downsampling": "equivariant"},
    ),
}


def model_names() -> tuple[str, ...]:
    """Return the names of all networks: the published ones in the paper's order, then others."""
    return tuple(_MODELS)


def published_model_names() -> tuple[str, ...]:
    """Return the names of the published networks, in the paper's order."""
    return tuple(_PUBLISHED)


def build_model(name: str, *, weights: str | PathLike[str] | None = None, **options: Any) -> nn.Module:
    """Build a network by name.

    Args:
        name: one of :func:`model_names`, in any case.
        weights: trained parameters: a name of :func:`list_weights`, or a file of :func:`save_weights`. The network is
            then in inference mode. None for random parameters.
        **options: arguments of the network's class that replace those of the name, such as ``width``, ``group``
            or ``backend``.

    Raises:
        ArgumentError: the name, an option or its value is unknown; a plain network is given a group; or an option
            changes the meaning of the weights.
        DataError: the file of the weights is missing or broken, or does not fit the network.

    >>> sum(p.numel() for p in build_model("gc-p4cnn").parameters())
    24640
    """
    if not isinstance(name, str) or name.lower() not in _MODELS:
        raise ArgumentError(f"model (={name!r}) is unknown: use one of {', '.join(_MODELS)}")
    network, settings = _MODELS[name.lower()]
    known = inspect.signature(network).parameters
    if unknown := options.keys() - known.keys():
        raise ArgumentError(f"option {', '.join(sorted(unknown))} is unknown to {name}: it takes {', '.join(known)}")
    settings = settings | options
    if "group" in options and settings["kind"] in ("plain", "c"):
        kind = settings["kind"]
        raise ArgumentError(f"group (={options['group']!r}) has no meaning in {name}, of kind {kind!r}: give kind= too")
    model = network(**settings)
    if weights is None:
        return model
    if changed := options.keys() - _NEUTRAL:
        changes = ", ".join(sorted(changed))
        raise ArgumentError(f"weights (={str(weights)!r}) belong to {name} without changes: leave out {changes}")
    load_weights(model, name.lower(), weights)
    return model.eval()
