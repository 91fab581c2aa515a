"""Everything that treats the fiber's elements alike: the group axis is a batch axis."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import ArgumentError
from ..functional import fold, unfold


class Folded(nn.Module):
    """Apply a planar module to a map on the group: ``y[·, g] = module(x[·, g])``, statistics shared over g.

    The group axis is folded into the batch, so one wrapper gives group-equivariant batch norm (equal to
    ``BatchNorm3d`` on the published layout), pooling over space, dropout, activation and resizing. It is equivariant
    when the module itself treats turned and mirrored pictures alike, as those do.

    Args:
        module: any module from (N, C, Y, X) to (N, C', Y', X').

    Shape:
        (B, C, |H|, Y, X) to (B, C', |H|, Y', X').

    >>> import torch
    >>> pool = Folded(nn.AvgPool2d(2))
    >>> pool(torch.zeros(2, 16, 8, 10, 10)).shape
    torch.Size([2, 16, 8, 5, 5])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module to every element's planar map."""
        return unfold(self.module(fold(x)), x.shape[2])


class GroupPool(nn.Module):
    """Pool over the group axis: ``y = max_g x[·, g]`` or its mean, invariant maps from maps on the group.

    For every t of the group ``pool(t·x) = t·pool(x)``, t turning and mirroring the plane alone.

    Args:
        mode: "max" or "mean".

    Shape:
        (B, C, |H|, Y, X) to (B, C, Y, X).

    Raises:
        ArgumentError: the mode is neither.

    Source: Cohen & Welling (2016), section 6.3.
    """

    def __init__(self, mode: str = "max") -> None:
        super().__init__()
        if mode not in ("max", "mean"):
            raise ArgumentError(f"mode (={mode!r}) must be 'max' or 'mean'")
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        """Pool over the third axis."""
        if x.ndim != 5:
            raise ArgumentError(f"x has shape {tuple(x.shape)}; a map on the group has five axes (B, C, |H|, Y, X)")
        return x.amax(2) if self.mode == "max" else x.mean(2)

    def extra_repr(self) -> str:
        """Name the mode."""
        return self.mode
