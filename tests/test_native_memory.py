"""Memory that is reused between calls: given out once at a time, taken back when nothing reads it, bounded."""

from __future__ import annotations

import gc
import os
import re
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
    buffers = memory.BufferPool(2**29)
    monkeypatch.setattr(memory, "buffers", buffers)
    return buffers


def new(shape: tuple[int, ...] = SHAPE) -> Tensor:
    return memory.empty(shape, torch.zeros(1))


def free_sizes(pool: memory.BufferPool) -> list[int]:
    return [block.nbytes for block in pool._free.values()]


def test_the_next_tensor_of_as_many_bytes_takes_the_memory_over() -> None:
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


def test_small_tensors_are_left_to_pytorch(pool: memory.BufferPool) -> None:
    new((10, 10))
    assert not pool.free_bytes()


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
def test_memory_that_anything_reads_is_not_given_out_again(
    hold: Callable[[Tensor], Any], pool: memory.BufferPool
) -> None:
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


def test_free_memory_is_bounded_and_the_least_recently_used_is_freed_first(pool: memory.BufferPool) -> None:
    size = new().nbytes
    pool.max_free_bytes = 3 * size
    maps = [new((*SHAPE[:-1], 64 + n)) for n in range(5)]
    largest = maps[-1].nbytes
    while maps:
        maps.pop(0)
        assert pool.free_bytes() <= 3 * size
    assert free_sizes(pool)[-1] == largest
    assert size not in free_sizes(pool)


def test_deterministic_algorithms_are_given_filled_memory() -> None:
    new().fill_(1.0)
    torch.use_deterministic_algorithms(True)
    try:
        assert bool(new().isnan().all())
    finally:
        torch.use_deterministic_algorithms(False)


def test_threads_never_share_memory(pool: memory.BufferPool) -> None:
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
def test_layers_write_to_it_and_their_results_stay(inference: bool, pool: memory.BufferPool) -> None:
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


def test_free_memory_does_not_count_as_a_networks() -> None:
    layer = GroupConv2d(3, 4, 3, padding=1, group=D4, kind="gc", backend="native")
    x = torch.randn(2, 3, 8, 64, 64)
    assert peak_memory(layer, x) == peak_memory(layer, x) >= layer(x).nbytes


# ---- what users can do about it ----------------------------------------------------------------------------------


def test_the_cache_is_emptied_and_what_is_in_use_stays(pool: memory.BufferPool) -> None:
    layer = GroupConv2d(3, 4, 3, padding=1, group=D4, kind="gc", backend="native")
    x = torch.randn(2, 3, 8, 64, 64)
    y, other = layer(x), layer(x)
    expected = y.clone()
    del other
    assert pool.free_bytes() == y.nbytes
    assert memory.workspace.held is not None
    sepgroupy.empty_cache()
    assert pool.free_bytes() == 0
    assert memory.workspace.held is None
    assert torch.equal(y, expected)
    assert torch.equal(layer(x), expected)
    address = y.data_ptr()
    del y, expected
    assert address in {block.ctypes.data for block in pool._free.values()}  # in use then, it comes back


def test_small_limits_and_none(pool: memory.BufferPool) -> None:
    for limit in (3, 1, 0):
        sepgroupy.empty_cache()
        pool.max_free_bytes = limit * 2**20
        tensors = [new((2**20 // 4,)) for _ in range(5)]
        del tensors
        assert pool.free_bytes() == limit * 2**20


@pytest.mark.parametrize(("text", "limit"), [(None, 512), ("0", 0), ("3", 3), ("1000000000000", 10**12)])
def test_the_environment_sets_the_limit(text: str | None, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(memory.POOL_VARIABLE, raising=False)
    if text is not None:
        monkeypatch.setenv(memory.POOL_VARIABLE, text)
    assert memory._max_free_bytes() == limit * 2**20


MUST_BE = r"SEPGROUPY_BUFFER_POOL_MIB \(='.*'\) must be a whole number of MiB, 0 to hold nothing"


@pytest.mark.parametrize("text", ["", "-1", "1.5", "many", "9" * 5000, "0x10"], ids=lambda text: text[:8])
def test_other_values_of_the_variable_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(memory.POOL_VARIABLE, text)
    with pytest.raises(ArgumentError, match=MUST_BE):
        memory._max_free_bytes()


@pytest.mark.parametrize(("text", "returncode"), [("0", 0), ("many", 1)])
def test_the_variable_is_read_at_the_import(text: str, returncode: int) -> None:
    code = "from sepgroupy.backends.native import memory; assert memory.buffers.max_free_bytes == 0"
    environment = os.environ | {memory.POOL_VARIABLE: text}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == returncode, done.stderr
    assert (re.search(f"ArgumentError: {MUST_BE}", done.stderr) is None) == (returncode == 0)
