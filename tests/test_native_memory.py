"""Memory that is kept between calls: lent once at a time, taken back when nothing reads it, bounded."""

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
from sepgroupy.groups import D4
from sepgroupy.nn import GroupConv2d

pytestmark = pytest.mark.skipif(not kernels(), reason=kernels().summary)
SHAPE = (2, 8, 5, 64, 64)  # of 1.25 MiB


@pytest.fixture(autouse=True)
def _empty_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "buffers", memory.BufferPool(2**29))


def new(shape: tuple[int, ...] = SHAPE) -> Tensor:
    return memory.empty(shape, torch.zeros(1))


def test_the_next_tensor_of_as_many_bytes_reuses_the_memory() -> None:
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


def test_small_buffers_are_not_pooled() -> None:
    new((10, 10))
    assert not memory.buffers._free


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
def test_memory_that_anything_reads_is_not_reused(hold: Callable[[Tensor], Any]) -> None:
    y = new()
    address, held = y.data_ptr(), hold(y)
    del y
    gc.collect()
    assert new().data_ptr() != address
    del held
    gc.collect()
    assert address in {block.ctypes.data for block in memory.buffers._free.values()}


def test_memory_moved_to_other_processes_is_not_written_again() -> None:
    y = new().fill_(1.0)
    shared = y.share_memory_()
    new().fill_(2.0)
    assert shared.is_shared()
    assert bool((shared == 1).all())


def test_free_memory_is_bounded_and_the_least_recently_used_goes_first() -> None:
    size = new().nbytes
    memory.buffers.max_free_bytes = 3 * size
    maps = [new((*SHAPE[:-1], 64 + n)) for n in range(5)]
    largest = maps[-1].nbytes
    while maps:
        maps.pop(0)
        assert sum(block.nbytes for block in memory.buffers._free.values()) <= 3 * size
    assert list(memory.buffers._free.values())[-1].nbytes == largest
    assert size not in {block.nbytes for block in memory.buffers._free.values()}
    memory.buffers.max_free_bytes = 0
    memory.buffers.clear()
    new()
    assert not memory.buffers._free


def test_deterministic_algorithms_are_given_filled_memory() -> None:
    new().fill_(1.0)
    torch.use_deterministic_algorithms(True)
    try:
        assert bool(new().isnan().all())
    finally:
        torch.use_deterministic_algorithms(False)


def test_threads_never_share_a_buffer() -> None:
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
    assert len(memory.buffers._free) <= 4 * 3  # each held two as it took the next


@pytest.mark.parametrize("inference", [False, True])
def test_layers_use_the_pool_and_results_stay(inference: bool) -> None:
    layer = GroupConv2d(3, 4, 3, padding=1, group=D4, kind="gc", backend="native")
    with torch.inference_mode(inference):
        images = [torch.randn(2, 3, 8, 64, 64) for _ in range(3)]
        outputs = [layer(x) for x in images]
        assert not memory.buffers._free
        for x, y in zip(images, outputs, strict=True):
            torch.testing.assert_close(y, layer(x), rtol=0, atol=0)
        assert len(memory.buffers._free) == 1
        del outputs, y
        assert len(memory.buffers._free) == 4


def test_free_memory_does_not_count_as_a_networks() -> None:
    layer = GroupConv2d(3, 4, 3, padding=1, group=D4, kind="gc", backend="native")
    x = torch.randn(2, 3, 8, 64, 64)
    assert peak_memory(layer, x) == peak_memory(layer, x) >= layer(x).nbytes


def test_emptying_the_cache_frees_all_of_it() -> None:
    new()
    assert memory.buffers.free_bytes() > 0
    sepgroupy.empty_cache()
    assert memory.buffers.free_bytes() == 0
    assert memory.workspace.held is None


def test_the_environment_limits_the_pool() -> None:
    code = """
import torch, sepgroupy
from sepgroupy.backends.native import memory
layer = sepgroupy.GroupConv2d(3, 4, 3, padding=1, group="p4m", backend="native")
for _ in range(3):
    layer(torch.randn(2, 3, 8, 64, 64))
print(memory.buffers.free_bytes())
"""
    for value, holds in (("0", "0"), ("512", None)):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {memory.POOL_VARIABLE: value},
            capture_output=True,
            text=True,
            check=True,
        )
        assert (done.stdout.strip() == "0") == (holds == "0")
    environment = os.environ | {memory.POOL_VARIABLE: "much"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert f"{memory.POOL_VARIABLE} (='much') must be a whole number of MiB" in done.stderr
