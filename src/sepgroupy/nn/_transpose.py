"""The transpose of a group convolution, which goes from coarse maps to fine ones."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ArgumentError
from ..functional._geometry import Geometry, Pair, check_numbers, parse_output_padding
from ..functional._layout import merge_fiber, split_fiber
from ..functional._plan import Plan, check_tensor
from ..groups import PointGroup, as_group
from ._base import DEFAULT_INIT, GroupConvolution, check_channels, filter_shapes


class GroupConvTranspose2d(GroupConvolution):
    """Transpose a group convolution: ``y[o, h] = Σ_i Σ_g (g·w[i,o])[h] ⋆ᵀ x[i, g] + b[o]``.

    ``⋆ᵀ`` is the transpose of the correlation ``⋆``, so that without bias ``⟨conv(y), x⟩ = ⟨y, layer(x)⟩`` for the
    :class:`GroupConv2d` from out_channels to in_channels that has the same parameters. Those are of its kinds:

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
        stride: output pixels between the marks of neighbouring input pixels; this and what follows as in
            ``torch.nn.ConvTranspose2d``.
        padding: pixels taken off on each side, an integer or a pair.
        output_padding: pixels added at the last side of each axis, for groups that leave that side where it is.
        groups: blocks of channels that do not see each other.
        bias: whether to add one number for each output channel.
        dilation: distance between the taps of the kernel.
        group: the point group: "p4", "p4m", …, a PointGroup or a list of generators.
        kind: "dense", "g" or "gc", see above.
        init: how parameters are drawn, "published" or "variance", see :meth:`reset_parameters`.
        device: where to make the parameters.
        dtype: their type.

    Raises:
        ArgumentError: an argument is out of range, is uneven on two axes that the group exchanges, or is an
            output_padding on an axis that the group reverses.

    >>> layer = GroupConvTranspose2d(16, 8, 2, stride=2, group="p4m")
    >>> layer(torch.zeros(2, 16, 8, 9, 9)).shape
    torch.Size([2, 8, 8, 18, 18])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        output_padding: Pair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Pair = 1,
        *,
        group: PointGroup | str,
        kind: str = "dense",
        init: str = DEFAULT_INIT,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        group = as_group(group)
        if isinstance(padding, str):
            raise ArgumentError(f"padding (={padding!r}) must be an integer or a pair of integers")
        geometry = Geometry.parse(group, kernel_size, stride, padding, dilation, groups)
        self.output_padding = parse_output_padding(group, output_padding, geometry)
        check_channels(in_channels, out_channels, geometry.groups)
        shapes = filter_shapes(kind, in_channels, out_channels // groups, group.order, geometry.kernel_size)
        # Two steps pay for gc where more than one tap reaches a pixel: the pointwise one runs at all pixels of the
        # output. Those of g would keep I·O·|H| maps between them. Else the factors are multiplied out.
        spread = math.prod(geometry.stride)
        steps = kind == "gc" and math.prod(geometry.kernel_size) > spread
        plan = Plan.make(group, kind, "dense" if steps or kind == "dense" else "full", geometry)
        super().__init__(in_channels, out_channels, plan, shapes, bias, device, dtype, spread, init)

    def forward(self, x: Tensor) -> Tensor:
        """Map x, (B, in_channels, |H|, Y, X), to (B, out_channels, |H|, Y', X')."""
        order, geometry = self.plan.group.order, self.plan.geometry
        check_tensor(x, self.main_weight)
        if x.ndim != 5 or tuple(x.shape[1:3]) != (self.in_channels, order):
            raise ArgumentError(
                f"x has shape {tuple(x.shape)}; this layer reads (B, {self.in_channels}, {order}, Y, X), a map on the "
                f"group {self.plan.group.name} with in_channels (={self.in_channels})"
            )
        self._check_size(x.shape[0], *x.shape[-2:])
        bias = None if self.bias is None else self.bias.reshape(geometry.groups, 1, -1).expand(-1, order, -1).flatten()
        *pointwise, bank = self._filters(self.plan).banks  # of the convolution, in whose steps we go backwards
        maps, groups = merge_fiber(x, geometry.groups), bank.shape[0] if pointwise else geometry.groups
        y = F.conv_transpose2d(
            maps,
            bank,
            None if pointwise else bias,
            geometry.stride,
            (geometry.padding[0], geometry.padding[2]),
            self.output_padding,
            groups,
            geometry.dilation,
        )
        for matrix in pointwise:
            y = F.conv_transpose2d(y, matrix, bias, groups=geometry.groups)
        return split_fiber(y, order, geometry.groups)

    def _check_size(self, batch: int, rows: int, columns: int) -> None:
        geometry, sides = self.plan.geometry, (self.plan.geometry.padding[::2])
        fine = []
        for axis, size in enumerate((rows, columns)):
            extent = geometry.dilation[axis] * (geometry.kernel_size[axis] - 1) + self.output_padding[axis] + 1
            if size < 1 or (size - 1) * geometry.stride[axis] - 2 * sides[axis] + extent < 1:
                raise ArgumentError(
                    f"x is {rows}×{columns} pixels, of which padding (={sides}) would leave none after this layer"
                )
            fine.append((size - 1) * geometry.stride[axis] + extent)
        check_numbers(
            f"the output of {rows}×{columns} pixels, stride (={geometry.stride}), dilation (={geometry.dilation})",
            (batch, self.out_channels, self.plan.group.order, *fine),
        )

    def extra_repr(self) -> str:
        """Describe the layer as the others do, with its output_padding."""
        return super().extra_repr() + (f", output_padding={self.output_padding}" if any(self.output_padding) else "")
