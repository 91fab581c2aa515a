"""The layers of the networks: convolutions and batch norms of a kind, plain or on a group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.fx
from torch import Tensor, nn

from ..backends import RULES
from ..errors import ArgumentError
from ..groups import GroupLike, as_group, axis_names
from ..nn import DEFAULT_INIT, GROUP_BATCH_NORMS, GROUP_CONV_TRANSPOSES, GROUP_CONVS, INITS, LIFTING_CONVS, PerElement

DEFAULT_GROUPS: dict[int, GroupLike] = {1: "reflection", 2: "p4m", 3: "O"}
"""The group of a network, by dimension."""


class Layers:
    """Builds the layers of one network.

    Layers return group feature maps (B, C, |H|, Y, X), in a plain network feature maps (B, C, Y, X).

    Args:
        kind: a kind of group convolution, or one of ``plain_kinds``.
        group: the point group, for a kind of group convolution; None for that of ``DEFAULT_GROUPS``.
        plain_kinds: names of the kinds of plain convolutions.
        backend: as :class:`sepgroupy.nn.GroupConv2d`.
        init: as :class:`sepgroupy.nn.GroupConv2d`, for group convolutions.
        dimension: the number of spatial axes.

    Raises:
        ArgumentError: the kind or init is unknown, or a plain kind is given a backend.
    """

    def __init__(
        self,
        kind: str,
        group: GroupLike | None,
        plain_kinds: Sequence[str] = ("plain",),
        backend: str = "auto",
        init: str = DEFAULT_INIT,
        dimension: int = 2,
    ) -> None:
        if dimension not in GROUP_CONVS:
            raise ArgumentError(f"dimension (={dimension!r}) must be 1, 2 or 3")
        check_choice("kind", kind, (*plain_kinds, "dense", "g", "gc"))
        check_choice("init", init, INITS)
        self.kind, self.backend, self.init, self.dimension = kind, backend, init, dimension
        self.group = (
            None if kind in plain_kinds else as_group(DEFAULT_GROUPS[dimension] if group is None else group, dimension)
        )
        self.order = self.group.order if self.group else 1
        if self.group is None and backend != "auto":
            raise ArgumentError(f"backend (={backend!r}) is for the kinds dense, g and gc, not for {kind}")

    def first(self, in_channels: int, out_channels: int, kernel: int, padding: int = 0, bias: bool = True) -> nn.Module:
        """Build the first convolution, which lifts the image to the group."""
        if self.group is None:
            return self.plain("Conv", in_channels, out_channels, kernel, padding=padding, bias=bias)
        backend = "auto" if self.backend in ("auto", "native") else "torch"
        return LIFTING_CONVS[self.dimension](
            in_channels,
            out_channels,
            kernel,
            padding=padding,
            bias=bias,
            group=self.group,
            backend=backend,
            init=self.init,
        )

    def hidden(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0, bias: bool = True
    ) -> nn.Module:
        """Build a hidden convolution. A 1×1 convolution is dense in every kind."""
        if self.group is None:
            if self.kind == "c":
                pointwise = self.plain("Conv", in_channels, out_channels, 1, bias=bias)
                depthwise = self.plain(
                    "Conv", out_channels, out_channels, kernel, stride, padding, groups=out_channels, bias=bias
                )
                return nn.Sequential(pointwise, depthwise)
            return self.plain("Conv", in_channels, out_channels, kernel, stride, padding, bias=bias)
        rule = self.backend if self.backend in RULES else "auto"
        kind, backend = ("dense", rule) if kernel == 1 else (self.kind, self.backend)
        return GROUP_CONVS[self.dimension](
            in_channels,
            out_channels,
            kernel,
            stride,
            padding,
            bias=bias,
            group=self.group,
            kind=kind,
            backend=backend,
            init=self.init,
        )

    def upsampling(self, in_channels: int, out_channels: int) -> nn.Module:
        """Build a transposed 2×2 convolution with stride 2."""
        if self.group is None:
            return self.plain("ConvTranspose", in_channels, out_channels, 2, 2)
        backend = self.backend if self.backend in RULES else "auto"
        return GROUP_CONV_TRANSPOSES[self.dimension](
            in_channels, out_channels, 2, 2, group=self.group, kind=self.kind, backend=backend, init=self.init
        )

    def norm(self, channels: int) -> nn.Module:
        """Build a batch norm."""
        norms = GROUP_BATCH_NORMS[self.dimension]
        return self.plain("BatchNorm", channels) if self.group is None else norms(channels)

    def pool(self, name: str) -> nn.Module:
        """Build a "MaxPool" or "AvgPool" over windows of size 2 in the feature maps of every group element."""
        pool = self.plain(name, 2)
        return pool if self.group is None else PerElement(pool, self.dimension)

    def plain(self, name: str, *args: Any, **options: Any) -> nn.Module:
        """Build a module of torch.nn for the dimension, such as ``nn.Conv2d`` for "Conv"."""
        return getattr(nn, f"{name}{self.dimension}d")(*args, **options)  # type: ignore[no-any-return]


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse a value that is not among the known ones."""
    if value not in known:
        raise ArgumentError(f"{name} (={value!r}) must be one of {', '.join(known)}")


def check_counts(**counts: int) -> None:
    """Refuse values that are not positive integers."""
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ArgumentError(f"{name} (={value!r}) must be a positive integer")


def check_images(x: Tensor, in_channels: int, size: int | None = None, depth: int = 0, dimension: int = 2) -> Tensor:
    """Return x, a batch of images of this size, or of sizes divisible by ``2**depth``; refuse everything else."""
    if isinstance(x, torch.fx.Proxy):  # one node of a torch.fx graph: the checks cannot be traced
        return x.tracer.create_proxy("call_function", check_images, (x, in_channels, size, depth, dimension), {})  # type: ignore[no-any-return]
    fits = [n == size if size else n > 0 and n % 2**depth == 0 for n in x.shape[2:]]
    if x.ndim != 2 + dimension or x.shape[1] != in_channels or not all(fits):
        names = axis_names(dimension)
        sizes = (
            f"{', '.join([str(size)] * dimension)})"
            if size
            else f"{', '.join(names)}), " + (f"{' and '.join(names)} divisible by 2**depth (={2**depth})")
        )
        raise ArgumentError(f"x has shape {tuple(x.shape)}; this network reads (B, {in_channels}, {sizes}")
    return x
