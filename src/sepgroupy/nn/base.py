"""The base class of all group convolutions: specification, parameters, initialization and forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.fx
from torch import Tensor, nn

from ..backends import Backend, ConvSpec, Filters, can_bypass_dispatcher, check_backend, select_backend, worth_caching
from ..groups import PointGroup
from .filter_cache import FilterCache
from .parameters import check_factory, check_init, check_shapes, initial_bounds


class GroupConvolution(nn.Module):
    """Base class of lifting, group and transposed convolutions. Abstract: a subclass defines the parameters."""

    dimension: ClassVar[int]
    """The number of spatial axes."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        spec: ConvSpec,
        shapes: dict[str, tuple[int, ...]],
        bias: bool,
        backend: str,
        init: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        check_init(init)
        check_backend(spec, backend)
        check_factory(device, dtype)
        check_shapes(shapes, in_channels, out_channels, spec)
        self.in_channels, self.out_channels = int(in_channels), int(out_channels)
        self.spec, self.backend, self.init = spec, backend, init
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.bias: nn.Parameter | None
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        )
        self.filter_names = tuple(shapes)
        self.filter_cache: FilterCache | None = None  # set by cached_filters
        self.reset_parameters()

    @property
    def group(self) -> PointGroup:
        """The point group."""
        return self.spec.group

    @property
    def kind(self) -> str:
        """The kind of filter: "lifting", "dense", "g" or "gc"."""
        return self.spec.kind

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Size of the kernel by axis."""
        return self.spec.kernel_size

    @property
    def stride(self) -> tuple[int, ...]:
        """Stride by axis."""
        return self.spec.stride

    @property
    def padding(self) -> tuple[int, ...]:
        """Padding by axis or, where the two sides of an axis differ, before and after by axis."""
        before, after = self.spec.padding[::2], self.spec.padding[1::2]
        return before if before == after else self.spec.padding

    @property
    def dilation(self) -> tuple[int, ...]:
        """Dilation by axis."""
        return self.spec.dilation

    @property
    def groups(self) -> int:
        """Blocks of channels that are convolved separately."""
        return self.spec.groups

    @property
    def padding_mode(self) -> str:
        """The padding mode, one of ``PADDING_MODES``."""
        return self.spec.padding_mode

    @property
    def output_padding(self) -> tuple[int, ...]:
        """Pixels that a transposed convolution adds to the last side of each axis."""
        return self.spec.output_padding

    def reset_parameters(self) -> None:
        """Draw the parameters again, in this order: weight, or depthwise and pointwise weight; then bias.

        All are drawn uniformly from ±bound. With K the number of kernel elements (divided by the product of the
        strides in a transposed layer, where fewer kernel elements reach an output pixel) and
        ``I = in_channels/groups``:

        * ``init="published"``: every parameter, the bias too, has ``bound = 1/√(I·K)``, as in the code of Lengyel &
          van Gemert (2021). Both factors of a separable layer are small, so the output of a new residual block is
          small too.
        * ``init="variance"``: a layer followed by ReLU preserves the mean square of its feature maps. A dense filter
          needs variance ``2/(I·|H|·K)`` per entry (He et al., 2015), a lifting filter ``2/(I·K)``. The variance of a
          product of independent factors is the product of their variances: the depthwise factor has ``2/K``, the
          pointwise factor ``1/(I·|H|)``. Biases are zero.
        """
        bounds = initial_bounds(self.init, self.spec, self.in_channels)
        for name in self.filter_names:
            nn.init.uniform_(getattr(self, name), -bounds[name], bounds[name])
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bounds["bias"], bounds["bias"])

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x."""
        if isinstance(x, torch.fx.Proxy):
            return call_as_leaf(self, x)
        self.spec.check_input(x, self.in_channels, getattr(self, self.filter_names[0]))
        backend = select_backend(self.spec, x, self.backend)
        return backend.run(self.spec, x, self.expanded_filters(backend, x), self.bias)

    def expanded_filters(self, backend: Backend, x: Tensor) -> Filters:
        """Return the backend's filters for x, from the cache if there is one (:func:`cached_filters`)."""
        parameters = {name: getattr(self, name) for name in self.filter_names}
        if self.filter_cache is None or not worth_caching(backend, parameters):
            return backend.expand_filters(self.spec, parameters)
        return self.reused_filters(backend, x, parameters, lambda: parameters)

    def reused_filters(
        self,
        backend: Backend,
        x: Tensor,
        depends: Mapping[str, Tensor],
        parameters: Callable[[], Mapping[str, Tensor]],
    ) -> Filters:
        """Return the filters of ``parameters()``, from the cache if it is active.

        Args:
            backend: the backend that reads the filters.
            x: the input of the convolution.
            depends: the tensors that the parameters are computed from.
            parameters: function that computes the parameters, under the names of the layer's.
        """
        spec, cache = self.spec, self.filter_cache
        if cache is None or torch.is_grad_enabled() or not can_bypass_dispatcher(x):
            return backend.expand_filters(spec, parameters())
        if (reuse := backend.reuse_key(spec, x)) is None:
            return backend.expand_filters(spec, parameters())
        autocast = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else None
        key = (backend.name, x.device, autocast, reuse, tuple(depends))
        return cache.get(key, depends, lambda: backend.expand_filters_for_reuse(spec, parameters(), x))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "filter_cache": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # model.to(memory_format=torch.channels_last) must leave parameters with other than four axes as they are.
        return super()._apply(lambda t: _apply_to_any_rank(fn, t), recurse)

    def extra_repr(self) -> str:
        """Describe the layer as ``torch.nn.Conv2d`` does, with its group, kind and backend."""
        spec = self.spec
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={spec.kernel_size}, stride={spec.stride}"]
        if any(spec.padding):
            parts.append(f"padding={self.padding}")
        if any(spec.output_padding):
            parts.append(f"output_padding={spec.output_padding}")
        if max(spec.dilation) > 1:
            parts.append(f"dilation={spec.dilation}")
        if spec.groups != 1:
            parts.append(f"groups={spec.groups}")
        if spec.padding_mode != "zeros":
            parts.append(f"padding_mode={spec.padding_mode}")
        if self.bias is None:
            parts.append("bias=False")
        parts.append(f"group={spec.group.name or spec.group.order}")
        if spec.kind != "lifting":
            parts.append(f"kind={spec.kind}")
        if self.backend != "auto":
            parts.append(f"backend={self.backend}")
        return ", ".join(parts)


def call_as_leaf(module: nn.Module, x: torch.fx.Proxy) -> Any:
    """Record the call of a module as one step of a torch.fx graph, like that of the modules of torch.nn."""
    tracer: Any = x.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (x,), {})


def _apply_to_any_rank(fn: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    try:
        return fn(t)
    except RuntimeError as error:
        if "to use channels_last" not in str(error):
            raise
        like = fn(t.new_empty(1))  # of the device and dtype that are asked for
        return t.to(like.device, like.dtype)
