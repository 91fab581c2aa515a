"""How a convolution is computed: one definition, several algorithms, chosen once and executed plainly.

=========  ==================  =======================================================================
algorithm  kinds               way
=========  ==================  =======================================================================
dense      lifting, dense      one convolution with the bank of all transformed filters
dense      g, gc               two steps: pointwise with its expanded matrix, then depthwise
full       g, gc               the factors are multiplied out, then one convolution as for a dense layer
fourier    gc, dense 1×1       the pointwise step in the group's Fourier domain
native     dense, g, gc        the whole convolution in the Fourier domain, by compiled kernels (``_native/kernels.c``)
=========  ==================  =======================================================================

``auto`` takes, as ``benchmarks/`` measures, the kernels wherever they serve and the Fourier domain saves more than two
times (for gc, anything), but for evaluations of maps of fewer than ``LEAST`` values. Else, and as ``torch`` always,

* for g the multiplied-out filter: its two steps would keep I·O·|H| maps between them;
* for gc and dense 1×1 the Fourier domain, unless it saves too little (groups of order 1 and 2, whose transforms cost as
  much) or the map is ``SMALL``;
* for all else the dense way,

and then it also takes a batch norm and ReLU before the convolution along, as the kernels do, tile by tile on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ArgumentError
from ..groups import PointGroup, fourier_basis
from . import _native
from ._filters import full_filter, gather_bank, index_table, lift_depthwise
from ._geometry import Geometry
from ._layout import merge_fiber, split_fiber
from ._native import is_ordinary
from ._pointwise import Bands, fourier_bands, fourier_pointwise, fourier_tables
from ._tiled import BankBody, FourierBody, Norm, TiledConv

ALGORITHMS = {
    "lifting": ("dense",),
    "dense": ("dense", "fourier", "native"),
    "g": ("dense", "full", "native"),
    "gc": ("dense", "full", "fourier", "native"),
}
"""The algorithms of each kind; not every one serves every geometry."""

RULES = ("auto", "torch")
"""Names for what the rule chooses, of all algorithms or of PyTorch's own operations alone."""

SMALL = 6000
"""Channels × pixels of a map × share of multiplications saved, below which calls cost more than the saving."""

LEAST = 8192
"""Values of a map from which on the kernels evaluate faster than PyTorch with the filters that it has kept."""

FUSED = 2**18
"""Values of a map from which on a norm is fused: smaller ones stay in the cache without it."""


AffineNorm = tuple[Norm, Tensor | None, Tensor | None]  # statistics, gamma, beta


@dataclass(frozen=True)
class Filters:
    """Filters ready for use: bands of the pointwise step, and banks of all transformed copies.

    The kernels read parameters as they are: there the banks are the dense filter, or depthwise and pointwise factor.
    """

    banks: tuple[Tensor, ...]
    bands: Bands = ()


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
    automatic: bool = False
    """Whether the algorithm was chosen by the rule, which may then fuse and tile."""
    saving: float = 1.0
    """Multiplications along the group axis by those in the Fourier domain."""
    native: bool = False
    """Whether ``auto`` may take the kernels."""

    @classmethod
    def make(cls, group: PointGroup, kind: str, algorithm: str, geometry: Geometry) -> Plan:
        """Check that kind and algorithm are known and serve the geometry."""
        if kind not in ALGORITHMS:
            raise ArgumentError(f"kind (={kind!r}) must be one of dense, g, gc")
        if algorithm not in (*RULES, *ALGORITHMS[kind]):
            known = ", ".join((*RULES, *ALGORITHMS[kind]))
            raise ArgumentError(f"algorithm (={algorithm!r}) must be one of {known} for a layer of kind {kind}")
        plan = cls(group, kind, algorithm, geometry)
        if algorithm == "fourier" and not plan._has_fourier:
            needs = "groups=1, and kernel_size=1 in a layer of kind dense"
            raise ArgumentError(f"algorithm (='fourier') needs {needs}; groups (={geometry.groups})")
        if algorithm == "native":
            if needs := _native.serves(group, geometry):
                raise ArgumentError(f"algorithm (='native') needs {needs}")
            if not _native.kernels():
                raise ArgumentError(f"algorithm (='native') is not to be had here: {_native.kernels().summary}")
        if algorithm in RULES and kind != "lifting":
            saving = group.order**2 / fourier_basis(group).multiplications
            saves = saving > 1 if kind == "gc" else saving > 2
            native = algorithm == "auto" and saves and not _native.serves(group, geometry)
            return replace(plan, saving=saving, native=native)
        return plan

    def settle(self, x: Tensor) -> Plan:
        """Replace ``auto`` and ``torch`` by the algorithm that the rule takes for this input."""
        if self.algorithm == "native" and x.device.type not in ("cpu", "meta"):
            raise ArgumentError(f"x is on {x.device}; algorithm (='native') runs on a CPU")
        if self.algorithm not in RULES:
            return self
        algorithm = "full" if self.kind == "g" else "dense"
        small = not torch.is_grad_enabled() and x.numel() < LEAST
        if self.native and not small and _native.takes(x) and is_ordinary(x) and _native.kernels():
            algorithm = "native"
        elif self._has_fourier and self.saving > 2 and x.shape[1] * x.shape[-1] * x.shape[-2] * self.saving >= SMALL:
            algorithm = "fourier"
        return replace(self, algorithm=algorithm, automatic=True)

    @property
    def expands(self) -> bool:
        """Whether :meth:`filters` computes anything, so that its result is worth keeping."""
        return self.algorithm != "native" or self.kind == "g"

    @property
    def _has_fourier(self) -> bool:
        return self.geometry.groups == 1 and (self.kind == "gc" or (self.kind == "dense" and self.geometry.pointwise))

    def tables(self) -> dict[str, Tensor]:
        """Return the constants that its filters may need, exact and on the CPU.

        They are the index tables of filters on the group, on the plane and 1×1 on the group, and the Fourier tables.
        """
        kernel, auto = self.geometry.kernel_size, self.algorithm in RULES
        if self.algorithm == "native":
            return {}
        tables = fourier_tables(self.group) if self.algorithm == "fourier" or (auto and self._has_fourier) else {}
        if self.kind != "dense":
            tables["plane"] = index_table(self.group, kernel, fiber=False)
        if self.kind != "lifting":
            tables["fiber"] = index_table(self.group, kernel, fiber=True)
            tables["point"] = index_table(self.group, (1, 1), fiber=True)
        return tables

    def filters(self, parameters: Mapping[str, Tensor], tables: Mapping[str, Tensor]) -> Filters:
        """Expand the free parameters, under their published names, to what :meth:`apply` reads."""
        groups = self.geometry.groups
        if self.kind == "lifting":
            return Filters((gather_bank(parameters["weight"], tables["plane"], groups),))
        if self.kind == "dense":
            weight = parameters["weight"]
            if self.algorithm == "native":
                return Filters((weight,))
            if self.algorithm == "fourier":
                return Filters((), fourier_bands(weight, tables))
            return Filters((gather_bank(weight, tables["fiber"], groups),))
        depthwise, pointwise = parameters["depthwise_weight"], parameters["pointwise_weight"]
        if self.algorithm == "native":
            return Filters((depthwise, pointwise) if self.kind == "gc" else (full_filter(depthwise, pointwise),))
        if self.algorithm == "full":
            return Filters((gather_bank(full_filter(depthwise, pointwise), tables["fiber"], groups),))
        bank = gather_bank(lift_depthwise(depthwise), tables["plane"], groups)
        if self.algorithm == "fourier":
            return Filters((bank,), fourier_bands(pointwise, tables))
        return Filters((gather_bank(pointwise, tables["point"], groups), bank))

    def apply(self, x: Tensor, filters: Filters, bias: Tensor | None, norm: AffineNorm | None = None) -> Tensor:
        """Convolve x, (B, I, Y, X) or (B, I, |H|, Y, X), to (B, O, |H|, Y', X').

        With a norm, which :meth:`fuses` must allow, convolve relu(norm(x)).
        """
        order, groups = self.group.order, self.geometry.groups
        if self.algorithm == "native":
            return self._apply_native(x, filters, bias, norm)
        if bias is not None:
            bias = bias.repeat(order) if groups == 1 else bias.reshape(groups, 1, -1).expand(-1, order, -1).flatten()
        if filters.bands and not filters.banks:  # 1×1: only the pixels that its stride reaches
            x = _stride_pixels(x, self.geometry)
        if (filters.bands or norm) and self._tiles(x):
            return self._apply_tiled(x, filters, bias, norm)
        if filters.bands:
            u = fourier_pointwise(x.transpose(1, 2), filters.bands).flatten(1, 2)
            if not filters.banks:
                return split_fiber(u if bias is None else u + bias.to(u.dtype).view(-1, 1, 1), order)
            (depthwise,) = filters.banks
            return split_fiber(conv2d(u, depthwise, bias, self.geometry, depthwise.shape[0]), order)
        maps = x if self.kind == "lifting" else merge_fiber(x, groups)
        if len(filters.banks) == 1:
            return split_fiber(conv2d(maps, filters.banks[0], bias, self.geometry), order, groups)
        pointwise, depthwise = filters.banks
        if self.kind == "gc":
            u = F.conv2d(maps, pointwise, groups=groups)
        else:
            u = _pointwise_apart(maps, pointwise, order, groups)
        return split_fiber(conv2d(u, depthwise, bias, self.geometry, depthwise.shape[0]), order, groups)

    def fuses(self, x: Tensor) -> bool:
        """Whether ``apply`` can take a norm along for this input."""
        if self.algorithm == "native":
            return is_ordinary(x) and not self.geometry.pads_apart and x.numel() > 0
        single = self.algorithm == "full" or (self.kind == "dense" and self.algorithm == "dense")
        depthwise = self.kind == "gc" and self.algorithm == "fourier"
        return (single or depthwise) and self._tiles(x) and x.numel() >= FUSED

    def _tiles(self, x: Tensor) -> bool:
        """Whether the input is an ordinary tensor on the CPU, and the geometry one that tiles know."""
        known = not self.geometry.pads_apart and self.geometry.groups == 1
        return self.automatic and known and x.device.type == "cpu" and is_ordinary(x)

    def _apply_tiled(self, x: Tensor, filters: Filters, bias: Tensor | None, norm: AffineNorm | None) -> Tensor:
        tensors = [t for band in filters.bands for t in band] + [*filters.banks] + ([] if bias is None else [bias])
        body = FourierBody(len(filters.bands), self.geometry if filters.banks else None)
        statistics, gamma, beta = norm or (None, None, None)
        maps = x.transpose(1, 2).contiguous()
        y = TiledConv.apply(body if filters.bands else BankBody(self.geometry), statistics, maps, gamma, beta, *tensors)
        return y.transpose(1, 2)

    def _apply_native(self, x: Tensor, filters: Filters, bias: Tensor | None, norm: AffineNorm | None) -> Tensor:
        *depthwise, weight = filters.banks
        maps, (vertical, horizontal) = _pad(x.transpose(1, 2).flatten(0, 1), self.geometry)
        geometry = replace(self.geometry, padding=(vertical, vertical, horizontal, horizontal), padding_mode="zeros")
        statistics, gamma, beta = norm or (None, None, None)
        inputs = _native.Inputs(
            maps.unflatten(0, (x.shape[0], x.shape[2])),
            weight,
            depthwise[0] if depthwise else None,
            bias,
            *((gamma, beta, statistics.mean, statistics.var) if statistics else ()),
        )
        eps, batch = (statistics.eps, statistics.batch) if statistics else (0.0, False)
        y = _native.convolve(inputs, eps, batch, self.group, geometry)
        return y.transpose(1, 2)

    def check_input(self, x: Tensor, in_channels: int, weight: Tensor) -> None:
        """Refuse an input of another shape or type, by name."""
        check_tensor(x, weight)
        planar = self.kind == "lifting"
        wanted = (in_channels,) if planar else (in_channels, self.group.order)
        if x.ndim != 3 + len(wanted) or tuple(x.shape[1:-2]) != wanted:
            axes = ", ".join(map(str, wanted))
            raise ArgumentError(
                f"x has shape {tuple(x.shape)}; this layer reads (B, {axes}, Y, X)"
                + ("" if planar else f", a map on the group {self.group.name} with in_channels (={in_channels})")
            )
        self.geometry.check_size(math.prod(x.shape[:-2]), *x.shape[-2:])


def check_tensor(x: Tensor, weight: Tensor) -> None:
    """Refuse what is no dense tensor of the parameters' type, by name; under autocast types may differ.

    Raises:
        ArgumentError: it is something else.
    """
    if not isinstance(x, Tensor) or x.layout != torch.strided:
        what = x.layout if isinstance(x, Tensor) else type(x).__name__
        raise ArgumentError(f"x must be a dense tensor, not {what}")
    if x.dtype != weight.dtype and (x.is_meta or not torch.is_autocast_enabled(x.device.type)):
        raise ArgumentError(f"x is {x.dtype} and the layer's parameters are {weight.dtype}: they must be of one type")


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, groups: int | None = None) -> Tensor:
    """Apply ``torch.nn.functional.conv2d`` under the geometry, whatever its padding."""
    x, padding = _pad(x, geometry)
    groups = geometry.groups if groups is None else groups
    return F.conv2d(x, weight, bias, geometry.stride, padding, geometry.dilation, groups)


def _stride_pixels(x: Tensor, geometry: Geometry) -> Tensor:
    """Pad x and keep the pixels that a 1×1 kernel reads."""
    if any(geometry.padding):
        top, bottom, left, right = geometry.padding
        mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
        x = F.pad(x.flatten(1, 2), (left, right, top, bottom), mode=mode).unflatten(1, x.shape[1:3])
    return x if geometry.stride == (1, 1) else x[..., :: geometry.stride[0], :: geometry.stride[1]]


def _pad(x: Tensor, geometry: Geometry) -> tuple[Tensor, tuple[int, int]]:
    """Pad x where ``conv2d`` itself can not; return it with the padding that is left to do."""
    top, bottom, left, right = geometry.padding
    if not geometry.pads_apart:
        return x, (top, left)
    mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
    return F.pad(x, (left, right, top, bottom), mode=mode), (0, 0)


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
