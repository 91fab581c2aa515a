"""Networks of timm and torchvision by name: built, given pretrained weights, and converted at an exact size."""

from __future__ import annotations

import math
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .._files import load_tensors
from ..auditing import exact_sizes
from ..conversion import convert
from ..errors import ArgumentError, DataError
from ..groups import PointGroup
from ..models import find_state, state_dict_differences

LIBRARIES = ("timm", "torchvision")
_PERIOD = 32  # total stride of the networks: sizes that differ by a multiple of it are exact together
_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


class NamedOutput(nn.Module):
    """The tensor that a network returns under a name, as torchvision's segmentation networks return ``"out"``."""

    def __init__(self, network: nn.Module, name: str = "out") -> None:
        super().__init__()
        self.network, self.name = network, name

    def forward(self, x: Tensor) -> Tensor:
        """Return the named output."""
        return self.network(x)[self.name]  # type: ignore[no-any-return]


def convert_from_library(
    name: str,
    channels: int,
    outputs: int,
    size: int,
    group: PointGroup,
    kind: str,
    match: str,
    task: str,
    weights: str | None,
) -> tuple[nn.Module, int, str]:
    """Return a converted network, the nearest size at which it is exact, and the reason if it is another.

    Raises:
        ArgumentError: the network is unknown, cannot be converted, or weights cannot be lifted.
        DataError: weights cannot be fetched or read, or do not fit.
    """
    plain = _build(name, channels, outputs, task)
    if weights is not None:
        _require_liftable(name, plain, kind, match, weights)
        _load(name, plain, channels, outputs, task, weights)
    input_size, reason = size, ""
    if kind != "plain":
        input_size, reason = _nearest_exact_size(name, plain, group, size)
        lift = "fresh" if weights is None else "lift"
        plain = _convert(plain, group, kind, input_size, match, lift)
    return (NamedOutput(plain) if task == "segmentation" else plain), input_size, reason


def _convert(plain: nn.Module, group: PointGroup, kind: str, size: int, match: str, weights: str) -> nn.Module:
    """Convert at a small size, which the audit measures quickly, or else at the size itself."""
    if (small := _small(size)) < size:
        try:
            return convert(plain, group, kind, in_size=small, match=match, weights=weights)
        except ArgumentError:  # also if the network does not take so small an image
            pass
    return convert(plain, group, kind, in_size=size, match=match, weights=weights)


def _nearest_exact_size(name: str, plain: nn.Module, group: PointGroup, size: int) -> tuple[int, str]:
    if group.order == 1:
        return size, ""
    small = _small(size)
    try:  # p4 stands for every group: it has the same symmetric grids of square images
        sizes = [found + size - small for found in exact_sizes(plain, "p4", small)]
    except ArgumentError:  # the network does not take such an image
        sizes = []
    if not sizes or size in sizes:
        return size, ""  # if there is none, convert says which layers would have to change
    others = " and ".join(map(str, sizes))
    nearest = min(sizes, key=lambda n: (abs(n - size), -n))
    return nearest, f"strides of {name} sample a grid that is symmetric at {others}, and not at {size}"


def _small(size: int) -> int:
    """Return a size up to 64 with the same remainder at every stride."""
    return size if size <= 2 * _PERIOD else _PERIOD + 1 + (size - 1) % _PERIOD


def _build(name: str, channels: int, outputs: int, task: str) -> nn.Module:
    library, _, short = name.partition("/")
    try:
        if library == "timm":
            return _build_timm(name, short, channels, outputs, task)
        return _build_torchvision(name, short, channels, outputs, task)
    except ArgumentError:
        raise
    except Exception as error:  # of the network's own code
        raise ArgumentError(
            f"model (={name!r}) cannot be built for {channels} channels and {outputs} outputs: {error}"
        ) from error


def _build_timm(name: str, short: str, channels: int, outputs: int, task: str) -> nn.Module:
    timm = _import_timm(name)
    if task == "segmentation":
        raise ArgumentError(f"model (={name!r}) makes no masks: use p4m-unet, or torchvision/fcn_resnet50 or the like")
    if not timm.is_model(short):
        near = get_close_matches(short, timm.list_models(), 5) or ["resnet18"]
        raise ArgumentError(f"model (={name!r}) is unknown to timm {timm.__version__}; it has {', '.join(near)}, …")
    model: nn.Module = timm.create_model(short, num_classes=outputs, in_chans=channels)
    return model


def _import_timm(name: str) -> Any:
    try:
        import timm
    except ImportError:
        raise ArgumentError(f"model (={name!r}) needs timm: pip install 'sepgroupy[timm]'") from None
    return timm


def _build_torchvision(name: str, short: str, channels: int, outputs: int, task: str) -> nn.Module:
    from torchvision import models

    masks = task == "segmentation"
    known = models.list_models(module=models.segmentation if masks else models)
    if short not in known:
        near = get_close_matches(short, known, 5) or known[:5]
        raise ArgumentError(f"model (={name!r}) is unknown: for {task} torchvision has {', '.join(near)}, …")
    options: dict[str, Any] = {"weights_backbone": None} if masks else {}
    model: nn.Module = models.get_model(short, weights=None, num_classes=outputs, **options)
    stem_name, stem = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    if stem.in_channels != channels:
        new = nn.Conv2d(
            channels, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, stem.dilation,  # type: ignore[arg-type]
            bias=stem.bias is not None,
        )  # fmt: skip
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
        model.set_submodule(stem_name, new)
    return model


def _require_liftable(name: str, plain: nn.Module, kind: str, match: str, weights: str) -> None:
    if kind == "plain":
        return
    if match != "width":
        raise ArgumentError(f"weights (={weights!r}) need match='width', not {match!r}: filters have the plain widths")
    convolutions = [(n, m) for n, m in plain.named_modules() if isinstance(m, nn.Conv2d)][1:]
    full = [n for n, m in convolutions if m.groups == 1 and m.in_channels > 1 and math.prod(m.kernel_size) > 1]
    if kind == "gc" and full:
        raise ArgumentError(
            f"weights (={weights!r}) cannot be lifted to kind 'gc': {full[0]} of {name}"
            f"{f' and {len(full) - 1} others have' if len(full) > 1 else ' has'} a spatial filter for each input "
            "channel, and gc one for all. Use kind 'g' or 'dense', or a network of depthwise convolutions"
        )


def _load(name: str, plain: nn.Module, channels: int, outputs: int, task: str, weights: str) -> None:
    """Load pretrained weights, but for a last layer with another number of outputs."""
    state, own = _read(name, task, weights), plain.state_dict()
    for key, value in own.items():
        found = state.get(key)
        if found is None or found.shape == value.shape:
            continue
        if len(found) == len(value) and found.ndim == 4 and value.shape[1] == channels and found.shape[1] == 3:
            state[key] = _adapt(found, channels)
        elif found.shape[1:] == value.shape[1:] and len(value) == outputs:
            state[key] = value  # as it was drawn
    state = {key: value for key, value in state.items() if not (task == "segmentation" and key.startswith("aux_"))}
    if text := state_dict_differences(state, own):
        raise DataError(f"weights (={weights!r}) do not fit {name}: {text}")
    plain.load_state_dict(state)


def _adapt(filters: Tensor, channels: int) -> Tensor:
    """Return filters of RGB images for another number of channels, with the same answer to gray ones."""
    if channels == 1:
        return filters.sum(1, keepdim=True)
    repeated = filters.repeat(1, math.ceil(channels / 3), 1, 1)[:, :channels]
    return repeated * (filters.sum(1, keepdim=True).norm() / repeated.sum(1, keepdim=True).norm().clamp(min=1e-12))


def _read(name: str, task: str, weights: str) -> dict[str, Tensor]:
    """Return a state dict from a file, or from where the library has it."""
    path = Path(weights)
    if path.suffix in _SUFFIXES or path.exists():
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        return find_state(weights, load_tensors(path))
    library, _, short = name.partition("/")
    try:
        if library == "timm":
            tagged = short if weights == "pretrained" else f"{short}.{weights}"
            return dict(_import_timm(name).create_model(tagged, pretrained=True).state_dict())
        from torchvision import models

        chosen = "DEFAULT" if weights == "pretrained" else weights
        if chosen not in ("DEFAULT", *models.get_model_weights(short).__members__):
            known = ", ".join(models.get_model_weights(short).__members__)
            raise ArgumentError(f"weights (={weights!r}) must be pretrained, a file, or of {name} one of {known}")
        options = {"weights_backbone": None} if task == "segmentation" else {}
        return dict(models.get_model(short, weights=chosen, **options).state_dict())
    except ArgumentError:
        raise
    except Exception as error:  # of the network or the library
        raise DataError(f"weights (={weights!r}) of {name} cannot be fetched: {error!s:.200}. Give a file") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except Exception as error:  # which one depends on where the file is broken
        raise DataError(f"{path} cannot be read: {error!s:.100}") from None
