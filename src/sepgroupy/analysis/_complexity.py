"""The cost of a network: parameters, multiply-accumulates and memory."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import ArgumentError
from ..nn import GroupConv, LiftingConv
from ._memory import peak_memory

_COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, LiftingConv, GroupConv)
_WEIGHTS = ("weight", "depthwise_weight", "pointwise_weight")


@dataclass(frozen=True)
class Complexity:
    """The cost of a network, from :func:`complexity`.

    Args:
        parameters: the number of free parameters.
        macs: multiply-accumulates for one image by the paper's formula.
        macs_executed: multiply-accumulates for one image that torch executes.
        memory: peak bytes of a forward and backward pass of two images.
    """

    parameters: int
    macs: int
    macs_executed: int
    memory: int


def complexity(module: nn.Module, shape: Sequence[int]) -> Complexity:
    """Measure the cost of a network, on the device and in the dtype of its parameters.

    * ``parameters``: the number of their elements. Shared parameters count once.
    * ``macs``: the paper's formula. An output value of a layer costs one multiply-accumulate for each weight of its
      output channel, in a separable layer for each weight of both factors. At P output pixels that is
      O·I·k²·P for a plain layer, O·I·|H|·k²·P for a lifting one, and for a group convolution O·I·|H|²·k²·P if it is
      dense, O·I·|H|·(|H| + k²)·P for g (``w[o,i,h] = pw[o,i,h]·dw[o,i]``) and O·|H|·(I·|H| + k²)·P for gc
      (``w[o,i,h] = pw[o,i,h]·dw[o]``). A plain 1×1 convolution directly before a depthwise one forms one
      separable layer with it, so both count at the output pixels of the pair. Layers are the calls of plain
      convolutions, Linear, and lifting and group convolutions of any dimension. Transposed convolutions and all other
      modules do not count.
    * ``macs_executed``: half of what ``torch.utils.flop_counter`` counts in one forward pass in inference mode:
      all matrix products and convolutions that the selected backends execute.
    * ``memory``: peak bytes of a forward and backward pass of two images in training mode. Activations,
      tensors saved by autograd, temporaries and the gradients of the parameters count; parameters, buffers and the
      images do not. On a GPU it comes from torch's allocator, in a second pass. Elsewhere every storage that an
      operation returns is followed until it is freed; scratch memory inside an operation is not seen.

    A copy is measured: the module, its mode, gradients and running statistics do not change.

    Args:
        module: from images (B, \\*shape) to one tensor.
        shape: of one image, (channels, rows, columns).

    Raises:
        ArgumentError: the module does not read images of this shape, or returns something other than one tensor.

    Source of the formula: Lengyel & van Gemert (2021), section 3.3.

    >>> cost = complexity(nn.Conv2d(3, 8, 3), (3, 6, 6))
    >>> cost.parameters, cost.macs, cost.macs_executed
    (224, 3456, 3456)
    """
    if not shape or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ArgumentError(f"shape (={tuple(shape)}) must be positive integers: channels, rows, columns")
    module = deepcopy(module).eval()
    formula = _Formula()
    hooks = [m.register_forward_hook(formula) for m in module.modules() if isinstance(m, _COUNTED)]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        try:
            output = module(random_images(module, 1, shape))
        except (ArgumentError, RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ArgumentError(
                f"module {type(module).__name__} fails on an image of shape {tuple(shape)}: {error}"
            ) from error
    if not isinstance(output, Tensor):
        raise ArgumentError(f"module {type(module).__name__} returns a {type(output).__name__}: it must be one tensor")
    for hook in hooks:
        hook.remove()
    return Complexity(
        parameters=sum(p.numel() for p in module.parameters()),
        macs=formula.macs,
        macs_executed=counter.get_total_flops() // 2,
        memory=peak_memory(module.train(), random_images(module, 2, shape)),
    )


def random_images(module: nn.Module, count: int, shape: Sequence[int]) -> Tensor:
    """Return random images of a shape, on the device and in the dtype of a module."""
    reference = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *shape, generator=generator).to(reference)


class _Formula:
    """A forward hook that sums the paper's formula."""

    def __init__(self) -> None:
        self.macs = 0
        self._last: tuple[nn.Module, Tensor, int, int] | None = None  # module, output, its version, weights

    def __call__(self, module: Any, args: tuple[Any, ...], output: Tensor) -> None:
        weights = sum(getattr(module, name)[0].numel() for name in _WEIGHTS if hasattr(module, name))
        if self._last and _is_depthwise(module) and _is_pointwise(self._last[0]):
            _, between, version, pointwise = self._last
            if any(arg is between for arg in args) and between._version == version:  # no in-place operation
                self.macs -= between.numel() * pointwise
                weights += pointwise
        self.macs += output.numel() * weights
        self._last = module, output, output._version, weights


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels
