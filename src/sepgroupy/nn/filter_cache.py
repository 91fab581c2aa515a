"""Filters expanded once and reused in inference, for a model that the user names."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..backends import Filters
from ..errors import ArgumentError

Model = TypeVar("Model", bound=nn.Module)

try:  # several times as fast as torch.equal
    _memcmp = ctypes.CDLL(None).memcmp
    _memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
except (AttributeError, OSError, TypeError):  # Windows has no library without a name
    _memcmp = None  # type: ignore[assignment]


class _Snapshot:
    """A parameter as it was when its filters were expanded."""

    def __init__(self, parameter: Tensor) -> None:
        self.alias = parameter.detach()  # holds the memory, so that no other tensor can have its address
        self.version = _version(parameter)
        self.copy = parameter.detach().clone(memory_format=torch.contiguous_format)

    def is_current(self, parameter: Tensor) -> bool:
        """Whether the parameter is unchanged; on a GPU, judged by memory and version."""
        if comparison_synchronizes(parameter):
            return self.has_same_memory_and_version(parameter)
        return _same(parameter, self.copy)

    def has_same_memory_and_version(self, parameter: Tensor) -> bool:
        """Whether the parameter has the same memory and version as the snapshot."""
        mine, other = self.alias, parameter
        return (
            (mine.data_ptr(), self.version) == (other.data_ptr(), _version(other))
            and (mine.shape, mine.stride(), mine.dtype) == (other.shape, other.stride(), other.dtype)
            and mine.device == other.device
        )


class FilterCache:
    """Expanded filters of one layer, valid while the parameters have the values that they were computed from.

    On a CPU the values are compared in every call, which reads the parameters once: an edit through ``.data`` or numpy
    leaves no other trace. On a GPU the host would wait for this comparison. There each call compares memory and version
    of the parameters, and the values are compared when the context ends: :meth:`untracked_edits`.
    """

    def __init__(self) -> None:
        self._entries: dict[Hashable, tuple[Filters, dict[str, _Snapshot]]] = {}

    def get(self, key: Hashable, parameters: Mapping[str, Tensor], expand: Callable[[], Filters]) -> Filters:
        """Return the filters of this key, expanded again if a parameter has changed."""
        found = self._entries.get(key)
        if found is None or not all(found[1][name].is_current(p) for name, p in parameters.items()):
            snapshots = {name: _Snapshot(p) for name, p in parameters.items()}
            found = self._entries[key] = (expand(), snapshots)
        return found[0]

    def untracked_edits(self, layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield, for each parameter whose values calls did not compare, its name and whether they have changed."""
        for _, snapshots in self._entries.values():
            for name, snapshot in snapshots.items():
                parameter = getattr(layer, name, None)
                if (
                    isinstance(parameter, Tensor)
                    and comparison_synchronizes(parameter)
                    and snapshot.has_same_memory_and_version(parameter)
                ):
                    yield name, (_bytes(parameter) != _bytes(snapshot.copy)).any()


def comparison_synchronizes(parameter: Tensor) -> bool:
    """Whether the host would wait for the comparison of values, while addresses tell one memory from another."""
    return parameter.is_cuda


def _version(parameter: Tensor) -> int | None:
    return None if parameter.is_inference() else parameter._version


def _bytes(t: Tensor) -> Tensor:
    return t.detach().contiguous().view(torch.uint8)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit for bit."""
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    if _memcmp is not None and a.is_cpu and a.is_contiguous():
        return bool(_memcmp(a.data_ptr(), b.data_ptr(), a.numel() * a.element_size()) == 0)
    return torch.equal(a, b)


@contextmanager
def cached_filters(model: Model) -> Iterator[Model]:
    """Expand the filters of a model's group convolutions once, for all calls without gradients in this context.

    Outside the context every call expands them. Within it each layer compares its parameters with the values that its
    filters were computed from, and expands them again after any edit. Calls with gradients
    enabled, and calls under ``torch.compile`` or a function transform, do not use the cache.

    On a CUDA device an edit that changes neither the version nor the memory of a parameter, such as
    ``weight.data.mul_(2)``, is refused when the context ends; if it was undone by then, it goes unnoticed. A CUDA graph
    that is captured within the context replays the filters of the capture: it must not outlive the context.

    Args:
        model: any module. Its layers have the attribute ``filter_cache`` until the context ends.

    Raises:
        ArgumentError: at the end, on a CUDA device: the model was edited without a trace.

    >>> from sepgroupy.nn import GroupConv2d
    >>> layer, x = GroupConv2d(4, 4, 3, group="p4"), torch.randn(1, 4, 4, 9, 9)
    >>> with torch.no_grad(), cached_filters(layer):
    ...     y = layer(x)
    ...     torch.equal(layer(x), y)
    True
    """
    layers = {n: m for n, m in model.named_modules() if getattr(m, "filter_cache", False) is None}
    for layer in layers.values():
        layer.filter_cache = FilterCache()  # type: ignore[assignment]
    try:
        yield model
        _refuse_untracked_edits(layers)
    finally:
        for layer in layers.values():
            layer.filter_cache = None  # type: ignore[assignment]


@torch.no_grad()
def _refuse_untracked_edits(layers: Mapping[str, nn.Module]) -> None:
    changed: dict[torch.device, dict[str, Tensor]] = {}
    for prefix, layer in layers.items():
        cache: FilterCache = layer.filter_cache  # type: ignore[assignment]
        for name, flag in cache.untracked_edits(layer):
            flags, full_name = changed.setdefault(flag.device, {}), f"{prefix}.{name}".removeprefix(".")
            flags[full_name] = flag | flags.get(full_name, flag)
    for flags in changed.values():  # one wait for each device
        edited = [name for name, found in zip(flags, torch.stack([*flags.values()]).tolist(), strict=True) if found]
        if edited:
            raise ArgumentError(
                f"model was edited within cached_filters without a trace, through .data or another view of the memory "
                f"of {', '.join(edited)}: outputs since then have the filters of before. Edit the parameters "
                "themselves under torch.no_grad(), or outside the context"
            )
