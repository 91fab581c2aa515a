"""Filters expanded once and reused in inference, for a model that the user names."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..backends import Filters

Model = TypeVar("Model", bound=nn.Module)

try:  # several times as fast as torch.equal
    _memcmp = ctypes.CDLL(None).memcmp
    _memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
except (AttributeError, OSError, TypeError):  # Windows has no library without a name
    _memcmp = None  # type: ignore[assignment]


class FilterCache:
    """Expanded filters of one layer, valid while the parameters have the values that they were computed from.

    Values are compared in every call, since an edit through ``.data`` or numpy leaves no other trace. On a CPU the
    comparison reads the parameters once; on other devices it waits for the device.
    """

    def __init__(self) -> None:
        self._entries: dict[Hashable, tuple[Filters, dict[str, Tensor]]] = {}

    def get(self, key: Hashable, parameters: Mapping[str, Tensor], expand: Callable[[], Filters]) -> Filters:
        """Return the filters of this key, expanded again if a parameter has changed."""
        found = self._entries.get(key)
        if found is None or not all(_same(p, found[1][name]) for name, p in parameters.items()):
            copies = {name: p.detach().clone(memory_format=torch.contiguous_format) for name, p in parameters.items()}
            found = self._entries[key] = (expand(), copies)
        return found[0]


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

    Args:
        model: any module. Its layers have the attribute ``filter_cache`` until the context ends.

    >>> from sepgroupy.nn import GroupConv2d
    >>> layer, x = GroupConv2d(4, 4, 3, group="p4"), torch.randn(1, 4, 4, 9, 9)
    >>> with torch.no_grad(), cached_filters(layer):
    ...     y = layer(x)
    ...     torch.equal(layer(x), y)
    True
    """
    layers = [m for m in model.modules() if getattr(m, "filter_cache", False) is None]
    for layer in layers:
        layer.filter_cache = FilterCache()  # type: ignore[assignment]
    try:
        yield model
    finally:
        for layer in layers:
            layer.filter_cache = None  # type: ignore[assignment]
