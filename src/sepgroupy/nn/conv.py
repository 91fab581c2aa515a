"""Lifting and group convolutions as modules."""

from __future__ import annotations

import torch

from ..backends import ConvSpec, Sizes
from ..groups import GroupLike, as_group
from .base import GroupConvolution
from .parameters import DEFAULT_INIT, check_channels, check_kind, filter_shapes


class LiftingConv(GroupConvolution):
    """Lift images, signals or volumes to the group; abstract: a subclass has a dimension."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        group: GroupLike,
        backend: str = "auto",
        init: str = DEFAULT_INIT,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        group = as_group(group, self.dimension)
        spec = ConvSpec.parse(group, "lifting", kernel_size, stride, padding, dilation, groups, padding_mode)
        per_block = check_channels(in_channels, out_channels, spec.groups)
        shapes: dict[str, tuple[int, ...]] = {"weight": (out_channels, per_block, 1, *spec.kernel_size)}
        super().__init__(in_channels, out_channels, spec, shapes, bias, backend, init, device, dtype)


class LiftingConv2d(LiftingConv):
    """Lift an image to the group: ``y[o, g] = Σ_i (g·w[o,i]) ⋆ x[i] + b[o]``.

    Equivariance: ``layer(t·x) = t·layer(x)`` for every t of the group, where ``(t·f)[g] = t·(f[t⁻¹g])``; exact to
    rounding if ``(n + 2·padding - dilation·(k-1) - 1) % stride == 0`` on both axes of a square input.

    Args:
        in_channels: channels of the input (B, in_channels, Y, X).
        out_channels: channels of the output (B, out_channels, |H|, Y', X').
        kernel_size: an integer or a pair (rows, columns); any size, also even.
        stride: step between output pixels; this and the next arguments as in ``torch.nn.Conv2d``.
        padding: pixels added on each side, an integer, a pair, "same" or "valid".
        dilation: distance between the elements of the kernel.
        groups: blocks of channels that are convolved separately.
        bias: whether to add one number for each output channel.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        group: the point group: "p4", "p4m", …, a PointGroup or a list of generators.
        backend: "auto", the fastest; "torch", the fastest that uses PyTorch's operations only; or one by name, see
            :func:`sepgroupy.available_backends`. Results are equal to rounding.
        init: the initialization, "published" or "variance", see :meth:`reset_parameters`.
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

    dimension = 2


class GroupConv(GroupConvolution):
    """Convolve over the group in one, two or three dimensions; abstract: a subclass has a dimension."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        group: GroupLike,
        kind: str = "dense",
        backend: str = "auto",
        init: str = DEFAULT_INIT,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        group = as_group(group, self.dimension)
        check_kind(kind)
        spec = ConvSpec.parse(group, kind, kernel_size, stride, padding, dilation, groups, padding_mode)
        per_block = check_channels(in_channels, out_channels, spec.groups)
        shapes = filter_shapes(kind, out_channels, per_block, group.order, spec.kernel_size)
        super().__init__(in_channels, out_channels, spec, shapes, bias, backend, init, device, dtype)


class GroupConv2d(GroupConv):
    """Convolve over the group: ``y[o, g] = Σ_i Σ_h (g·w[o,i])[h] ⋆ x[i, h] + b[o]``.

    ``kind`` selects the parameters:

    * ``"dense"``: ``weight`` (O, I, |H|, k, k);
    * ``"g"``: ``w[o,i,h] = pw[o,i,h]·dw[o,i]`` from ``depthwise_weight`` (O, I, k, k) and ``pointwise_weight``
      (O, I, |H|, 1, 1);
    * ``"gc"``: ``w[o,i,h] = pw[o,i,h]·dw[o]`` from ``depthwise_weight`` (O, 1, 1, k, k) and the same,

    with O = out_channels, I = in_channels/groups. Equivariance: ``layer(t·x) = t·layer(x)`` for every t of the group,
    where ``(t·f)[g] = t·(f[t⁻¹g])``; exact to rounding if
    ``(n + 2·padding - dilation·(k-1) - 1) % stride == 0`` on both axes of a square input.

    Args:
        in_channels: channels of the input (B, in_channels, |H|, Y, X).
        out_channels: channels of the output (B, out_channels, |H|, Y', X').
        kernel_size: an integer or a pair (rows, columns); any size, also even.
        stride: step between output pixels; this and the next arguments as in ``torch.nn.Conv2d``.
        padding: pixels added on each side, an integer, a pair, "same" or "valid".
        dilation: distance between the elements of the kernel.
        groups: blocks of channels that are convolved separately.
        bias: whether to add one number for each output channel.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        group: the point group: "p4", "p4m", …, a PointGroup or a list of generators.
        kind: "dense", "g" or "gc", see above.
        backend: "auto" is the fastest, "torch" the fastest that uses PyTorch's operations only. By name: "expanded"
            multiplies the factors and convolves once with all transformed filters; "two_step" (kinds g and gc)
            convolves pointwise, then depthwise; "fourier" computes the pointwise step of a gc layer, or a 1×1 dense
            layer, in the group's Fourier domain; "native" uses compiled kernels on a CPU, in the Fourier domain or,
            with groups > 1, directly; "reference" is the definition. Results are equal to rounding.
        init: the initialization, "published" or "variance", see :meth:`reset_parameters`.
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

    dimension = 2


class LiftingConv1d(LiftingConv):
    """Lift a signal to the group: :class:`LiftingConv2d` with one spatial axis.

    Shape:
        (B, C, X) to (B, C', |H|, X'); ``weight`` (out_channels, in_channels/groups, 1, k).

    Raises:
        ArgumentError: as :class:`LiftingConv2d`.

    >>> import torch
    >>> layer = LiftingConv1d(3, 16, 5, padding=2, group="reflection")
    >>> layer(torch.zeros(2, 3, 9)).shape
    torch.Size([2, 16, 2, 9])
    """

    dimension = 1


class GroupConv1d(GroupConv):
    """Convolve over the group: :class:`GroupConv2d` with one spatial axis.

    Shape:
        (B, C, |H|, X) to (B, C', |H|, X').

    Raises:
        ArgumentError: as :class:`GroupConv2d`.

    >>> import torch
    >>> layer = GroupConv1d(16, 32, 5, padding=2, group="reflection", kind="gc")
    >>> layer(torch.zeros(2, 16, 2, 9)).shape
    torch.Size([2, 32, 2, 9])
    """

    dimension = 1


class LiftingConv3d(LiftingConv):
    """Lift a volume to the group: ``y[o, g] = Σ_i (g·w[o,i]) ⋆ x[i] + b[o]``.

    Arguments are those of :class:`LiftingConv2d`, with three spatial axes (Z, Y, X). ``group`` is one of three
    dimensions: "O" (the 24 rotations of a cube), "Oh" (all its 48 symmetries), "C4", "D4h", … about the first axis,
    or any other (:func:`sepgroupy.as_group`). A group that exchanges axes needs equal kernel sizes on these: cubes for
    "O" and "Oh", (kz, k, k) for groups about the first axis.

    Shape:
        (B, C, Z, Y, X) to (B, C', |H|, Z', Y', X'); ``weight`` (out_channels, in_channels/groups, 1, kz, k, k).

    Raises:
        ArgumentError: an argument is out of range, its values differ on axes that the group exchanges, or the group
            acts on another number of axes.

    Source: Worrall & Brostow (2018), CubeNet: equivariance to 3D rotation and translation, section 4.

    >>> import torch
    >>> layer = LiftingConv3d(1, 4, 3, padding=1, group="O")
    >>> layer(torch.zeros(2, 1, 5, 5, 5)).shape
    torch.Size([2, 4, 24, 5, 5, 5])
    """

    dimension = 3


class GroupConv3d(GroupConv):
    """Convolve over the group: ``y[o, g] = Σ_i Σ_h (g·w[o,i])[h] ⋆ x[i, h] + b[o]``.

    Arguments and kinds are those of :class:`GroupConv2d`, with three spatial axes (Z, Y, X), kernels (…, kz, k, k), and
    the groups of :class:`LiftingConv3d`.

    Shape:
        (B, C, |H|, Z, Y, X) to (B, C', |H|, Z', Y', X').

    Raises:
        ArgumentError: as :class:`LiftingConv3d`.

    >>> import torch
    >>> layer = GroupConv3d(4, 8, (1, 3, 3), padding=(0, 1, 1), group="D4h", kind="gc")
    >>> layer(torch.zeros(2, 4, 16, 3, 9, 9)).shape
    torch.Size([2, 8, 16, 3, 9, 9])
    """

    dimension = 3


LIFTING_CONVS = {layer.dimension: layer for layer in (LiftingConv1d, LiftingConv2d, LiftingConv3d)}
GROUP_CONVS = {layer.dimension: layer for layer in (GroupConv1d, GroupConv2d, GroupConv3d)}
"""The layers by their dimension."""
