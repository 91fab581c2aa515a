"""How a convolution is computed: one definition, several algorithms, chosen once and executed plainly.

=========  ==================  =======================================================================
algorithm  kinds               way
=========  ==================  =======================================================================
dense      lifting, dense      one convolution with the bank of all transformed filters
dense      g, gc               two steps: pointwise with its expanded matrix, then depthwise
full       g, gc               the factors are multiplied out, then one convolution as for a dense layer
=========  ==================  =======================================================================

``auto`` takes dense for lifting, dense and gc layers and full for g layers, whose two steps would keep
I·O·|H| maps between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ArgumentError
from ..groups import PointGroup
from ._filters import full_filter, gather_bank, index_table, lift_depthwise
from ._geometry import Geometry
from ._layout import merge_fiber, split_fiber

ALGORITHMS = {
    "lifting": ("dense",),
    "dense": ("dense",),
    "g": ("full", "dense"),
    "gc": ("dense", "full"),
}
"""The algorithms of each kind, the one that ``auto`` takes first."""

Filters = tuple[Tensor, ...]


@dataclass(frozen=True)
class Plan:
    """Everything about a convolution but its numbers. Make one with :meth:`make`.

    ``tables`` are the exact constants it needs, ``filters`` turns parameters into what ``apply`` reads; a caller
    may keep both as long as the parameters do not change.
    """

    group: PointGroup
    kind: str
    algorithm: str
    geometry: Geometry

    @classmethod
    def make(cls, group: PointGroup, kind: str, algorithm: str, geometry: Geometry) -> Plan:
        """Check kind and algorithm and settle ``auto``."""
        if kind not in ALGORITHMS:
            raise ArgumentError(f"kind (={kind!r}) must be one of dense, g, gc")
        if algorithm != "auto" and algorithm not in ALGORITHMS[kind]:
            known = ", ".join(("auto", *ALGORITHMS[kind]))
            raise ArgumentError(f"algorithm (={algorithm!r}) must be one of {known} for a layer of kind {kind}")
        return cls(group, kind, ALGORITHMS[kind][0] if algorithm == "auto" else algorithm, geometry)

    def tables(self) -> dict[str, Tensor]:
        """Return the index tables of the filters, on the CPU."""
        tables = {}
        if self.kind != "lifting":
            size = self.geometry.kernel_size if self._single_bank else (1, 1)
            tables["fiber"] = index_table(self.group, size, fiber=True)
        if self.kind == "lifting" or not self._single_bank:
            tables["plane"] = index_table(self.group, self.geometry.kernel_size, fiber=False)
        return tables

    def filters(self, parameters: Mapping[str, Tensor], tables: Mapping[str, Tensor]) -> Filters:
        """Expand the free parameters, under their published names, to what :meth:`apply` reads."""
        groups = self.geometry.groups
        if "weight" in parameters:
            table = tables["plane" if self.kind == "lifting" else "fiber"]
            return (gather_bank(parameters["weight"], table, groups),)
        depthwise, pointwise = parameters["depthwise_weight"], parameters["pointwise_weight"]
        if self._single_bank:
            return (gather_bank(full_filter(depthwise, pointwise), tables["fiber"], groups),)
        return (
            gather_bank(pointwise, tables["fiber"], groups),
            gather_bank(lift_depthwise(depthwise), tables["plane"], groups),
        )

    def apply(self, x: Tensor, filters: Filters, bias: Tensor | None) -> Tensor:
        """Convolve x, (B, I, Y, X) or (B, I, |H|, Y, X), to (B, O, |H|, Y', X')."""
        order, groups = self.group.order, self.geometry.groups
        maps = x if self.kind == "lifting" else merge_fiber(x, groups)
        if bias is not None:
            bias = bias.reshape(groups, 1, -1).expand(-1, order, -1).flatten()
        if len(filters) == 1:
            return split_fiber(conv2d(maps, filters[0], bias, self.geometry), order, groups)
        pointwise, depthwise = filters
        if self.kind == "gc":
            u = F.conv2d(maps, pointwise, groups=groups)
        else:
            u = _pointwise_apart(maps, pointwise, order, groups)
        return split_fiber(conv2d(u, depthwise, bias, self.geometry, depthwise.shape[0]), order, groups)

    @property
    def _single_bank(self) -> bool:
        return self.kind in ("lifting", "dense") or self.algorithm == "full"

    def check_input(self, x: Tensor, in_channels: int) -> None:
        """Refuse an input of another shape, by name."""
        planar = self.kind == "lifting"
        wanted = (in_channels,) if planar else (in_channels, self.group.order)
        if x.ndim != 3 + len(wanted) or tuple(x.shape[1:-2]) != wanted:
            axes = ", ".join(map(str, wanted))
            raise ArgumentError(
                f"x has shape {tuple(x.shape)}; this layer reads (B, {axes}, Y, X)"
                + ("" if planar else f", a map on the group {self.group.name} with in_channels (={in_channels})")
            )
        rows, columns = (
            x.shape[-2] + sum(self.geometry.padding[:2]),
            x.shape[-1] + sum(self.geometry.padding[2:]),
        )
        extent = [d * (k - 1) + 1 for d, k in zip(self.geometry.dilation, self.geometry.kernel_size, strict=True)]
        if rows < extent[0] or columns < extent[1]:
            raise ArgumentError(f"x is {rows}×{columns} pixels with its padding, smaller than the kernel's {extent}")


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, groups: int | None = None) -> Tensor:
    """Apply ``torch.nn.functional.conv2d`` under the geometry, whatever its padding."""
    top, bottom, left, right = padding = geometry.padding
    if geometry.padding_mode != "zeros" or top != bottom or left != right:
        mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
        x, padding = F.pad(x, (left, right, top, bottom), mode=mode), (0, 0, 0, 0)
    return F.conv2d(
        x,
        weight,
        bias,
        geometry.stride,
        padding[::2],
        geometry.dilation,
        geometry.groups if groups is None else groups,
    )


def _pointwise_apart(
    x: Tensor,  # (B, groups·|H|·I/groups, Y, X)
    bank: Tensor,  # (groups·|H|·O/groups, |H|·I/groups, 1, 1)
    order: int,
    groups: int,
) -> Tensor:  # (B, groups·|H|·O/groups·I/groups, Y, X)
    """Sum over h alone, each input channel by itself: the first step of a g layer."""
    maps = x.unflatten(1, (groups, order, x.shape[1] // (groups * order)))
    matrix = bank.reshape(groups, bank.shape[0] // groups, order, maps.shape[3])
    return torch.einsum("kohi,bkhiyx->bkoiyx", matrix, maps).flatten(1, 3)
