"""What the networks share: convolutions of a kind, plain or on a group, between maps with a folded group axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError
from ..functional import fold, unfold
from ..functional._plan import RULES
from ..groups import PointGroup, as_group
from ..nn import GroupConv2d, LiftingConv2d
from ..nn._base import DEFAULT_INIT, INITS
from ..nn._norm import is_watched

torch.fx.wrap("fold")  # single steps to torch.fx, which could not follow their checks
torch.fx.wrap("unfold")


class Layers:
    """Makes the convolutions of one network and carries its maps through them.

    Between layers a map is folded, (B·|H|, C, Y, X): norm, activation and spatial pooling are ordinary modules there,
    and a plain network is the case |H| = 1.

    Args:
        kind: a kind of group convolution, or one of ``plain_kinds``.
        group: the point group, for a kind of group convolution.
        plain_kinds: names of ordinary convolutions.
        algorithm: as :class:`sepgroupy.nn.GroupConv2d`.
        init: as :class:`sepgroupy.nn.GroupConv2d`, for group convolutions.

    Raises:
        ArgumentError: the kind or init is unknown.
    """

    def __init__(
        self,
        kind: str,
        group: PointGroup | str,
        plain_kinds: Sequence[str] = ("plain",),
        algorithm: str = "auto",
        init: str = DEFAULT_INIT,
    ) -> None:
        check_choice("kind", kind, (*plain_kinds, "dense", "g", "gc"))
        check_choice("init", init, INITS)
        self.kind, self.algorithm, self.init = kind, algorithm, init
        self.kernels = algorithm in ("auto", "native")  # whether compiled kernels may be taken at all
        self.group = None if kind in plain_kinds else as_group(group)
        self.order = self.group.order if self.group else 1
        if self.group is None and algorithm != "auto":
            raise ArgumentError(f"algorithm (={algorithm!r}) is for the kinds dense, g and gc, not for {kind}")

    def first(self, in_channels: int, out_channels: int, kernel: int, padding: int = 0, bias: bool = True) -> nn.Module:
        """Make the first convolution, which lifts the picture to the group."""
        if self.group is None:
            return nn.Conv2d(in_channels, out_channels, kernel, padding=padding, bias=bias)
        algorithm = "auto" if self.kernels else "torch"
        return LiftingConv2d(
            in_channels,
            out_channels,
            kernel,
            padding=padding,
            bias=bias,
            group=self.group,
            algorithm=algorithm,
            init=self.init,
        )

    def hidden(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0, bias: bool = True
    ) -> nn.Module:
        """Make a hidden convolution; a 1×1 is dense in every kind, there being nothing to separate."""
        if self.group is None:
            if self.kind == "c":
                pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias)
                depthwise = nn.Conv2d(
                    out_channels, out_channels, kernel, stride, padding, groups=out_channels, bias=bias
                )
                return nn.Sequential(pointwise, depthwise)
            return nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=bias)
        rule = self.algorithm if self.algorithm in RULES else "auto"
        kind, algorithm = ("dense", rule) if kernel == 1 else (self.kind, self.algorithm)
        return GroupConv2d(
            in_channels,
            out_channels,
            kernel,
            stride,
            padding,
            bias=bias,
            group=self.group,
            kind=kind,
            algorithm=algorithm,
            init=self.init,
        )


def convolve(
    convolution: nn.Module, x: Tensor, order: int, norm: nn.Module | None = None, shortcut: Tensor | None = None
) -> Tensor:
    """Convolve a folded map (or lift a picture), or relu(norm(x)) of it if there is a norm, and add the shortcut."""
    if isinstance(convolution, LiftingConv2d):
        return fold(convolution(x, _measures(convolution)))
    if isinstance(convolution, GroupConv2d):
        branch = None if shortcut is None else unfold(shortcut, order)
        return fold(convolution(unfold(x, order), norm, branch, _measures(convolution)))
    y = convolution(x if norm is None else F.relu(norm(x)))
    return y if shortcut is None else y + shortcut


def fork(convolution: nn.Module, x: Tensor, order: int, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return ``convolve(convolution, x, order, norm)`` and x, for a shortcut that starts here."""
    if isinstance(convolution, GroupConv2d) and _measures(convolution) and type(x) is Tensor:
        y, x = convolution.fork(unfold(x, order), norm, moments=True)
        return fold(y), fold(x)
    return convolve(convolution, x, order, norm), x


def _measures(convolution: nn.Module) -> bool:
    """Whether a norm in training reads the result, and no hook reads or edits it first."""
    return convolution.training and torch.is_grad_enabled() and not is_watched(convolution)


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse a value that is not one of those known."""
    if value not in known:
        raise ArgumentError(f"{name} (={value!r}) must be one of {', '.join(known)}")


def check_counts(**counts: int) -> None:
    """Refuse what is no positive integer."""
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ArgumentError(f"{name} (={value!r}) must be a positive integer")


def check_pictures(x: Tensor, in_channels: int, size: int | None = None, depth: int = 0) -> None:
    """Refuse what is no batch of pictures of this size, or of sizes that ``2**depth`` divides."""
    fits = [n == size if size else n > 0 and n % 2**depth == 0 for n in x.shape[2:]]
    if x.ndim != 4 or x.shape[1] != in_channels or not all(fits):
        sizes = f"{size}, {size})" if size else f"Y, X), Y and X divisible by 2**depth (={2**depth})"
        raise ArgumentError(f"x has shape {tuple(x.shape)}; this network reads (B, {in_channels}, {sizes}")
