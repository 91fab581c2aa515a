"""What all convolutions on a group share: parameters, constants, and filters kept while nothing changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..functional._execute import Filters
from ..functional._geometry import LARGEST_SIZE, check_numbers
from ..functional._plan import Plan, is_ordinary

INITS = ("published", "variance")
DEFAULT_INIT = "variance"


@dataclass
class _Kept:
    """Filters kept from one evaluation to the next, with what the parameters were when they were made."""

    algorithm: str
    filters: Filters
    parameters: list[tuple[nn.Parameter, int, Tensor]]

    def current(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Whether they are still right.

        On a CPU values are compared too, since an edit through ``.data`` leaves no other trace; elsewhere that would
        wait for the device.
        """
        return all(
            new is old and new._version == version and (new.device.type != "cpu" or torch.equal(new, copy))
            for new, (old, version, copy) in zip(parameters, self.parameters, strict=True)
        )


class GroupConvolution(nn.Module):
    """What lifting and group convolutions share; abstract: a subclass names its kind and its parameters."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        plan: Plan,
        shapes: dict[str, tuple[int, ...]],
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        spread: int = 1,
        init: str = DEFAULT_INIT,
    ) -> None:
        super().__init__()
        if init not in INITS:
            raise ArgumentError(f"init (={init!r}) must be one of {', '.join(INITS)}")
        self.init = init
        self.in_channels, self.out_channels, self.plan = int(in_channels), int(out_channels), plan
        self._spread = spread  # output pixels that share the taps of a kernel, of a transposed convolution
        self.bias: nn.Parameter | None
        _check_kind_of_numbers(device, dtype)
        counts = (
            f"in_channels (={in_channels}), out_channels (={out_channels}), kernel_size (={plan.geometry.kernel_size})"
        )
        for name, shape in shapes.items():
            check_numbers(f"{name} of {counts}", shape)
            setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        )
        self._filter_names = tuple(shapes)
        self._tables: dict[str, Tensor] = {}
        self._kept: _Kept | None = None
        self._lay_tables()
        self.reset_parameters()

    @property
    def main_weight(self) -> Tensor:
        """The first of the parameters, whose type is that of all."""
        return getattr(self, self._filter_names[0])

    def reset_parameters(self) -> None:
        """Draw the parameters again, in this order: weight, or depthwise and pointwise weight; then bias.

        All are drawn uniformly from ±bound. With ``K = kernel rows · kernel columns`` (divided by the product of the
        strides in a transposed layer, where an output pixel sees so many fewer kernel elements) and
        ``I = in_channels/groups``:

        * ``init="published"``: every parameter, the bias too, has ``bound = 1/√(I·K)``, as in the code of Lengyel &
          van Gemert (2021). Both factors of a separable layer are small, so that a fresh residual branch is too.
        * ``init="variance"``: a layer followed by ReLU preserves the mean square of its feature maps. A dense filter
          needs variance ``2/(I·|H|·K)`` per entry (He et al., 2015), a lifting filter ``2/(I·K)``. The variance of a
          product of independent factors is the product of their variances: the depthwise factor has ``2/K``, the
          pointwise factor ``1/(I·|H|)``. Biases are zero.
        """
        geometry, plan = self.plan.geometry, self.plan
        kernel_elements = math.prod(geometry.kernel_size) / self._spread
        channels = self.in_channels // geometry.groups
        published = 1 / math.sqrt(channels * kernel_elements)
        inputs = channels * (1 if plan.kind == "lifting" else plan.group.order)
        variances = {
            "weight": 2 / (inputs * kernel_elements),
            "depthwise_weight": 2 / kernel_elements,
            "pointwise_weight": 1 / inputs,
        }
        for name in self._filter_names:
            bound = published if self.init == "published" else math.sqrt(3 * variances[name])
            nn.init.uniform_(getattr(self, name), -bound, bound)
        if self.bias is not None:
            bound = published if self.init == "published" else 0.0
            nn.init.uniform_(self.bias, -bound, bound)

    def _filters(self, plan: Plan) -> Filters:
        """Return the filters, those of an earlier call if no gradient is wanted and the parameters have not changed."""
        parameters = {name: getattr(self, name) for name in self._filter_names}
        if (
            torch.is_grad_enabled()
            or plan.algorithm == "native"  # which reads the parameters themselves
            or not all(type(p) is nn.Parameter and is_ordinary(p) and not p.is_inference() for p in parameters.values())
        ):
            return plan.filters(parameters, self._tables)
        kept = self._kept
        if kept is None or kept.algorithm != plan.algorithm or not kept.current(parameters.values()):
            copies = [(p, p._version, p.detach().clone()) for p in parameters.values()]
            self._kept = kept = _Kept(plan.algorithm, plan.filters(parameters, self._tables), copies)
        return kept.filters

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def _lay_tables(self) -> None:
        # Constants, exact from the group: cast anew for each dtype, since .half().double() would have rounded them, and
        # never on the meta device, where .to_empty() would leave rubbish.
        self._kept = None
        weight = self.main_weight
        device = "cpu" if weight.is_meta else weight.device
        self._tables = {
            name: table.to(device, weight.dtype if table.is_floating_point() else None)
            for name, table in self.plan.tables().items()
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        self._lay_tables()
        return self

    def extra_repr(self) -> str:
        """Describe the layer as ``torch.nn.Conv2d`` does, with its group and kind."""
        geometry, plan = self.plan.geometry, self.plan
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={geometry.kernel_size}, stride={geometry.stride}"
        ]
        top, bottom, left, right = geometry.padding
        if any(geometry.padding):
            parts.append(f"padding={(top, left) if (top, left) == (bottom, right) else geometry.padding}")
        if geometry.dilation != (1, 1):
            parts.append(f"dilation={geometry.dilation}")
        if geometry.groups != 1:
            parts.append(f"groups={geometry.groups}")
        if geometry.padding_mode != "zeros":
            parts.append(f"padding_mode={geometry.padding_mode}")
        if self.bias is None:
            parts.append("bias=False")
        parts.append(f"group={plan.group.name or plan.group.order}")
        if plan.kind != "lifting":
            parts.append(f"kind={plan.kind}, algorithm={plan.algorithm}")
        return ", ".join(parts)


def _check_kind_of_numbers(device: torch.device | str | None, dtype: torch.dtype | None) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ArgumentError(f"dtype (={dtype!r}) must be a floating-point type of torch, or None")
    try:
        if device is not None:
            torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(f"device (={device!r}) is no device of torch: {str(error).splitlines()[0]}") from None


def filter_shapes(
    kind: str, rows: int, columns: int, order: int, kernel: tuple[int, int]
) -> dict[str, tuple[int, ...]]:
    """Return the free parameters of a kind, by name: ``rows`` filters of ``columns`` channels on a group."""
    if kind not in ("dense", "g", "gc"):
        raise ArgumentError(f"kind (={kind!r}) must be one of dense, g, gc")
    if kind == "dense":
        return {"weight": (rows, columns, order, *kernel)}
    depthwise = (rows, columns, *kernel) if kind == "g" else (rows, 1, 1, *kernel)
    return {"depthwise_weight": depthwise, "pointwise_weight": (rows, columns, order, 1, 1)}


def check_channels(in_channels: int, out_channels: int, groups: int) -> int:
    """Refuse numbers of channels that cannot be, and return the input channels of one block."""
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if not isinstance(channels, Integral) or isinstance(channels, bool) or not 1 <= channels <= LARGEST_SIZE:
            raise ArgumentError(f"{name} (={channels!r}) must be a positive integer below 2³¹")
        if channels % groups:
            raise ArgumentError(f"{name} (={channels}) must be divisible by groups (={groups})")
    return in_channels // groups
