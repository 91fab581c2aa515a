"""Lifting and group convolutions as modules: they hold free parameters and call the functional layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..functional._geometry import Geometry, Pair
from ..functional._plan import Filters, Plan, is_ordinary
from ..groups import PointGroup, as_group
from ._norm import is_plain, norm_relu, read_norm


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


class _GroupConvolution(nn.Module):
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
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.plan = in_channels, out_channels, plan
        self.bias: nn.Parameter | None
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        )
        self._filter_names = tuple(shapes)
        self._tables: dict[str, Tensor] = {}
        self._kept: _Kept | None = None
        self._lay_tables()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew so that a layer followed by ReLU keeps the mean square of its maps.

        A dense filter needs variance ``2/(I·|H|·k²)`` an entry (He et al., 2015), ``I·|H|·k²`` the number of terms
        in its sum. The product of independent factors has the product of their variances, so a separable layer
        draws its depthwise factor with ``2/k²`` and its pointwise factor with ``1/(I·|H|)``. Biases are zero.
        """
        gain = 2.0
        for name in self._filter_names:
            weight = getattr(self, name)
            terms = weight[0].numel() if name != "depthwise_weight" else math.prod(self.plan.geometry.kernel_size)
            bound = math.sqrt(3.0 * (1.0 if name == "pointwise_weight" else gain) / terms)
            nn.init.uniform_(weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _filters(self, plan: Plan) -> Filters:
        """Return the filters, those of an earlier call if no gradient is wanted and the parameters have not changed."""
        parameters = {name: getattr(self, name) for name in self._filter_names}
        if torch.is_grad_enabled() or not all(type(p) is nn.Parameter and is_ordinary(p) for p in parameters.values()):
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
        weight = getattr(self, self._filter_names[0])
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


class LiftingConv2d(_GroupConvolution):
    """Lift a planar map to the group: ``y[o, g] = Σ_i (g·w[o,i]) ⋆ x[i] + b[o]``.

    Equivariance: ``layer(t·x) = t·layer(x)`` for every t of the group, where ``(t·f)[g] = t·(f[t⁻¹g])``; exact to
    rounding whenever ``(n + 2·padding - dilation·(k-1) - 1) % stride == 0`` on both axes of a square input.

    Args:
        in_channels: channels of the planar input (B, in_channels, Y, X).
        out_channels: channels of the output (B, out_channels, |H|, Y', X').
        kernel_size: an integer or a pair (rows, columns); any size, even ones too.
        stride: step between output pixels; this and what follows as in ``torch.nn.Conv2d``.
        padding: pixels added on each side, an integer, a pair, "same" or "valid".
        dilation: distance between the taps of the kernel.
        groups: blocks of channels that do not see each other.
        bias: whether to add one number for each output channel.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        group: the point group: "p4", "p4m", …, a PointGroup or a list of generators.
        device: where to make the parameters.
        dtype: their type.

    Shape:
        ``weight`` (out_channels, in_channels/groups, 1, k, k), ``bias`` (out_channels).

    Raises:
        ArgumentError: an argument is out of range, or is uneven on two axes that the group exchanges.

    Source: Cohen & Welling (2016), Group equivariant convolutional networks, section 6.1.

    >>> import torch
    >>> layer = LiftingConv2d(3, 16, 3, padding=1, group="p4m")
    >>> layer(torch.zeros(2, 3, 9, 9)).shape
    torch.Size([2, 16, 8, 9, 9])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        group: PointGroup | str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        group = as_group(group)
        geometry = Geometry.parse(group, kernel_size, stride, padding, dilation, groups, padding_mode)
        inner = _check_channels(in_channels, out_channels, groups)
        shapes: dict[str, tuple[int, ...]] = {"weight": (out_channels, inner, 1, *geometry.kernel_size)}
        super().__init__(
            in_channels,
            out_channels,
            Plan.make(group, "lifting", "auto", geometry),
            shapes,
            bias,
            device,
            dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Lift x, (B, in_channels, Y, X), to a map on the group, (B, out_channels, |H|, Y', X')."""
        self.plan.check_input(x, self.in_channels)
        plan = self.plan.settle(x)
        return plan.apply(x, self._filters(plan), self.bias)


class GroupConv2d(_GroupConvolution):
    """Convolve over the group: ``y[o, g] = Σ_i Σ_h (g·w[o,i])[h] ⋆ x[i, h] + b[o]``.

    ``kind`` says what the parameters are:

    * ``"dense"``: ``weight`` (O, I, |H|, k, k);
    * ``"g"``: ``w[o,i,h] = pw[o,i,h]·dw[o,i]`` from ``depthwise_weight`` (O, I, k, k) and ``pointwise_weight``
      (O, I, |H|, 1, 1);
    * ``"gc"``: ``w[o,i,h] = pw[o,i,h]·dw[o]`` from ``depthwise_weight`` (O, 1, 1, k, k) and the same,

    with O = out_channels, I = in_channels/groups. Equivariance: ``layer(t·x) = t·layer(x)`` for every t of the group,
    where ``(t·f)[g] = t·(f[t⁻¹g])``; exact to rounding whenever
    ``(n + 2·padding - dilation·(k-1) - 1) % stride == 0`` on both axes of a square input.

    Args:
        in_channels: channels of the input (B, in_channels, |H|, Y, X).
        out_channels: channels of the output (B, out_channels, |H|, Y', X').
        kernel_size: an integer or a pair (rows, columns); any size, even ones too.
        stride: step between output pixels; this and what follows as in ``torch.nn.Conv2d``.
        padding: pixels added on each side, an integer, a pair, "same" or "valid".
        dilation: distance between the taps of the kernel.
        groups: blocks of channels that do not see each other.
        bias: whether to add one number for each output channel.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        group: the point group: "p4", "p4m", …, a PointGroup or a list of generators.
        kind: "dense", "g" or "gc", see above.
        algorithm: how the result, the same to rounding, is computed. "auto" is the fastest known; "dense" convolves
            with the expanded matrices as they stand, a separable layer in two steps; "full" multiplies the factors
            out and convolves once; "fourier" takes the pointwise step of a gc layer, or a 1×1 dense layer, to the
            group's Fourier domain.
        device: where to make the parameters.
        dtype: their type.

    Raises:
        ArgumentError: an argument is out of range, or is uneven on two axes that the group exchanges.

    Source: Cohen & Welling (2016), section 6.1; g and gc: Lengyel & van Gemert (2021), section 3.2.

    >>> import torch
    >>> layer = GroupConv2d(16, 32, 3, padding=1, group="p4m", kind="gc")
    >>> layer(torch.zeros(2, 16, 8, 9, 9)).shape
    torch.Size([2, 32, 8, 9, 9])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        group: PointGroup | str,
        kind: str = "dense",
        algorithm: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        group = as_group(group)
        geometry = Geometry.parse(group, kernel_size, stride, padding, dilation, groups, padding_mode)
        plan = Plan.make(group, kind, algorithm, geometry)
        inner = _check_channels(in_channels, out_channels, groups)
        pointwise, kernel = (out_channels, inner, group.order, 1, 1), geometry.kernel_size
        shapes: dict[str, tuple[int, ...]]
        if kind == "dense":
            shapes = {"weight": (out_channels, inner, group.order, *kernel)}
        else:
            depthwise = (out_channels, inner, *kernel) if kind == "g" else (out_channels, 1, 1, *kernel)
            shapes = {"depthwise_weight": depthwise, "pointwise_weight": pointwise}
        super().__init__(in_channels, out_channels, plan, shapes, bias, device, dtype)

    def forward(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """Convolve x to a map on the group, (B, out_channels, |H|, Y', X').

        Args:
            x: map on the group, (B, in_channels, |H|, Y, X).
            norm: a planar batch norm; if given, ``relu(norm(x))`` is convolved, its group axis folded into the batch.
                The same as applying it before, but on a CPU without the passes and the memory of the map between.
        """
        self.plan.check_input(x, self.in_channels)
        plan = self.plan.settle(x)
        if norm is None:
            return plan.apply(x, self._filters(plan), self.bias)
        if isinstance(norm, nn.BatchNorm2d) and is_plain(norm) and plan.fuses(x):
            return plan.apply(x, self._filters(plan), self.bias, read_norm(norm, x))
        return plan.apply(norm_relu(norm, x), self._filters(plan), self.bias)


def _check_channels(in_channels: int, out_channels: int, groups: int) -> int:
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if not isinstance(channels, int) or channels < 1:
            raise ArgumentError(f"{name} (={channels!r}) must be a positive integer")
        if channels % groups:
            raise ArgumentError(f"{name} (={channels}) must be divisible by groups (={groups})")
    return in_channels // groups
