"""A trained network as steps that the page's JavaScript runs, written from the network that `export` makes of it."""

from __future__ import annotations

import base64
import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import ArgumentError
from ..exporting import export

SIZE = 28
"""Rows and columns of the page's images."""

_ROTATION = ((0, -1), (1, 0))  # by 90°, counter-clockwise
_VALUES = 4_000_000  # 21 MB of text: a page of more would be slow to open


def describe_network(name: str, model: nn.Module) -> dict[str, Any]:
    """Return a network as values that JSON can hold.

    Args:
        name: shown on the page.
        model: reads (B, 1, 28, 28) and returns log-probabilities or scores (B, classes). It is made of convolutions,
            plain or on a group, with square kernels and without padding, stride or dilation, batch norm, ReLU, 2×2
            max-pooling, group pooling and linear layers, as :class:`sepgroupy.models.RotMNISTNet`. It is left as it is.

    Returns:
        ``name``, ``parameters``, ``classes``, ``order`` of the group (1 without one), ``rotation`` (where each map on
        the group axis comes from under a 90° rotation; None without one), and ``steps``, their weights as base64 of
        little-endian float32.

    Raises:
        ArgumentError: the network reads something else, is too large, or has a step that the page cannot run.
    """
    plain = export(model)
    with torch.no_grad():
        scores = plain(torch.zeros(1, 1, SIZE, SIZE))
    if not isinstance(scores, Tensor) or scores.ndim != 2:
        raise ArgumentError(f"network {name!r} must return class scores (B, classes)")
    values = sum(value.numel() for value in plain.state_dict().values())
    if values > _VALUES:
        raise ArgumentError(f"network {name!r} has {values:,} exported weights; the page takes up to {_VALUES:,}")
    group = getattr(model, "group", None)
    rotation = None
    if group is not None and _ROTATION in group.elements:
        rotation = group.left_quotients[group.elements.index(_ROTATION)].tolist()
    return {
        "name": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "classes": scores.shape[1],
        "order": 1 if group is None else group.order,
        "rotation": rotation,
        "steps": [step for node in plain.graph.nodes if (step := _step(name, plain, node))],
    }


def _step(name: str, plain: fx.GraphModule, node: fx.Node) -> dict[str, Any] | None:
    """Return one step of the exported network, or None where nothing is computed."""
    if node.op in ("placeholder", "output"):
        return None
    module = plain.get_submodule(str(node.target)) if node.op == "call_module" else None
    called = type(module).__name__ if module else getattr(node.target, "__name__", str(node.target))
    match called:
        case "Identity" | "flatten" | "Flatten":
            return None
        case "ReLU" | "relu":
            return {"op": "relu"}
        case "log_softmax" | "LogSoftmax":
            return None  # the page ends in a softmax
        case "unflatten" if isinstance(node.args[2], tuple):
            return {"op": "split", "order": node.args[2][0]}
        case "amax" | "mean" if node.args[1] == 1:
            return {"op": called}
    if isinstance(module, nn.Conv2d) and _is_simple(module):
        return {"op": "conv", "kernel": module.kernel_size[0], "groups": module.groups, **_weights(module)}
    if isinstance(module, nn.MaxPool2d) and (module.kernel_size, module.stride, module.padding) == (2, 2, 0):
        return {"op": "max_pool"}
    if isinstance(module, nn.Linear):
        return {"op": "linear", **_weights(module)}
    raise ArgumentError(f"network {name!r} has a step {node.name} ({module or called}) that the page cannot run")


def _is_simple(conv: nn.Conv2d) -> bool:
    square = conv.kernel_size[0] == conv.kernel_size[1]
    return square and (conv.stride, conv.padding, conv.dilation) == ((1, 1), (0, 0), (1, 1))


def _weights(module: nn.Conv2d | nn.Linear) -> dict[str, Any]:
    bias = torch.zeros(len(module.weight)) if module.bias is None else module.bias
    return {
        "inputs": math.prod(module.weight.shape[1:2]) * getattr(module, "groups", 1),
        "outputs": len(module.weight),
        "weight": _encode(module.weight),
        "bias": _encode(bias),
    }


def _encode(tensor: Tensor) -> str:
    return base64.b64encode(tensor.detach().cpu().numpy().astype("<f4").tobytes()).decode()
