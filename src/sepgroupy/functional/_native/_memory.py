"""Memory that calls work in and write to, kept between calls.

Memory new from the system costs a fault a page and is zeroed first, a good part of a training step of large maps.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._library import SUFFIXES, kernels

LARGE = 2**25  # bytes from which on the C library's allocator takes new memory for every tensor
MAP = 2**20  # bytes from which on a map's memory is kept when nothing reads it any more
IDLE = 2**29  # bytes kept for the next maps, at most


class _Workspace(threading.local):
    """Memory that a thread's calls work in: to take it anew each time costs more than a small convolution."""

    kept: Tensor | None = None

    def take(self, size: int) -> Tensor:
        """Return at least so many bytes; what is in them has no meaning."""
        if self.kept is not None and self.kept.numel() >= size and not torch.are_deterministic_algorithms_enabled():
            return self.kept
        space = torch.empty(size, dtype=torch.uint8)  # filled, where PyTorch is to be deterministic
        if size < LARGE:
            self.kept = space
        return space


class _Maps:
    """Memory of maps that nothing holds any more, for the next of as many bytes; the longest unused is freed first.

    Threads may take memory, and let go of it, at any moment, and a collection of garbage amid these functions too:
    each step on a dictionary is atomic, and none relies on an earlier one.
    """

    def __init__(self) -> None:
        self._idle: dict[int, np.ndarray] = {}
        self._lent: dict[int, weakref.ref[np.ndarray]] = {}

    def take(self, shape: Sequence[int], dtype: np.dtype[Any], size: int) -> Tensor:
        """Return a tensor of so many bytes, which come back when the last tensor on them is gone."""
        for key, block in reversed(list(self._idle.items())):  # the last one used may be in a cache yet
            if block.nbytes == size and self._idle.pop(key, None) is not None:
                break
        else:
            block = _new(size).numpy()
        lent = np.ndarray(shape, dtype, block)  # the tensor's storage holds this object, and nothing else does
        self._lent[id(block)] = weakref.ref(lent, partial(self._take_back, block))
        return torch.from_numpy(lent)

    def _take_back(self, block: np.ndarray, _: object) -> None:
        del self._lent[id(block)]
        self._idle[id(block)] = block
        blocks = list(self._idle.items())
        excess = sum(kept.nbytes for _, kept in blocks) - IDLE
        for key, kept in blocks:
            if excess <= 0:
                break
            self._idle.pop(key, None)
            excess -= kept.nbytes


def _new(size: int) -> Tensor:
    """Return memory from PyTorch; the system is asked for large pages, whose first writes are faster."""
    space = torch.empty(size, dtype=torch.uint8)
    if size >= LARGE:
        kernels().library.expect_writes(space.data_ptr(), size)
    return space


workspace = _Workspace()
_maps = _Maps()
_DTYPES = {dtype: torch.empty(0, dtype=dtype).numpy().dtype for dtype in SUFFIXES}


def empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor about to be written whole, of another's type and device; it cannot be made larger in place."""
    size, dtype = math.prod(shape) * like.element_size(), _DTYPES.get(like.dtype)
    ours = like.device.type == "cpu" and like.layout is torch.strided and kernels()
    if size < MAP or not ours or dtype is None or torch.are_deterministic_algorithms_enabled():  # which fill it
        return like.new_empty(shape)
    return _maps.take(shape, dtype, size)
