"""Lifting and group convolutions as modules."""

from __future__ import annotations

import torch

from ..backends import ConvSpec, Pair
from ..groups import PointGroup, as_group
from .base import DEFAULT_INIT, GroupConvolution, check_channels, check_kind, filter_shapes


class LiftingConv2d(GroupConvolution):
    """Lift an image to the group: ``y[o, g] = Σ_i (g·w[o,i]) ⋆ x[i] + b[o]``.

    Equivariance: ``layer(t·x) = t·layer(x)`` for every t of the group, where ``(t·f)[g] = t·(f[t⁻¹g])``; exact to
    rounding whenever ``(n + 2·padding - dilation·(k-1) - 1) % stride == 0`` on both axes of a square input.

    Args:
        in_channels: channels of the input (B, in_channels, Y, X).
        out_channels: channels of the output (B, out_channels, |H|, Y', X').
        kernel_size: an integer or a pair (rows, columns); any size, even ones too.
        stride: step between output pixels; this and what follows as in ``torch.nn.Conv2d``.
        padding: pixels added on each side, an integer, a pair, "same" or "valid".
        dilation: distance between the elements of the kernel.
        groups: blocks of channels that are convolved separately.
        bias: whether to add one number for each output channel.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        group: the point group: "p4", "p4m", …, a PointGroup or a list of generators.
        backend: how the result, the same to rounding, is computed: "auto", the fastest known; "torch", the fastest of
            PyTorch's own operations; or one by name, see :func:`sepgroupy.available_backends`.
        init: how parameters are drawn, "published" or "variance", see :meth:`reset_parameters`.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        ``weight`` (out_channels, in_channels/groups, 1, k, k), ``bias`` (out_channels).

    Raises:
        ArgumentError: an argument is out of range, or its values differ on two axes that the group exchanges.

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
        backend: str = "auto",
        init: str = DEFAULT_INIT,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        spec = ConvSpec.parse(as_group(group), "lifting", kernel_size, stride, padding, dilation, groups, padding_mode)
        per_block = check_channels(in_channels, out_channels, spec.groups)
        shapes: dict[str, tuple[int, ...]] = {"weight": (out_channels, per_block, 1, *spec.kernel_size)}
        super().__init__(in_channels, out_channels, spec, shapes, bias, backend, init, device, dtype)


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
        dilation: distance between the elements of the kernel.
        groups: blocks of channels that are convolved separately.
        bias: whether to add one number for each output channel.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        group: the point group: "p4", "p4m", …, a PointGroup or a list of generators.
        kind: "dense", "g" or "gc", see above.
        backend: how the result, the same to rounding, is computed. "auto" is the fastest known; "torch" the fastest of
            PyTorch's own operations. By name: "expanded" multiplies factors out and convolves once with all transformed
            filters; "two_step" (kinds g and gc) convolves pointwise, then depthwise; "fourier" does the pointwise step
            of a gc layer, or a 1×1 dense layer, in the group's Fourier domain; "native" does all there, by compiled
            kernels on a CPU; "reference" is the definition.
        init: how parameters are drawn, "published" or "variance", see :meth:`reset_parameters`.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ArgumentError: an argument is out of range, or its values differ on two axes that the group exchanges.

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
        backend: str = "auto",
        init: str = DEFAULT_INIT,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        group = as_group(group)
        check_kind(kind)
        spec = ConvSpec.parse(group, kind, kernel_size, stride, padding, dilation, groups, padding_mode)
        per_block = check_channels(in_channels, out_channels, spec.groups)
        shapes = filter_shapes(kind, out_channels, per_block, group.order, spec.kernel_size)
        super().__init__(in_channels, out_channels, spec, shapes, bias, backend, init, device, dtype)
