"""Lifting and group convolutions as modules: they hold free parameters and call the functional layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..functional._geometry import Geometry, Pair
from ..functional._plan import Plan
from ..groups import PointGroup, as_group
from ._base import DEFAULT_INIT, GroupConvolution, check_channels, filter_shapes
from ._norm import is_plain, norm_relu, read_norm


class LiftingConv2d(GroupConvolution):
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
        algorithm: how the result, the same to rounding, is computed: "auto", by compiled kernels on a CPU where they
            are faster, or "torch" (or "dense"), one convolution of PyTorch's with all transformed filters.
        init: how parameters are drawn, "published" or "variance", see :meth:`reset_parameters`.
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
        algorithm: str = "auto",
        init: str = DEFAULT_INIT,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        group = as_group(group)
        geometry = Geometry.parse(group, kernel_size, stride, padding, dilation, groups, padding_mode)
        inner = check_channels(in_channels, out_channels, groups)
        shapes: dict[str, tuple[int, ...]] = {"weight": (out_channels, inner, 1, *geometry.kernel_size)}
        super().__init__(
            in_channels,
            out_channels,
            Plan.make(group, "lifting", algorithm, geometry),
            shapes,
            bias,
            device,
            dtype,
            init=init,
        )

    def forward(self, x: Tensor, moments: bool = False) -> Tensor:
        """Lift x, (B, in_channels, Y, X), to a map on the group, (B, out_channels, |H|, Y', X').

        With moments, a norm in training reads the result, see :meth:`GroupConv2d.forward`.
        """
        self.plan.check_input(x, self.in_channels, self.main_weight)
        plan = self.plan.settle(x)
        return plan.apply(x, self._filters(plan), self.bias, moments=moments)[0]


class GroupConv2d(GroupConvolution):
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
        algorithm: how the result, the same to rounding, is computed. "auto" is the fastest known; "torch" the fastest
            of PyTorch's own operations; "dense" convolves with the expanded matrices as they stand, a separable layer
            in two steps; "full" multiplies the factors out and convolves once; "fourier" takes the pointwise step of
            a gc layer, or a 1×1 dense layer, to the group's Fourier domain; "native" takes the whole convolution
            there, by compiled kernels on a CPU.
        init: how parameters are drawn, "published" or "variance", see :meth:`reset_parameters`.
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
        init: str = DEFAULT_INIT,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        group = as_group(group)
        geometry = Geometry.parse(group, kernel_size, stride, padding, dilation, groups, padding_mode)
        inner = check_channels(in_channels, out_channels, geometry.groups)
        shapes = filter_shapes(kind, out_channels, inner, group.order, geometry.kernel_size)
        plan = Plan.make(group, kind, algorithm, geometry)
        super().__init__(in_channels, out_channels, plan, shapes, bias, device, dtype, init=init)

    def forward(
        self, x: Tensor, norm: nn.Module | None = None, shortcut: Tensor | None = None, moments: bool = False
    ) -> Tensor:
        """Convolve x to a map on the group, (B, out_channels, |H|, Y', X').

        Args:
            x: map on the group, (B, in_channels, |H|, Y, X).
            norm: a planar batch norm; if given, ``relu(norm(x))`` is convolved, its group axis folded into the batch.
                The same as applying it before, but on a CPU without the passes and the memory of the map between.
            shortcut: a map to add to the result, of its shape; the same as adding it after, without the pass.
            moments: whether the result goes to another layer together with a norm in training. On a CPU its statistics
                are then taken as it is written; edits through its ``.data``, which leave no trace, are not seen.
        """
        return self._convolve(x, norm, shortcut, moments)[0]

    def fork(self, x: Tensor, norm: nn.Module | None = None, moments: bool = False) -> tuple[Tensor, Tensor]:
        """Return ``forward(x, norm)`` and x, for a branch that starts here; hooks of the module are not called.

        The same as reading x twice, but on a CPU what the branch adds to the gradient of x costs no pass.
        """
        return self._convolve(x, norm, None, moments, fork=True)

    def _convolve(
        self, x: Tensor, norm: nn.Module | None, shortcut: Tensor | None, moments: bool, fork: bool = False
    ) -> tuple[Tensor, Tensor]:
        self.plan.check_input(x, self.in_channels, self.main_weight)
        if shortcut is not None:
            size = self.plan.geometry.output_size(*x.shape[-2:])
            if shortcut.shape != (expected := (x.shape[0], self.out_channels, self.plan.group.order, *size)):
                raise ArgumentError(f"shortcut has shape {tuple(shortcut.shape)}; the result has {expected}")
        plan = self.plan.settle(x)
        if norm is not None and not (is_plain(norm) and plan.fuses(x)):
            return plan.apply(norm_relu(norm, x), self._filters(plan), self.bias, None, shortcut, moments)[0], x
        affine = None if norm is None else read_norm(norm, x)
        return plan.apply(x, self._filters(plan), self.bias, affine, shortcut, moments, fork)
