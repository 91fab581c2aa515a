"""Memory that kernels work in and write to, reused between calls.

Memory new from the system costs a fault per page and is zeroed first, a good part of a training step of large feature
maps. The environment variable ``SEPGROUPY_BUFFER_POOL_MIB`` limits what is held for reuse (512 by default, 0 for
nothing); :func:`sepgroupy.empty_cache` frees it.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import ArgumentError
from .library import kernels

MMAP_MIN_BYTES = 2**25  # bytes from which on the C library's allocator takes new memory for every tensor
MIN_POOLED_BYTES = 2**20  # smaller buffers are left to PyTorch's allocator
POOL_VARIABLE = "SEPGROUPY_BUFFER_POOL_MIB"


def _max_free_bytes() -> int:
    text = os.environ.get(POOL_VARIABLE, "512")
    try:
        mebibytes = int(text)
    except ValueError:
        mebibytes = -1
    if mebibytes < 0:
        raise ArgumentError(f"{POOL_VARIABLE} (={text!r}) must be a whole number of MiB, 0 to hold nothing")
    return mebibytes * 2**20


class _Workspace(threading.local):
    """Memory that a thread's calls work in: to allocate it each time costs more than a small convolution."""

    held: Tensor | None = None

    def acquire(self, size: int) -> Tensor:
        """Return at least ``size`` bytes with undefined contents."""
        if self.held is not None and self.held.numel() >= size and not torch.are_deterministic_algorithms_enabled():
            return self.held
        space = torch.empty(size, dtype=torch.uint8, device="cpu")  # filled, where PyTorch is to be deterministic
        if size < MMAP_MIN_BYTES:
            self.held = space
        return space

    def clear(self) -> None:
        """Free what this thread holds."""
        self.held = None


class BufferPool:
    """Buffers of freed tensors, for the next tensors of as many bytes; the least recently used is freed first.

    Threads may acquire and release buffers at any moment, also a garbage collection within these methods: each
    operation on a dictionary is atomic, and none relies on an earlier one.
    """

    def __init__(self, max_free_bytes: int) -> None:
        self.max_free_bytes = max_free_bytes
        self._free: dict[int, np.ndarray] = {}
        self._used: dict[int, weakref.ref[np.ndarray]] = {}

    def acquire(self, shape: Sequence[int], dtype: np.dtype[Any], size: int) -> Tensor:
        """Return a tensor of ``size`` bytes, which come back when the last tensor on them is freed."""
        for key, block in reversed(list(self._free.items())):  # the last one used may be in a cache yet
            if block.nbytes == size and self._free.pop(key, None) is not None:
                break
        else:
            block = _new(size).numpy()
        view = np.ndarray(shape, dtype, block)  # the tensor's storage holds this object, and nothing else does
        self._used[id(block)] = weakref.ref(view, partial(self._release, block))
        return torch.from_numpy(view)

    def clear(self) -> None:
        """Free every buffer that no tensor uses."""
        self._free.clear()

    def free_bytes(self) -> int:
        """Return the bytes held for the next tensors."""
        return sum(block.nbytes for block in list(self._free.values()))

    def _release(self, block: np.ndarray, _: object) -> None:
        del self._used[id(block)]
        self._free[id(block)] = block
        blocks = list(self._free.items())
        excess = sum(held.nbytes for _, held in blocks) - self.max_free_bytes
        for key, held in blocks:
            if excess <= 0:
                break
            self._free.pop(key, None)
            excess -= held.nbytes


def _new(size: int) -> Tensor:
    """Return memory from PyTorch; the system is asked for large pages, whose first writes are faster."""
    space = torch.empty(size, dtype=torch.uint8, device="cpu")
    if size >= MMAP_MIN_BYTES:
        kernels().library.expect_writes(space.data_ptr(), size)
    return space


workspace = _Workspace()
buffers = BufferPool(_max_free_bytes())
_NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64), torch.int64: np.dtype(np.int64),
    torch.bfloat16: np.dtype(np.int16),  # of as many bytes: numpy has none
}  # fmt: skip


def empty_cache() -> None:
    """Free the memory that is held for the next feature maps, and the calling thread's workspace."""
    buffers.clear()
    workspace.clear()


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return an uninitialized tensor with the dtype and device of ``like``. Its storage cannot be resized."""
    size = math.prod(shape) * like.element_size()
    if size < MIN_POOLED_BYTES or not buffers.max_free_bytes or not kernels():
        return like.new_empty(shape)
    plain = like.dtype in _NUMPY and like.device.type == "cpu" and like.layout is torch.strided
    if not plain or torch.are_deterministic_algorithms_enabled():
        return like.new_empty(shape)  # which deterministic algorithms fill
    found = buffers.acquire(shape, _NUMPY[like.dtype], size)
    if found.dtype is like.dtype:
        return found
    # Not a view, which autograd would not let others write to.
    return like.new_empty(0).set_(found.untyped_storage(), 0, found.shape, found.stride())
