"""Memory that is kept between calls: lent once at a time, taken back when nothing reads it, bounded."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sepgroupy.functional._native import _memory, kernels
from torch import Tensor, nn

from sepgroupy.analysis import peak_memory
from sepgroupy.groups import D4
from sepgroupy.nn import GroupConv2d

pytestmark = pytest.mark.skipif(not kernels(), reason=kernels().summary)
SHAPE = (2, 8, 5, 64, 64)  # of 1.25 MiB


@pytest.fixture(autouse=True)
def _none_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "_maps", _memory._Maps())


def new(shape: tuple[int, ...] = SHAPE) -> Tensor:
    return _memory.empty(torch.zeros(1), shape)


def test_the_next_map_of_as_many_bytes_takes_the_memory_over() -> None:
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


def test_small_maps_are_not_kept() -> None:
    new((10, 10))
    assert not _memory._maps._idle


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
def test_memory_that_anything_reads_is_not_lent_again(hold: Callable[[Tensor], Any]) -> None:
    y = new()
    address, held = y.data_ptr(), hold(y)
    del y
    gc.collect()
    assert new().data_ptr() != address
    del held
    gc.collect()
    assert address in {block.ctypes.data for block in _memory._maps._idle.values()}


def test_memory_moved_to_other_processes_is_not_written_again() -> None:
    y = new().fill_(1.0)
    shared = y.share_memory_()
    new().fill_(2.0)
    assert shared.is_shared()
    assert bool((shared == 1).all())


def test_idle_memory_is_bounded_and_the_longest_unused_is_freed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    size = new().nbytes
    monkeypatch.setattr(_memory, "IDLE", 3 * size)
    maps = [new((*SHAPE[:-1], 64 + n)) for n in range(5)]
    largest = maps[-1].nbytes
    while maps:
        maps.pop(0)
        assert sum(block.nbytes for block in _memory._maps._idle.values()) <= 3 * size
    assert list(_memory._maps._idle.values())[-1].nbytes == largest
    assert size not in {block.nbytes for block in _memory._maps._idle.values()}
    monkeypatch.setattr(_memory, "IDLE", 0)
    new()
    assert not _memory._maps._idle


def test_deterministic_algorithms_are_given_filled_memory() -> None:
    new().fill_(1.0)
    torch.use_deterministic_algorithms(True)
    try:
        assert bool(new().isnan().all())
    finally:
        torch.use_deterministic_algorithms(False)


def test_threads_never_share_a_map() -> None:
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
    assert len(_memory._maps._idle) <= 4 * 3  # each held two as it took the next


@pytest.mark.parametrize("inference", [False, True])
def test_layers_take_their_maps_from_it_and_keep_their_results(inference: bool) -> None:
    layer = GroupConv2d(3, 4, 3, padding=1, group=D4, kind="gc", algorithm="native")
    with torch.inference_mode(inference):
        pictures = [torch.randn(2, 3, 8, 64, 64) for _ in range(3)]
        outputs = [layer(x) for x in pictures]
        assert not _memory._maps._idle
        for x, y in zip(pictures, outputs, strict=True):
            torch.testing.assert_close(y, layer(x), rtol=0, atol=0)
        assert len(_memory._maps._idle) == 1
        del outputs, y
        assert len(_memory._maps._idle) == 4


def test_memory_that_is_idle_does_not_count_as_a_networks() -> None:
    layer = GroupConv2d(3, 4, 3, padding=1, group=D4, kind="gc", algorithm="native")
    x = torch.randn(2, 3, 8, 64, 64)
    assert peak_memory(layer, x) == peak_memory(layer, x) >= layer(x).nbytes
