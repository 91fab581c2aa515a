"""Refuse what makes the host wait for a device, or leaves a tensor on the host; without a card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim"}
"""Operators whose result, or its shape, is known to the host when they return."""
METHODS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__"}
"""Methods of tensors that do the same."""


class NoReads(TorchDispatchMode):
    """Refuse operators that read values, of tensors of every device; and tensors elsewhere than on ``device``."""

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.device, self.calls = device, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        assert func.overloadpacket.__name__ not in READS, f"{func} reads values"
        found = func(*args, **(kwargs or {}))
        if self.device is not None and func.namespace != "prim":  # questions, such as for the device
            for tensor in tree_leaves((args, kwargs, found)):
                if isinstance(tensor, Tensor):
                    assert tensor.device.type == self.device, f"{func} has a tensor on {tensor.device}"
        return found


class NoMethodReads(TorchFunctionMode):
    """Refuse methods that read values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert getattr(func, "__name__", "") not in METHODS, f"{func} reads values"
        return func(*args, **(kwargs or {}))


def without_reads(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function that must not read a value of a tensor."""
    with NoMethodReads(), NoReads() as mode:
        found = function(*args)
    assert mode.calls, "nothing was computed"
    return found


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Let new tensors be fake ones on "cuda"."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), torch.device("cuda"):
        yield


def without_reads_on_cuda(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function within :func:`fake_cuda` that must not read a value, nor have a tensor elsewhere."""
    with torch.device("cpu"), NoMethodReads(), NoReads("cuda") as mode:
        found = function(*args)
    assert mode.calls, "nothing was computed"
    return found
