"""The interface of a backend, and predicates on tensors that several backends use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from typing import ClassVar

import torch
import torch.autograd.forward_ad
import torch.nn.functional as F
from torch import Tensor

from .conv_spec import ConvSpec

Filters = tuple[Tensor | None, ...]
"""The tensors that a backend reads in place of the free parameters; their meaning is private to the backend."""


class Backend(ABC):
    """An algorithm for the convolutions that a :class:`ConvSpec` specifies. All backends agree to rounding.

    The contract tests compare every registered backend with the definition. :func:`sepgroupy.backends.register` adds
    one.
    """

    name: ClassVar[str]
    """The value of ``backend=`` that selects it."""
    double_backward: ClassVar[bool] = True
    """Whether it has second derivatives."""
    forward_mode: ClassVar[bool] = True
    vmap: ClassVar[bool] = True
    compiles: ClassVar[bool] = True
    exports: ClassVar[bool] = True
    """Whether it supports forward-mode derivatives, ``torch.vmap`` and other function transforms, ``torch.compile``,
    and ``torch.export`` and ``torch.jit.trace``. Under those that it does not support, "auto" chooses another
    backend."""

    def unavailable_reason(self) -> str | None:
        """Return why this machine cannot use the backend, or None."""
        return None

    def summary(self) -> str:
        """Describe the implementation in one line."""
        return "PyTorch's operations"

    def supports_device(self, device: str) -> bool:
        """Whether it computes on a type of device, such as "cuda"."""
        return True

    @abstractmethod
    def unsupported_reason(self, spec: ConvSpec, x: Tensor | None = None) -> str | None:
        """Return None if the backend supports the convolution (of this input), or else its unmet requirement.

        The text completes "backend (='name') needs …".
        """

    @abstractmethod
    def expand_filters(self, spec: ConvSpec, parameters: Mapping[str, Tensor]) -> Filters:
        """Convert free parameters, by their published names, to the tensors that :meth:`run` reads; differentiable."""

    def expand_filters_for_reuse(self, spec: ConvSpec, parameters: Mapping[str, Tensor], x: Tensor) -> Filters:
        """Prepare filters for reuse by calls without gradients, on inputs of the same :meth:`reuse_key`."""
        filters = tuple(None if f is None else f.detach() for f in self.expand_filters(spec, parameters))
        if not torch.is_autocast_enabled(x.device.type):
            return filters
        dtype = torch.get_autocast_dtype(x.device.type)  # otherwise each call would cast them
        return tuple(f.to(dtype) if f is not None and f.is_floating_point() else f for f in filters)

    def reuse_key(self, spec: ConvSpec, x: Tensor) -> Hashable:
        """Return a key of all that reusable filters depend on besides parameters; None if reuse saves nothing."""
        return ()

    @abstractmethod
    def run(self, spec: ConvSpec, x: Tensor, filters: Filters, bias: Tensor | None) -> Tensor:
        """Convolve (B, I, Y, X) if lifting, else (B, I, |H|, Y, X), to (B, O, |H|, Y', X'); in 1-D and 3-D alike."""


def is_plain_eager_tensor(x: Tensor) -> bool:
    """Whether x is a plain tensor with values, and no compiler, tracer, function transform or autocast is active.

    Forward-mode differentiation counts as a function transform.
    """
    return has_plain_values(x) and not torch.is_autocast_enabled(x.device.type)


def has_plain_values(x: Tensor) -> bool:
    """Whether :func:`is_plain_eager_tensor` holds, or would hold without autocast."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and not x.is_meta
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and torch.autograd.forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
    )


def can_bypass_dispatcher(x: Tensor) -> bool:
    """Whether x is a plain eager tensor, under autocast or not, and no dispatch mode watches operations either."""
    return has_plain_values(x) and not torch._C._len_torch_dispatch_stack()


def repeat_bias(bias: Tensor | None, spec: ConvSpec) -> Tensor | None:
    """Return the bias (O,) for the (groups·|H|·O/groups) channels that a filter bank gives."""
    if bias is None:
        return None
    if spec.groups == 1:
        return bias.repeat(spec.group.order)
    index = torch.arange(len(bias), device=bias.device).reshape(spec.groups, 1, -1)
    return bias[index.expand(-1, spec.group.order, -1).flatten()]  # Inductor of PyTorch 2.11 refuses a reshaped bias


CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec, groups: int) -> Tensor:
    """Apply ``torch.nn.functional.conv2d``, or ``conv_transpose2d``, or 1d or 3d, with the specification's geometry."""
    dimension = len(spec.kernel_size)
    if spec.transposed:
        transposed, padding = CONV_TRANSPOSE[dimension], spec.padding[::2]
        return transposed(x, weight, bias, spec.stride, padding, spec.output_padding, groups, spec.dilation)
    x, padding = pad(x, spec)
    return CONV[dimension](x, weight, bias, spec.stride, padding, spec.dilation, groups)


def pad(x: Tensor, spec: ConvSpec) -> tuple[Tensor, tuple[int, ...]]:
    """Pad (B, C, …) where PyTorch's convolution cannot; return it with the remaining padding."""
    if not spec.pads_separately:
        return x, spec.padding[::2]
    return pad_all(x, spec), (0,) * spec.dimension


def pad_all(x: Tensor, spec: ConvSpec) -> Tensor:
    """Pad (B, C, …) on all sides."""
    mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
    last_first = [p for axis in reversed(range(spec.dimension)) for p in spec.padding[2 * axis : 2 * axis + 2]]
    return F.pad(x, last_first, mode=mode)
