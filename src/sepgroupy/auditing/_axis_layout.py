"""The action of a group on a tensor inside a network: axis layouts that fit its shape, compared on its values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..functional import transform
from ..groups import PointGroup, transformed_size

_AXES = "TBCHZYX"
NOT_CHANNELS = frozenset("HZYX")
"""Names of the axes that a group acts on."""


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
    def spatial(self) -> str:
        """The names of the spatial axes: "YX" of images, "ZYX" of volumes."""
        return "ZYX"[-self.group.dimension :]

    def preserves(self, size: tuple[int, ...]) -> bool:
        """Whether every element maps an array of these spatial sizes to one of the same."""
        return all(transformed_size(self.group.arrays[element], size) == size for element in self.elements)


@dataclass(frozen=True)
class AxisLayout:
    """A name and a size for each axis of a tensor, after splitting merged ones.

    The names are T for the elements of the orbit, B for its images, C for channels, H for the group axis, Y and X
    (of volumes also Z, of signals X alone). A feature map whose group axis is merged into the batch is "TBHCYX";
    channels and group axis merged by a flatten are "TBCH" or "TBHC".
    """

    labels: str
    sizes: tuple[int, ...]

    def canonical(self, y: Tensor) -> Tensor:
        """Return the values with the axes in the order T, B, C, H, Z, Y, X; absent axes are left out."""
        return y.reshape(self.sizes).permute(self._order)

    def transformed(self, y: Tensor, orbit: Orbit) -> Iterator[Tensor]:
        """Yield ``t·y₀`` in canonical order for each element t, where ``y₀`` is the network's output for x."""
        origin = self.canonical(y)[0]
        new_axes, no_axes = ((..., *(axis,) * orbit.group.dimension) for axis in (None, 0))
        if "X" not in self.labels:
            origin = origin[new_axes]  # type: ignore[index]
        for element in orbit.elements:
            target = transform(origin, orbit.group, element, group_axis="H" in self.labels)
            yield target if "X" in self.labels else target[no_axes]  # type: ignore[index]

    def errors(self, y: Tensor, orbit: Orbit) -> tuple[float, ...]:
        """Return ``max |y(t·x) - t·y(x)| / max |y(x)|`` for each element t; infinite if NaN prevents a comparison."""
        values = self.canonical(y)
        scale = values[0].abs().max().clamp_min(torch.finfo(values.dtype).tiny)
        pairs = zip(values, self.transformed(y, orbit), strict=True)
        errors = torch.stack([(found - target).abs().max() for found, target in pairs]) / scale
        return tuple(errors.nan_to_num(torch.inf, torch.inf).tolist())

    def corrected(self, y: Tensor, orbit: Orbit) -> Tensor:
        """Return ``t·y₀`` for all elements t, in the layout of y."""
        exact = torch.stack(list(self.transformed(y, orbit)))
        inverse = sorted(range(len(self._order)), key=self._order.__getitem__)
        return exact.permute(inverse).reshape(y.shape)

    def size(self, label: str) -> int:
        """Return the product of the sizes of all axes with this name, 1 if there is none."""
        return prod(n for name, n in zip(self.labels, self.sizes, strict=True) if name == label)

    @property
    def pixels(self) -> tuple[int, ...]:
        """The spatial sizes, such as rows and columns; empty if there are none."""
        return tuple(self.size(axis) for axis in "ZYX" if axis in self.labels)

    def __str__(self) -> str:
        names = [axis for axis in "CHZYX" if axis in self.labels]
        return "×".join(str(self.size(axis)) for axis in names) or "1"

    @property
    def _order(self) -> list[int]:
        return sorted(range(len(self.labels)), key=lambda i: _AXES.index(self.labels[i]))


def find_layout(
    y: Tensor, orbit: Orbit, tolerance: float, before: AxisLayout | None = None, strict: bool = False
) -> tuple[AxisLayout, tuple[float, ...]]:
    """Find the layout of a tensor under which the network has been equivariant so far; the most likely is tried first.

    If none is exact, the values decide only how channels and group axis are merged: a feature map remains a feature
    map, and a group axis remains.

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
        if strict and y.ndim < 2 + orbit.group.dimension and NOT_CHANNELS & set(layout.labels):
            continue
        tried.append((layout, layout.errors(y, orbit)))
        if strict or max(tried[-1][1]) <= tolerance:
            return tried[-1]
    if y.ndim < 3 or before is None or "H" in tried[0][0].labels:
        return tried[0]
    wanted = {"H": "H" in before.labels, "X": y.ndim > 1 + orbit.group.dimension or "X" in before.labels}
    return min(tried, key=lambda t: (sum((axis in t[0].labels) != there for axis, there in wanted.items()), max(t[1])))


def spatial_last(y: Tensor, orbit: Orbit) -> AxisLayout | None:
    """Return the most likely layout of a tensor whose last axes are the spatial ones; None if there is none."""
    return next((layout for layout in _layouts(tuple(y.shape), orbit) if layout.labels.endswith(orbit.spatial)), None)


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
    """Yield which axes may be the spatial ones: the last, the first, flattened ones (of a square or cube), or none."""
    count, spatial = len(sizes), orbit.spatial
    dimension = len(spatial)
    if count > dimension and orbit.preserves(sizes[-dimension:]):
        yield "C" * (count - dimension) + spatial, sizes
    if count == dimension + 1 and orbit.preserves(sizes[:-1]):
        yield spatial + "C", sizes
    yield "C" * count, sizes
    for axis, labels in ((1, "C" + spatial), (0, spatial + "C")):
        if count == 2 and (side := round(sizes[axis] ** (1 / dimension))) > 1 and side**dimension == sizes[axis]:
            yield labels, (*sizes[:axis], *(side,) * dimension, *sizes[axis + 1 :])
    if count == 1:
        for side in range(2, round(sizes[0] ** (1 / dimension)) + 1):
            if sizes[0] % side**dimension == 0:
                yield "C" + spatial, (sizes[0] // side**dimension, *(side,) * dimension)


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


MAX_ELEMENTS = 8
"""Elements of an orbit that go through a network in one batch."""


def split_orbit(orbit: Orbit) -> list[Orbit]:
    """Return orbits of at most ``MAX_ELEMENTS`` elements, the identity in each, that together have all elements.

    The first of several has elements that generate the others: a layout is exact for all of them if it is for these.
    """
    identity, *others = orbit.elements
    if len(others) < MAX_ELEMENTS:
        return [orbit]
    generators = _generators(orbit)
    ordered = [*generators, *(element for element in others if element not in generators)]
    step = MAX_ELEMENTS - 1
    ordered += ordered[: -len(ordered) % step]  # equal parts, of equal shapes
    chunks = [ordered[start : start + step] for start in range(0, len(ordered), step)]
    return [Orbit(orbit.group, (identity, *chunk), orbit.batch) for chunk in chunks]


def _generators(orbit: Orbit) -> list[int]:
    """Return elements that generate all of the orbit's, none of them generated by those before."""
    table, identity = orbit.group.cayley_table, orbit.elements[0]
    found: list[int] = []
    generated = {identity}
    for element in orbit.elements:
        if element not in generated:
            found.append(element)
            new = {identity}
            while new:
                generated |= new
                new = {int(table[g, h]) for g in found for h in new} - generated
    return found
