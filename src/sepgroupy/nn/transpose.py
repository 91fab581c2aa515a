"""The transpose of a group convolution, from coarse feature maps to fine ones."""

from __future__ import annotations

import torch

from ..backends import ConvSpec, Sizes
from ..groups import GroupLike, as_group
from .base import GroupConvolution
from .parameters import DEFAULT_INIT, check_channels, check_kind, filter_shapes


class GroupConvTranspose(GroupConvolution):
    """Transpose a group convolution in one, two or three dimensions; abstract: a subclass has a dimension."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sizes = 1,
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
        geometry = (kernel_size, stride, padding, dilation, groups)
        spec = ConvSpec.parse(group, kind, *geometry, transposed=True, output_padding=output_padding)
        check_channels(in_channels, out_channels, spec.groups)
        shapes = filter_shapes(kind, in_channels, out_channels // spec.groups, group.order, spec.kernel_size)
        super().__init__(in_channels, out_channels, spec, shapes, bias, backend, init, device, dtype)


class GroupConvTranspose2d(GroupConvTranspose):
    """Transpose a group convolution: ``y[o, h] = Σ_i Σ_g (g·w[i,o])[h] ⋆ᵀ x[i, g] + b[o]``.

    ``⋆ᵀ`` is the transpose of the correlation ``⋆``, so that without bias ``⟨conv(y), x⟩ = ⟨y, layer(x)⟩`` for the
    :class:`GroupConv2d` from out_channels to in_channels with the same parameters. The kinds have the parameters:

    * ``"dense"``: ``weight`` (I, O, |H|, k, k);
    * ``"g"``: ``w[i,o,h] = pw[i,o,h]·dw[i,o]`` from ``depthwise_weight`` (I, O, k, k) and ``pointwise_weight``
      (I, O, |H|, 1, 1);
    * ``"gc"``: ``w[i,o,h] = pw[i,o,h]·dw[i]`` from ``depthwise_weight`` (I, 1, 1, k, k) and the same,

    with I = in_channels, O = out_channels/groups. Equivariance: ``layer(t·x) = t·layer(x)`` for every t of the group,
    exact to rounding at every size, kernel and stride.

    Args:
        in_channels: channels of the input (B, in_channels, |H|, Y, X).
        out_channels: channels of the output (B, out_channels, |H|, Y', X'), where
            ``n' = (n - 1)·stride - 2·padding + dilation·(kernel_size - 1) + output_padding + 1``.
        kernel_size: an integer or a pair (rows, columns).
        stride: output pixels between the contributions of neighbouring input pixels; this and the next arguments as
            in ``torch.nn.ConvTranspose2d``.
        padding: pixels removed on each side, an integer or a pair.
        output_padding: pixels added at the last side of each axis, for groups that do not move this side.
        groups: blocks of channels that are convolved separately.
        bias: whether to add one number for each output channel.
        dilation: distance between the elements of the kernel.
        group: the point group: "p4", "p4m", …, a PointGroup or a list of generators.
        kind: "dense", "g" or "gc", see above.
        backend: "auto", "torch", "native" (groups=1), "expanded", "two_step" (kind gc) or "reference", as
            :class:`GroupConv2d`.
        init: the initialization, "published" or "variance", see :meth:`reset_parameters`.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ArgumentError: an argument is out of range, differs on two axes that the group exchanges, or is an
            output_padding on an axis that the group reverses.

    >>> layer = GroupConvTranspose2d(16, 8, 2, stride=2, group="p4m")
    >>> layer(torch.zeros(2, 16, 8, 9, 9)).shape
    torch.Size([2, 8, 8, 18, 18])
    """

    dimension = 2


class GroupConvTranspose1d(GroupConvTranspose):
    """Transpose a :class:`GroupConv1d`: :class:`GroupConvTranspose2d` with one spatial axis.

    Shape:
        (B, in_channels, |H|, X) to (B, out_channels, |H|, X').

    Raises:
        ArgumentError: as :class:`GroupConvTranspose2d`.
    """

    dimension = 1


class GroupConvTranspose3d(GroupConvTranspose):
    """Transpose a :class:`GroupConv3d`: :class:`GroupConvTranspose2d` with three spatial axes (Z, Y, X).

    Shape:
        (B, in_channels, |H|, Z, Y, X) to (B, out_channels, |H|, Z', Y', X').

    Raises:
        ArgumentError: as :class:`GroupConvTranspose2d`.

    >>> layer = GroupConvTranspose3d(4, 2, 2, stride=2, group="O", kind="gc")
    >>> layer(torch.zeros(2, 4, 24, 3, 3, 3)).shape
    torch.Size([2, 2, 24, 6, 6, 6])
    """

    dimension = 3


GROUP_CONV_TRANSPOSES = {
    layer.dimension: layer for layer in (GroupConvTranspose1d, GroupConvTranspose2d, GroupConvTranspose3d)
}
"""The layers by their dimension."""
