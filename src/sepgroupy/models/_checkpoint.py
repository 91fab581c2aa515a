"""Checkpoints of the published code: recognized by keys and shapes, and validated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._files import load_tensors
from ..errors import DataError, SepgroupyError
from ._resnet import ResNet
from ._rotmnist import RotMNISTNet

_GROUPS = {4: "p4", 8: "p4m"}  # by the length of a filter's group axis


def load_published(path: str | PathLike[str]) -> nn.Module:
    """Load a checkpoint of the published code's experiments and build the network that it fits.

    The file contains a state dict of one of the networks for rotated MNIST (``conv1`` … ``conv7``) or for CIFAR-10
    (``conv1``, ``layer1`` … ``layer3``), directly or under the key ``"state_dict"`` or ``"model"``, with or without the
    prefix ``module.`` of a parallel wrapper. Kind, group (p4 or p4m), widths, depth, number of classes and of input
    channels follow from keys and shapes. No code from the file is executed.

    Args:
        path: the file.

    Returns:
        A :class:`RotMNISTNet` or :class:`ResNet` in float32 on the CPU, in inference mode.

    Raises:
        DataError: the file is missing or broken, has other content, or fits none of the networks.
    """
    name = fspath(path)
    state = find_state(name, load_tensors(Path(name)))
    try:
        network, options = _recognise(state)
        with torch.device("meta"):  # nothing is allocated before all shapes are validated
            model = network(**options)
    except SepgroupyError as error:
        raise DataError(f"{name} is not a checkpoint of a published network: {error}") from None
    if differences := state_dict_differences(state, model.state_dict()):
        call = f"{network.__name__}({', '.join(f'{key}={value!r}' for key, value in options.items())})"
        raise DataError(f"{name} looks like {call}, but {differences}")
    model = model.to_empty(device="cpu")
    model.load_state_dict(state)
    return model.eval()


def find_state(name: str, found: Any) -> dict[str, Tensor]:
    """Return the state dict in the content of a file, directly or under a usual key.

    Raises:
        DataError: there is none, or it contains anything but dense tensors with all their values.
    """
    if isinstance(found, Mapping):
        found = next((found[key] for key in ("state_dict", "model") if isinstance(found.get(key), Mapping)), found)
    if not isinstance(found, Mapping):
        raise DataError(f"{name} holds no state dict but a {type(found).__name__}")
    for key, value in found.items():
        if not isinstance(key, str) or not _is_plain(value):
            raise DataError(
                f"{name} holds no state dict: {key!r} is a {type(value).__name__}, not a dense tensor held whole"
            )
    whole = all(key.startswith("module.") for key in found)
    return {key.removeprefix("module.") if whole else key: value for key, value in found.items()}


def _is_plain(value: Any) -> bool:
    """Whether it is a dense tensor whose every element is in the file."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return value.untyped_storage().nbytes() >= value.numel() * value.element_size()


def _recognise(state: Mapping[str, Tensor]) -> tuple[type[nn.Module], dict[str, Any]]:
    """Return the class of a network and the arguments that a state dict implies."""
    blocks = {match[0] for match in map(re.compile(r"layer1\.\d+\.").match, state) if match}
    width, in_channels = _shape(state, "conv1.weight", 4, 5)[:2]
    options: dict[str, Any] = {"in_channels": in_channels, "classes": _shape(state, "fc.weight", 2)[0]}
    options |= _kind(state, "layer1.0.conv2" if blocks else "conv2")
    if not blocks:
        return RotMNISTNet, options | {"width": width}
    widths = tuple(_shape(state, f"layer{stage}.0.bn2.weight", 1)[0] for stage in (1, 2, 3))
    return ResNet, options | {"widths": widths, "depth": 6 * len(blocks) + 2}


def _kind(state: Mapping[str, Tensor], layer: str) -> dict[str, str]:
    """Return the kind of a hidden layer and, on a group, the group."""
    if f"{layer}.0.weight" in state:
        return {"kind": "c"}
    if f"{layer}.depthwise_weight" in state:
        kind = "g" if len(_shape(state, f"{layer}.depthwise_weight", 4, 5)) == 4 else "gc"
        order = _shape(state, f"{layer}.pointwise_weight", 5)[2]
    elif len(shape := _shape(state, f"{layer}.weight", 4, 5)) == 4:
        return {"kind": "plain"}
    else:
        kind, order = "dense", shape[2]
    if order not in _GROUPS:
        raise DataError(f"the filters of {layer} are on a group of order {order}, not 4 (p4) or 8 (p4m)")
    return {"kind": kind, "group": _GROUPS[order]}


def _shape(state: Mapping[str, Tensor], key: str, *axes: int) -> tuple[int, ...]:
    """Return the shape of a required weight, which must have one of these numbers of axes, none of them empty."""
    if key not in state:
        raise DataError(f"it has no {key}; its {len(state)} keys begin with {', '.join(list(state)[:5])}")
    shape = tuple(state[key].shape)
    if len(shape) not in axes or 0 in shape:
        raise DataError(f"{key} has shape {shape}; it must have {' or '.join(map(str, axes))} axes, none of them empty")
    return shape


def state_dict_differences(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Describe the first differences of a state dict from that of the network; empty if it fits."""
    missing = [f"{key} is missing" for key in wanted if key not in found]
    unknown = [f"{key} is unknown" for key in found if key not in wanted]
    wrong = [
        f"{key} has {_describe(found[key])}, not {_describe(value)}"
        for key, value in wanted.items()
        if key in found
        and (found[key].shape, found[key].is_floating_point()) != (value.shape, value.is_floating_point())
    ]
    differences = missing + unknown + wrong
    more = f", and so on, {len(differences)} in all" if len(differences) > 4 else ""
    return ", ".join(differences[:4]) + more


def _describe(value: Tensor) -> str:
    return f"shape {tuple(value.shape)} in {value.dtype}"
