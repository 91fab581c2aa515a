"""How a convolution is computed: one definition, several algorithms, chosen once and executed plainly.

=========  ==================  =======================================================================
algorithm  kinds               way
=========  ==================  =======================================================================
dense      lifting, dense      one convolution with the bank of all transformed filters
dense      g, gc               two steps: pointwise with its expanded matrix, then depthwise
full       g, gc               the factors are multiplied out, then one convolution as for a dense layer
fourier    gc, dense 1×1       the pointwise step in the group's Fourier domain
native     all                 compiled kernels (``_native/``): lifting directly, else all in the Fourier domain
=========  ==================  =======================================================================

``auto`` takes, as ``benchmarks/`` measures, the kernels wherever they serve and the Fourier domain saves more than two
times (for gc, anything), but for evaluations of maps of fewer than ``LEAST`` values. Else, and as ``torch`` always,

* for g the multiplied-out filter: its two steps would keep I·O·|H| maps between them;
* for gc and dense 1×1 the Fourier domain, unless it saves too little (groups of order 1 and 2, whose transforms cost as
  much) or the layer is ``SMALL``;
* for all else the dense way,

and then it also takes a batch norm and ReLU before the convolution along, as the kernels do, tile by tile on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..groups import PointGroup, fourier_basis
from . import _native
from ._affine import Affine
from ._execute import Filters, by_kernels, by_torch
from ._filters import full_filter, gather_bank, index_table, lift_depthwise
from ._geometry import Geometry
from ._native import is_ordinary
from ._pointwise import fourier_bands, fourier_tables

ALGORITHMS = {
    "lifting": ("dense", "native"),
    "dense": ("dense", "fourier", "native"),
    "g": ("dense", "full", "native"),
    "gc": ("dense", "full", "fourier", "native"),
}
"""The algorithms of each kind; not every one serves every geometry."""

RULES = ("auto", "torch")
"""Names for what the rule chooses, of all algorithms or of PyTorch's own operations alone."""

SMALL = 1.5e10
"""Values of a map × (multiplications saved for each)², from which on the Fourier domain pays for its passes."""

LEAST = 8192
"""Values of a map from which on the kernels evaluate faster than PyTorch with the filters that it has kept."""

ALONE = 2
"""PyTorch's threads up to which kernels compiled without any are as fast: their one does the work of two to four."""

TRACED = 16
"""Batch that is assumed while a program is traced, where it may be a symbol."""

FUSED = 2**18
"""Values of a map from which on a norm is fused: smaller ones stay in the cache without it."""

SIZES = 64
"""Shapes of inputs that are remembered as checked."""


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
        offered = (*RULES, *ALGORITHMS[kind][: -1 if kind == "lifting" else None])  # lifting kernels are no operator
        if algorithm not in offered:
            known = ", ".join(offered)
            raise ArgumentError(f"algorithm (={algorithm!r}) must be one of {known} for a layer of kind {kind}")
        if algorithm == "native":
            if needs := _native.serves(group, geometry):
                raise ArgumentError(f"algorithm (='native') needs {needs}")
            if not _native.kernels():
                raise ArgumentError(f"algorithm (='native') is not to be had here: {_native.kernels().summary}")
        plan = cls(group, kind, algorithm, geometry)
        if algorithm == "fourier" and not plan._has_fourier:
            needs = "groups=1, and kernel_size=1 in a layer of kind dense"
            raise ArgumentError(f"algorithm (='fourier') needs {needs}; groups (={geometry.groups})")
        if kind == "lifting":
            return replace(plan, native=algorithm == "auto" and not _native.serves(group, geometry))
        if algorithm in RULES:
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
        if self.native and kernels_pay(x) and (self.kind != "lifting" or self._lifts(x)):
            algorithm = "native"
        elif self._has_fourier and self.saving > 2:
            saved = x.shape[1] * self.group.order * (1 - 1 / self.saving)
            values = (x.shape[0] if is_ordinary(x) else TRACED) * math.prod(x.shape[1:])
            algorithm = "fourier" if values * saved**2 >= SMALL else algorithm
        return self._settled[algorithm]

    def _lifts(self, x: Tensor) -> bool:
        return _native.is_direct(x) and _native.lifts(self.group, self.geometry, x.shape[1])

    # What would take longer to make, call by call, than a small layer itself.
    _settled: dict[str, Plan] = field(init=False, repr=False, compare=False)
    _sizes: set[torch.Size] = field(init=False, repr=False, compare=False)  # that have been checked
    call: _native.Call | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        call, ways = None, ALGORITHMS[self.kind] if self.algorithm in RULES else ()
        settled = {way: replace(self, algorithm=way, automatic=True) for way in ways if way != "native" or self.native}
        if self.native or self.algorithm == "native":
            top, _, left, _ = (0,) * 4 if self.geometry.pads_apart else self.geometry.padding
            geometry = replace(self.geometry, padding=(top, top, left, left), padding_mode="zeros")
            call = _native.call_for(self.group, geometry, self.kind == "lifting")
        for name, value in (("_settled", settled), ("_sizes", set()), ("call", call)):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, f.name) for f in fields(self) if f.init)

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
        if self.algorithm == "native" and self.kind == "lifting":
            return Filters((parameters["weight"],))
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
            return Filters((lift_depthwise(depthwise), pointwise))
        if self.algorithm == "full":
            return Filters((gather_bank(full_filter(depthwise, pointwise), tables["fiber"], groups),))
        bank = gather_bank(lift_depthwise(depthwise), tables["plane"], groups)
        if self.algorithm == "fourier":
            return Filters((bank,), fourier_bands(pointwise, tables))
        return Filters((gather_bank(pointwise, tables["point"], groups), bank))

    def apply(
        self,
        x: Tensor,
        filters: Filters,
        bias: Tensor | None,
        norm: Affine | None = None,
        shortcut: Tensor | None = None,
        moments: bool = False,
        fork: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Convolve x, (B, I, Y, X) or (B, I, |H|, Y, X), to (B, O, |H|, Y', X'), and add the shortcut.

        With a norm, which :meth:`fuses` must allow, convolve relu(norm(x)). With moments, the kernels take the
        result's statistics. Return x too; with fork, what others add to its gradient is added by the kernels.
        """
        if self.algorithm == "native":
            return by_kernels(self, x, filters, bias, norm, shortcut, moments, fork)
        y = by_torch(self, x, filters, bias, norm)
        if shortcut is not None:
            y = y + shortcut if torch.is_grad_enabled() else y.add_(shortcut)  # in place, autograd copies a gradient
        return y, x

    def fuses(self, x: Tensor) -> bool:
        """Whether ``apply`` can take a norm along for this input."""
        if self.algorithm == "native":
            return is_ordinary(x) and not self.geometry.pads_apart and x.numel() > 0
        single = self.algorithm == "full" or (self.kind == "dense" and self.algorithm == "dense")
        depthwise = self.kind == "gc" and self.algorithm == "fourier"
        return (single or depthwise) and self.tiles(x) and x.numel() >= FUSED

    def tiles(self, x: Tensor) -> bool:
        """Whether the input is an ordinary tensor on the CPU, and the geometry one that tiles know."""
        known = not self.geometry.pads_apart and self.geometry.groups == 1
        return self.automatic and known and x.device.type == "cpu" and is_ordinary(x)

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
        if not is_ordinary(x):  # sizes may be symbols
            self.geometry.check_size(math.prod(x.shape[:-2]), *x.shape[-2:])
        elif x.shape not in self._sizes:
            self.geometry.check_size(math.prod(x.shape[:-2]), *x.shape[-2:])
            if len(self._sizes) == SIZES:
                self._sizes.clear()
            self._sizes.add(x.shape)


def kernels_pay(x: Tensor) -> bool:
    """Whether there are kernels for x, an ordinary tensor, and it is large enough for them or a gradient is wanted."""
    if not is_ordinary(x) or not _native.takes(x) or not (torch.is_grad_enabled() or x.numel() >= LEAST):
        return False
    kernels = _native.kernels()
    return bool(kernels) and (kernels.threaded or torch.get_num_threads() <= ALONE)


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
