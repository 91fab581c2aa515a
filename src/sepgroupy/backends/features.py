"""The features of every registered backend, as the backends report them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..errors import ArgumentError
from ..groups import PointGroup, as_group
from .base import Backend
from .conv_spec import ConvSpec
from .dispatch import registered_backends


def _supports(
    kind: str, kernel_size: int = 3, group: str | PointGroup = "p4m", **geometry: object
) -> Callable[[Backend], bool]:
    def ask(backend: Backend) -> bool:
        spec = ConvSpec.parse(as_group(group), kind, kernel_size, **geometry)  # type: ignore[arg-type]
        return backend.unsupported_reason(spec) is None

    return ask


def _any_kind(**geometry: object) -> Callable[[Backend], bool]:
    return lambda backend: any(_supports(kind, **geometry)(backend) for kind in ("dense", "g", "gc"))  # type: ignore[arg-type]


def _reads(device: str, dtype: torch.dtype) -> Callable[[Backend], bool]:
    def ask(backend: Backend) -> bool:
        spec = ConvSpec.parse(as_group("p4"), "gc", 3)
        x = torch.empty((1, 2, 4, 5, 5), dtype=dtype, device="meta")
        return backend.unsupported_reason(spec, x) is None and backend.supports_device(device)

    return ask


FEATURES: dict[str, Callable[[Backend], bool]] = {
    "lifting layers": _supports("lifting"),
    "kind dense": _supports("dense"),
    "kind dense, 1×1": _supports("dense", kernel_size=1),
    "kind g": _supports("g"),
    "kind gc": _supports("gc"),
    "transposed": _any_kind(transposed=True),
    "even kernels": _any_kind(kernel_size=4),
    "kernels up to 7×7": _any_kind(kernel_size=7),
    "larger kernels": _any_kind(kernel_size=9),
    "stride 2 and 3": _any_kind(stride=3),
    "larger strides": _any_kind(stride=4),
    "dilation 2": _any_kind(dilation=2),
    "dilation 100": _any_kind(dilation=100),
    "volumes and signals": _any_kind(group="O"),
    "`groups` > 1": _any_kind(groups=2),
    "padding modes": _any_kind(padding=1, padding_mode="reflect"),
    "CPU": _reads("cpu", torch.float32),
    "other devices": _reads("cuda", torch.float32),
    "float32 and float64": _reads("cpu", torch.float64),
    "float16 and bfloat16": _reads("cpu", torch.bfloat16),
    "second derivatives": lambda backend: backend.double_backward,
    "forward-mode derivatives": lambda backend: backend.forward_mode,
    "`torch.vmap`": lambda backend: backend.vmap,
    "`torch.compile`": lambda backend: backend.compiles,
    "`torch.export`": lambda backend: backend.exports,
}
"""Each feature, with the test whether a backend has it."""


def feature_table() -> dict[str, dict[str, bool]]:
    """Return for each feature whether each registered backend has it."""
    found: dict[str, dict[str, bool]] = {}
    for feature, ask in FEATURES.items():
        found[feature] = {}
        for backend in registered_backends():
            try:
                found[feature][backend.name] = ask(backend)
            except ArgumentError:
                found[feature][backend.name] = False
    return found


def feature_page() -> str:
    """Return the table as a page in Markdown."""
    backends, table = registered_backends(), feature_table()
    lines = [
        "# Backends",
        "",
        "After reading this page you can choose a backend by hand and know what it supports. The command",
        "`python -m sepgroupy.backends` asks every backend and prints this page.",
        "",
        '`backend="auto"`, the default of every layer, selects the fastest backend that supports the input.',
        '`backend="torch"` selects the fastest one that uses PyTorch\'s operations only. A name selects that backend,',
        "and raises an error with the reason if it does not support the input. All backends give the same result",
        "to rounding. `sepgroupy.available_backends()` lists those of your installation. [Extend](extend.md) shows how",
        "to add one.",
        "",
    ]
    for backend in backends:
        lines.append(f"* **{backend.name}**: {_first_sentence(backend)}")
    lines += ["", "| | " + " | ".join(b.name for b in backends) + " |", "| :-- |" + " :-: |" * len(backends)]
    for feature, row in table.items():
        lines.append(f"| {feature} | " + " | ".join("yes" if row[b.name] else "" for b in backends) + " |")
    lines += [
        "",
        "The rows are about layers that use a backend. For second derivatives, forward-mode derivatives and",
        "`torch.vmap`, `native` calls PyTorch's operations. It computes float16 and bfloat16 in float32, and rounds",
        "the result.",
    ]
    return "\n".join(lines) + "\n"


def _first_sentence(backend: Backend) -> str:
    text = " ".join((type(backend).__doc__ or "").split("\n\n")[0].split())
    return text if text.endswith(".") else text + "."
