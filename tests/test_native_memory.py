"""Buffers that are reused between calls: each by one tensor at a time, freed when nothing reads it, bounded."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sepgroupy
from sepgroupy.analysis import peak_memory
from sepgroupy.backends.native import memory
from sepgroupy.backends.native.library import kernels
from sepgroupy.errors import ArgumentError
from sepgroupy.groups import D4
from sepgroupy.nn import GroupConv2d

pytestmark = pytest.mark.skipif(not kernels(), reason=kernels().summary)
SHAPE = (2, 8, 5, 64, 64)  # of 1.25 MiB


@pytest.fixture(autouse=True)
def pool(monkeypatch: pytest.MonkeyPatch) -> memory.BufferPool:
    """Start with an empty pool."""
    fresh = memory.BufferPool(512 * 2**20)
    monkeypatch.setattr(memory, "buffers", fresh)
    return fresh


def new(shape: tuple[int, ...] = SHAPE) -> Tensor:
    return memory.empty(shape, torch.zeros(1))


def test_the_next_tensor_of_as_many_bytes_reuses_the_buffer() -> None:
    first = new()
    address = first.data_ptr()
    del first
    other = new((*SHAPE[:-1], 65))
    assert other.data_ptr() != address
    second = new((8, 2, *SHAPE[2:]))
    assert second.data_ptr() == address
    assert second.shape == (8, 2, *SHAPE[2:])
    assert second.is_contiguous()
    assert second.dtype is torch.float32
    assert second._base is None
    assert new().data_ptr() != address


def test_small_buffers_and_other_dtypes_are_left_to_pytorch(pool: memory.BufferPool) -> None:
    new((10, 10))
    memory.empty(SHAPE, torch.zeros(1, dtype=torch.bfloat16))
    assert memory.empty(SHAPE, torch.zeros(1, device="meta")).is_meta
    assert pool.free_bytes() == 0
    assert not pool._used


HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "view": lambda y: y[:1, 2],
    "storage": lambda y: y.untyped_storage(),
    "numpy": lambda y: y.numpy(),
    "dlpack": lambda y: torch.from_dlpack(y),
    "detached": lambda y: y.detach(),
    "saved for backward": lambda y: (y.clone().requires_grad_() * y).sum(),
    "parameter": lambda y: nn.Parameter(y),
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_a_buffer_that_anything_reads_is_not_reused(hold: Callable[[Tensor], Any], pool: memory.BufferPool) -> None:
    y = new()
    address, held = y.data_ptr(), hold(y)
    del y
    gc.collect()
    assert new().data_ptr() != address
    del held
    gc.collect()
    assert address in {block.ctypes.data for block in pool._free.values()}


def test_memory_moved_to_other_processes_is_not_written_again() -> None:
    y = new().fill_(1.0)
    shared = y.share_memory_()
    new().fill_(2.0)
    assert shared.is_shared()
    assert bool((shared == 1).all())


def test_free_buffers_are_bounded_and_the_least_recently_used_is_freed_first(pool: memory.BufferPool) -> None:
    size = new().nbytes
    memory.empty_cache()
    pool.max_free_bytes = 3 * size
    tensors = [new((*SHAPE[:-1], 64 + n)) for n in range(5)]
    largest = tensors[-1].nbytes
    while tensors:
        tensors.pop(0)
        assert pool.free_bytes() <= 3 * size
    assert list(pool._free.values())[-1].nbytes == largest
    assert size not in {block.nbytes for block in pool._free.values()}


def test_a_pool_of_no_bytes_takes_no_part(pool: memory.BufferPool) -> None:
    """Its tensors are PyTorch's own, which can be resized."""
    pool.max_free_bytes = 0
    y = new()
    assert not pool._used
    assert y.untyped_storage().resizable()
    del y
    assert pool.free_bytes() == 0


def test_the_cache_is_emptied_of_all_that_no_tensor_uses(pool: memory.BufferPool) -> None:
    layer, x = GroupConv2d(3, 4, 3, padding=1, group=D4, backend="native"), torch.randn(2, 3, 8, 64, 64)
    used = layer(x).detach()
    layer(x)
    expected = used.clone()
    assert pool.free_bytes() > 0
    assert memory.workspace.held is not None
    sepgroupy.empty_cache()
    assert pool.free_bytes() == 0
    assert memory.workspace.held is None
    torch.testing.assert_close(layer(x), expected)
    assert torch.equal(used, expected)
    del used
    assert pool.free_bytes() > 0


LIMITS = {"0": 0, "1": 2**20, "512": 2**29, "1000000000": 10**9 * 2**20}


@pytest.mark.parametrize("text", [*LIMITS, "", "-1", "1.5", "many", "1e3"])
def test_the_environment_limits_what_is_held(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(memory.POOL_VARIABLE, text)
    if text in LIMITS:
        assert memory._max_free_bytes() == LIMITS[text]
        return
    with pytest.raises(ArgumentError, match=r"SEPGROUPY_BUFFER_POOL_MIB .*must be a whole number of MiB"):
        memory._max_free_bytes()


@pytest.mark.parametrize(("text", "held"), [("0", 0), ("1", 0), ("5", 2**22), (None, 3 * 2**22)])
def test_a_process_holds_what_its_environment_says(text: str | None, held: int) -> None:
    """Of three feature maps of 4 MiB."""
    code = """
import torch, sepgroupy
from sepgroupy.backends.native import memory
layer = sepgroupy.GroupConv2d(1, 8, 1, group="p4m", backend="native")
with torch.no_grad():
    outputs = [layer(torch.zeros(1, 1, 8, 128, 128)) for _ in range(3)]
del outputs
print(memory.buffers.free_bytes())
"""
    environment = {name: value for name, value in os.environ.items() if name != memory.POOL_VARIABLE}
    environment |= {} if text is None else {memory.POOL_VARIABLE: text}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == held


def test_deterministic_algorithms_are_given_filled_memory() -> None:
    new().fill_(1.0)
    torch.use_deterministic_algorithms(True)
    try:
        assert bool(new().isnan().all())
    finally:
        torch.use_deterministic_algorithms(False)


def test_threads_never_share_a_buffer(pool: memory.BufferPool) -> None:
    failures = []

    def work(mark: float) -> None:
        for n in range(200):
            y = new().fill_(mark)
            other = new().fill_(-mark) if n % 3 else None
            if not (bool((y == mark).all()) and (other is None or bool((other == -mark).all()))):
                failures.append(mark)

    threads = [threading.Thread(target=work, args=(float(mark),)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(pool._free) <= 4 * 3  # each held two as it took the next


@pytest.mark.parametrize("inference", [False, True])
def test_layers_take_their_outputs_from_it(inference: bool, pool: memory.BufferPool) -> None:
    layer = GroupConv2d(3, 4, 3, padding=1, group=D4, kind="gc", backend="native")
    with torch.inference_mode(inference):
        images = [torch.randn(2, 3, 8, 64, 64) for _ in range(3)]
        outputs = [layer(x) for x in images]
        assert not pool._free
        for x, y in zip(images, outputs, strict=True):
            torch.testing.assert_close(y, layer(x), rtol=0, atol=0)
        assert len(pool._free) == 1
        del outputs, y
        assert len(pool._free) == 4


def test_free_buffers_do_not_count_as_memory_of_a_network() -> None:
    layer = GroupConv2d(3, 4, 3, padding=1, group=D4, kind="gc", backend="native")
    x = torch.randn(2, 3, 8, 64, 64)
    assert peak_memory(layer, x) == peak_memory(layer, x) >= layer(x).nbytes
