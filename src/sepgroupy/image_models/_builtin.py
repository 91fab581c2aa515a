"""The built-in networks: a ResNet with an invariant head, also of volumes, and a U-Net, of any depth and width."""

from __future__ import annotations

import re
from bisect import bisect_left

import torch
from torch import nn

from ..errors import ArgumentError
from ..groups import PointGroup
from ..models import ResNet, UNet

_NAME = re.compile(r"(p4m-resnet|p4m-unet|o-resnet)(\d+)?(?:-w(\d+))?")
_USUAL = {"p4m-resnet": (20, 16), "p4m-unet": (3, 16), "o-resnet": (8, 8)}  # depth and width


def is_builtin(name: str, task: str) -> bool:
    """Whether it is the name of a built-in network.

    Raises:
        ArgumentError: it is, and the network is not for the task.
    """
    if not (match := _NAME.fullmatch(name)):
        return False
    if (match[1] == "p4m-unet") != (task == "segmentation"):
        other = "p4m-unet" if task == "segmentation" else "p4m-resnet"
        raise ArgumentError(f"model (={name!r}) is not for task {task}: use {other}")
    return True


def model_dimension(name: str) -> int:
    """Return the number of spatial axes that a network reads: 3 of volumes for o-resnet, else 2."""
    match = _NAME.fullmatch(name)
    return 3 if match and match[1] == "o-resnet" else 2


def builtin_size(name: str, size: int) -> tuple[int, str]:
    """Return the nearest size of image at which the network is exact, the larger of two, and the reason."""
    family, depth, _ = _parse(name)
    halvings = depth if family == "p4m-unet" else 2
    multiple = 2**halvings
    nearest = max(2, (size + multiple // 2) // multiple) * multiple
    if nearest == size:
        return size, ""
    least = f", and at least {2 * multiple}" if size < 2 * multiple else ""
    return nearest, f"the network halves the image {halvings} times: its size must be a multiple of {multiple}{least}"


def build_builtin(
    name: str, channels: int, outputs: int, size: int, group: PointGroup, kind: str, match: str
) -> nn.Module:
    """Build a network; of a group, as wide as ``match`` says."""
    family, depth, width = _parse(name)
    dimension = model_dimension(name)

    def build(kind: str, width: int) -> nn.Module:
        if family == "p4m-unet":
            return UNet(kind, width, group, channels, outputs, depth)
        widths = (width, 2 * width, 4 * width)
        return ResNet(kind, depth, widths, group, channels, outputs, "invariant", "equivariant", dimension=dimension)

    def cost(kind: str, width: int) -> int:
        with torch.device("meta"):
            model = build(kind, width)
            if match == "params":
                return sum(p.numel() for p in model.parameters())
            return _multiplications(model.eval(), torch.empty(1, channels, *(size,) * dimension))

    if match == "width" or kind == "plain":
        return build(kind, width)
    target = cost("plain", width)
    above = (
        bisect_left(range(1, 4 * width + 8), target, key=lambda n: cost(kind, n)) + 1
    )  # the first that costs as much
    nearest = min((n for n in (above - 1, above) if n > 0), key=lambda n: abs(cost(kind, n) - target))
    return build(kind, nearest)


@torch.no_grad()
def _multiplications(model: nn.Module, images: torch.Tensor) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # here, because it imports triton

    with FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() // 2


def _parse(name: str) -> tuple[str, int, int]:
    """Return family, depth and width of a name."""
    match = _NAME.fullmatch(name)
    assert match is not None
    depth, width = (
        int(given) if given else usual for given, usual in zip(match.groups()[1:], _USUAL[match[1]], strict=True)
    )
    return match[1], depth, width
