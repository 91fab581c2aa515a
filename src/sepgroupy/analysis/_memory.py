"""Peak memory of a forward and backward pass, from the allocator on a GPU and from live storages elsewhere."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all living storages that operations have created, and their peak.

    A storage counts once, whatever the number of its views, from the operation that returns it until it is freed.
    Storages that existed before, such as parameters and inputs, do not count. Scratch memory inside an operation is
    not seen.

    >>> x = torch.zeros(1000)
    >>> with LiveBytes() as live:
    ...     y = (x + 1).exp()  # 4000 bytes each, both alive until exp returns
    >>> live.now, live.peak
    (4000, 8000)
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and record the storages of its inputs and outputs."""
        self._record((args, kwargs), new=False)
        result = func(*args, **(kwargs or {}))
        self._record(result, new=True)
        return result

    def _record(self, values: Any, new: bool) -> None:
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()  # one Python object for the life of a storage
                if id(storage) not in self._known:
                    self._follow(storage, storage.nbytes() if new else 0)

    def _follow(self, storage: torch.UntypedStorage, nbytes: int) -> None:
        key = id(storage)

        def forget(_: object) -> None:
            self.now -= nbytes
            del self._known[key]

        self._known[key] = weakref.ref(storage, forget)
        self.now += nbytes
        self.peak = max(self.peak, self.now)


def peak_memory(module: nn.Module, x: Tensor) -> int:
    """Return the peak bytes of ``module(x).sum().backward()``, above those that were allocated before.

    Activations, tensors saved by autograd, temporaries and the gradients of the parameters count. Parameters, buffers
    and x do not. On a GPU the number comes from ``torch.cuda.max_memory_allocated`` in the second of two passes, since
    libraries allocate permanent workspaces in the first; elsewhere it is the peak of :class:`LiveBytes`. The module
    has gradients afterwards.
    """
    if not x.is_cuda:
        with LiveBytes() as live:
            forward_backward(module, x)
        return live.peak
    forward_backward(module, x)
    module.zero_grad(set_to_none=True)
    before = torch.cuda.memory_allocated(x.device)
    torch.cuda.reset_peak_memory_stats(x.device)
    forward_backward(module, x)
    return torch.cuda.max_memory_allocated(x.device) - before


def forward_backward(module: nn.Module, x: Tensor) -> None:
    """Run both passes. A module without free parameters has no backward pass."""
    total = module(x).sum()
    if total.requires_grad:
        total.backward()
