"""How a group acts on a tensor inside a network: axis layouts that its shape allows, compared on its values."""

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
    """The images ``t·x`` for some elements t of a group, the identity first, stacked in one batch.

    Args:
        group: the group of the network's group axes.
        elements: indices of the elements t in that group.
        batch: the number of images x.
    """

    group: PointGroup
    elements: tuple[int, ...]
    batch: int

    def is_batch_of(self, y: Tensor) -> bool:
        """Whether the first axis of a tensor is that of the orbit, or has the group axis merged into it."""
        size = len(self.elements) * self.batch
        return y.ndim > 0 and y.shape[0] in (size, size * self.group.order)

    @property
    def exchanges_axes(self) -> bool:
        """Whether an element exchanges rows and columns."""
        return bool((self.group.arrays[list(self.elements), 0, 1] != 0).any())


@dataclass(frozen=True)
class AxisLayout:
    """A name and a size for each axis of a tensor, after splitting merged ones.

    The names are T for the elements of the orbit, B for its images, C for channels, H for the group axis, Y and X.
    A feature map whose group axis is merged into the batch is "TBHCYX"; channels and group axis merged by a flatten
    are "TBCH" or "TBHC".
    """

    labels: str
    sizes: tuple[int, ...]

    def canonical(self, y: Tensor) -> Tensor:
        """Return the values with the axes in the order T, B, C, H, Y, X; those that are absent are left out."""
        return y.reshape(self.sizes).permute(self._order)

    def transformed(self, y: Tensor, orbit: Orbit) -> Iterator[Tensor]:
        """Yield ``t·y₀`` in canonical order for each element t, ``y₀`` being the network's answer to x itself."""
        origin = self.canonical(y)[0]
        if "Y" not in self.labels:
            origin = origin[..., None, None]
        for element in orbit.elements:
            target = transform(origin, orbit.group, element, group_axis="H" in self.labels)
            yield target if "Y" in self.labels else target[..., 0, 0]

    def errors(self, y: Tensor, orbit: Orbit) -> tuple[float, ...]:
        """Return ``max |y(t·x) - t·y(x)| / max |y(x)|`` for each element t; infinite where NaN forbids comparison."""
        values = self.canonical(y)
        scale = values[0].abs().max().clamp_min(torch.finfo(values.dtype).tiny)
        pairs = zip(values, self.transformed(y, orbit), strict=True)
        errors = torch.stack([(found - target).abs().max() for found, target in pairs]) / scale
        return tuple(errors.nan_to_num(torch.inf, torch.inf).tolist())

    def corrected(self, y: Tensor, orbit: Orbit) -> Tensor:
        """Return ``t·y₀`` for all elements t in the place of y."""
        exact = torch.stack(list(self.transformed(y, orbit)))
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


def find_layout(
    y: Tensor, orbit: Orbit, tolerance: float, before: AxisLayout | None = None, strict: bool = False
) -> tuple[AxisLayout, tuple[float, ...]]:
    """Find the layout of a tensor under which the network has been equivariant so far; the likeliest is tried first.

    Where none is exact, the values decide only how channels and group axis are merged: a feature map stays one, and
    a group axis stays where one was before.

    Args:
        y: what a module returns for an orbit.
        orbit: that orbit.
        tolerance: largest error of an exact layout.
        before: the layout of the step before.
        strict: treat (B, C, Y, X) and (B, C, |H|, Y, X) as that and anything shorter as invariant, as
            :func:`sepgroupy.testing.equivariance_error` does.

    Returns:
        The layout and its errors.
    """
    tried = []
    for layout in _layouts(tuple(y.shape), orbit):
        if strict and y.ndim < 4 and set(layout.labels) & set("HYX"):
            continue
        tried.append((layout, layout.errors(y, orbit)))
        if strict or max(tried[-1][1]) <= tolerance:
            return tried[-1]
    if y.ndim < 3 or before is None or "H" in tried[0][0].labels:
        return tried[0]
    wanted = {"H": "H" in before.labels, "Y": y.ndim > 3 or "Y" in before.labels}
    return min(tried, key=lambda t: (sum((axis in t[0].labels) != there for axis, there in wanted.items()), max(t[1])))


def spatial_last(y: Tensor, orbit: Orbit) -> AxisLayout | None:
    """Return the likeliest layout of a tensor whose last axes are rows and columns; None if there is none."""
    return next((layout for layout in _layouts(tuple(y.shape), orbit) if layout.labels.endswith("YX")), None)


def _layouts(shape: tuple[int, ...], orbit: Orbit) -> Iterator[AxisLayout]:
    stack, order = (len(orbit.elements), orbit.batch), orbit.group.order
    if shape[0] == prod(stack):
        for labels, sizes in _spatial_axes(shape[1:], orbit):
            for split_labels, split_sizes in _group_axes(labels, sizes, order):
                yield AxisLayout("TB" + split_labels, stack + split_sizes)
    else:
        for labels, sizes in _spatial_axes(shape[1:], orbit):
            yield AxisLayout("TBH" + labels, (*stack, order, *sizes))


def _spatial_axes(sizes: tuple[int, ...], orbit: Orbit) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield which axes may be rows and columns: the last two, the first two, flattened ones, or none."""
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


def _group_axes(labels: str, sizes: tuple[int, ...], order: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield which axis may be the group axis: a separate one, none, or one merged with channels."""
    channels = [axis for axis, label in enumerate(labels) if label == "C"]
    separate = [axis for axis in channels[1:] if sizes[axis] == order]
    for axis in separate:
        yield _replace(labels, axis, "H"), sizes
    yield labels, sizes
    for axis in channels:
        if axis not in separate and sizes[axis] and sizes[axis] % order == 0:
            quotient = sizes[axis] // order
            for split, parts in (("CH", (quotient, order)), ("HC", (order, quotient))):
                yield _replace(labels, axis, split), (*sizes[:axis], *parts, *sizes[axis + 1 :])


def _replace(labels: str, axis: int, by: str) -> str:
    return labels[:axis] + by + labels[axis + 1 :]


def stack_orbit(x: Tensor, orbit: Orbit, group_axis: bool) -> Tensor:
    """Return the orbit of images, or of group feature maps, as one batch."""
    return torch.cat([transform(x, orbit.group, element, group_axis) for element in orbit.elements])
