"""How a group acts on a tensor inside a network, read from its shape and tried on its values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt, prod

import torch
from torch import Tensor

from ..functional import transform
from ..groups import PointGroup

_AXES = "TBCHYX"


@dataclass(frozen=True)
class Orbit:
    """The pictures ``t·x`` for some elements t of a group, the identity first, stacked in one batch.

    Args:
        group: the group that fibers of the network's maps run over.
        elements: indices of the elements t in that group.
        batch: the number of pictures x.
    """

    group: PointGroup
    elements: tuple[int, ...]
    batch: int

    def holds(self, y: Tensor) -> bool:
        """Whether the first axis of a tensor is that of the orbit, or has the fiber folded into it."""
        rows = len(self.elements) * self.batch
        return y.ndim > 0 and y.shape[0] in (rows, rows * self.group.order)

    @property
    def exchanges_axes(self) -> bool:
        """Whether an element exchanges rows and columns."""
        return bool((self.group.arrays[list(self.elements), 0, 1] != 0).any())


@dataclass(frozen=True)
class Reading:
    """One way to read the shape of a tensor: a name and a size for each axis, after splitting merged ones.

    The names are T for the elements of the orbit, B for its pictures, C for channels, H for the fiber, Y and X.
    A folded map is "TBHCYX"; channels and fiber merged by a flatten are "TBCH" or "TBHC".
    """

    labels: str
    sizes: tuple[int, ...]

    def canonical(self, y: Tensor) -> Tensor:
        """Return the values with the axes in the order T, B, C, H, Y, X; those that are absent are left out."""
        return y.reshape(self.sizes).permute(self._order)

    def moved(self, y: Tensor, orbit: Orbit) -> Iterator[Tensor]:
        """Yield ``t·y₀`` in canonical order for each element t, ``y₀`` being what the network makes of x itself."""
        origin = self.canonical(y)[0]
        if "Y" not in self.labels:
            origin = origin[..., None, None]
        for element in orbit.elements:
            target = transform(origin, orbit.group, element, group_axis="H" in self.labels)
            yield target if "Y" in self.labels else target[..., 0, 0]

    def errors(self, y: Tensor, orbit: Orbit) -> tuple[float, ...]:
        """Return ``max |y(t·x) - t·y(x)| / max |y(x)|`` for each element t; infinite where NaN forbids comparison."""
        maps = self.canonical(y)
        scale = maps[0].abs().max().clamp_min(torch.finfo(maps.dtype).tiny)
        pairs = zip(maps, self.moved(y, orbit), strict=True)
        errors = torch.stack([(found - target).abs().max() for found, target in pairs]) / scale
        return tuple(errors.nan_to_num(torch.inf, torch.inf).tolist())

    def corrected(self, y: Tensor, orbit: Orbit) -> Tensor:
        """Return ``t·y₀`` for all elements t in the place of y."""
        exact = torch.stack(list(self.moved(y, orbit)))
        inverse = sorted(range(len(self._order)), key=self._order.__getitem__)
        return exact.permute(inverse).reshape(y.shape)

    def size(self, label: str) -> int:
        """Return the product of the sizes of all axes of a name, 1 if there is none."""
        return prod(n for name, n in zip(self.labels, self.sizes, strict=True) if name == label)

    @property
    def pixels(self) -> tuple[int, ...]:
        """Rows and columns, or nothing."""
        return (self.size("Y"), self.size("X")) if "Y" in self.labels else ()

    def __str__(self) -> str:
        names = [axis for axis in "CHYX" if axis in self.labels]
        return "×".join(str(self.size(axis)) for axis in names) or "1"

    @property
    def _order(self) -> list[int]:
        return sorted(range(len(self.labels)), key=lambda i: _AXES.index(self.labels[i]))


def read(
    y: Tensor, orbit: Orbit, tolerance: float, before: Reading | None = None, strict: bool = False
) -> tuple[Reading, tuple[float, ...]]:
    """Find the reading of a tensor under which the network has been equivariant so far; the likeliest comes first.

    Where none is exact, values decide nothing but how channels and fiber are merged: a map stays a map, and what had
    a fiber still has it.

    Args:
        y: what a module returns for an orbit, which must hold it.
        orbit: that orbit.
        tolerance: largest error of an exact reading.
        before: the reading of the step before.
        strict: read (B, C, Y, X) and (B, C, |H|, Y, X) as that and anything shorter as invariant, as
            :func:`sepgroupy.testing.equivariance_error` does.

    Returns:
        The reading and its errors.
    """
    tried = []
    for reading in _readings(tuple(y.shape), orbit):
        if strict and y.ndim < 4 and set(reading.labels) & set("HYX"):
            continue
        tried.append((reading, reading.errors(y, orbit)))
        if strict or max(tried[-1][1]) <= tolerance:
            return tried[-1]
    if y.ndim < 3 or before is None or "H" in tried[0][0].labels:
        return tried[0]
    wanted = {"H": "H" in before.labels, "Y": y.ndim > 3 or "Y" in before.labels}
    return min(tried, key=lambda t: (sum((axis in t[0].labels) != there for axis, there in wanted.items()), max(t[1])))


def _readings(shape: tuple[int, ...], orbit: Orbit) -> Iterator[Reading]:
    stack, order = (len(orbit.elements), orbit.batch), orbit.group.order
    if shape[0] == prod(stack):
        for labels, sizes in _planes(shape[1:], orbit):
            for more, split in _fibers(labels, sizes, order):
                yield Reading("TB" + more, stack + split)
    else:
        for labels, sizes in _planes(shape[1:], orbit):
            yield Reading("TBH" + labels, (*stack, order, *sizes))


def _planes(sizes: tuple[int, ...], orbit: Orbit) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Say which axes may be rows and columns: the last two, the first two, flattened ones, or none."""
    count = len(sizes)
    if count >= 3 and (sizes[-2] == sizes[-1] or not orbit.exchanges_axes):
        yield "C" * (count - 2) + "YX", sizes
    if count == 3 and (sizes[0] == sizes[1] or not orbit.exchanges_axes):
        yield "YXC", sizes
    yield "C" * count, sizes
    for axis, labels in ((1, "CYX"), (0, "YXC")):
        if count == 2 and (side := isqrt(sizes[axis])) > 1 and side * side == sizes[axis]:
            yield labels, (*sizes[:axis], side, side, *sizes[axis + 1 :])
    if count == 1:
        for side in range(2, isqrt(sizes[0]) + 1):
            if sizes[0] % side**2 == 0:
                yield "CYX", (sizes[0] // side**2, side, side)


def _fibers(labels: str, sizes: tuple[int, ...], order: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Say which axis may be the fiber: one of its own, none, or one merged with channels."""
    channels = [axis for axis, label in enumerate(labels) if label == "C"]
    own = [axis for axis in channels[1:] if sizes[axis] == order]
    for axis in own:
        yield _replace(labels, axis, "H"), sizes
    yield labels, sizes
    for axis in channels:
        if axis not in own and sizes[axis] and sizes[axis] % order == 0:
            rest = sizes[axis] // order
            for split, parts in (("CH", (rest, order)), ("HC", (order, rest))):
                yield _replace(labels, axis, split), (*sizes[:axis], *parts, *sizes[axis + 1 :])


def _replace(labels: str, axis: int, by: str) -> str:
    return labels[:axis] + by + labels[axis + 1 :]


def stack_orbit(x: Tensor, orbit: Orbit, fiber: bool) -> Tensor:
    """Return the orbit of pictures, or of maps on the group, as one batch."""
    return torch.cat([transform(x, orbit.group, element, fiber) for element in orbit.elements])
