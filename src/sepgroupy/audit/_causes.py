"""Why a layer breaks the symmetry, and what would repair it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backends import ConvSpec
from ..groups import C1, PointGroup
from ..nn import GroupConv2d, GroupConvolution, LiftingConv2d
from ._readings import Orbit, Reading, read
from ._trace import INPUT, OUTPUT, Step

_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm,
    nn.PReLU,
)  # fmt: skip
_PADS = (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d)


@dataclass(frozen=True)
class Cause:
    """One reason why a layer breaks the symmetry."""

    why: str
    repair: str
    change: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the layer that would repair it, as they would be."""
    resamples: bool = False
    """Whether it is a matter of the picture's size."""


def causes(step: Step, group: PointGroup, orbit: Orbit, tolerance: float) -> list[Cause]:
    """Say why a broken step breaks the symmetry, and how to repair it.

    Args:
        step: of a corrected trace.
        group: the audited group.
        orbit: the orbit that was traced.
        tolerance: largest error of an exact reading.
    """
    module = step.module
    if module is None:
        return [_between(step)]
    x = next((a for a in step.inputs if isinstance(a, Tensor) and orbit.holds(a)), None)
    reading = None if x is None else read(x, orbit, tolerance)[0]
    found = []
    if reading is not None and reading.pixels and (geometry := geometry_of(module)):
        pixels = reading.pixels
        if uneven_grid(geometry, pixels, group):
            found.append(_grid(geometry, pixels))
    found += _padding(module)
    if isinstance(module, GroupConvolution) and not group.is_subgroup_of(module.group):
        own = module.group
        found.append(
            Cause(f"it is equivariant under {_name(own)} alone, not under {_name(group)}", f"group={_name(group)!r}")
        )
    elif isinstance(module, nn.Conv2d) and x is not None and reading is not None:
        if not found or _filter_breaks(module, x, reading, orbit, tolerance):
            found.append(_ordinary(module, reading, orbit.group))
    elif isinstance(module, nn.Linear) and reading is not None and set(reading.labels[2:]) & set("HYX"):
        found.append(_flattened(reading))
    elif isinstance(module, _NORMS) and reading is not None and set(reading.labels) & set("HYX"):
        found.append(_unshared(module, reading))
    if not found and reading is not None and reading.pixels != step.reading.pixels and step.reading.pixels:
        sizes = f"from {_pixels(reading)} to {_pixels(step.reading)} pixels"
        found.append(Cause(f"it goes {sizes} on a grid that is not symmetric", "another input size", resamples=True))
    return found or [_unknown(step)]


def geometry_of(module: nn.Module) -> ConvSpec | None:
    """Return kernel, stride, padding and dilation of a convolution or pooling; None for other modules."""
    if isinstance(module, (LiftingConv2d, GroupConv2d)):
        return module.spec
    if not isinstance(module, (nn.Conv2d, *_POOLS)):
        return None
    kernel = _pair(module.kernel_size)
    stride = _pair(module.stride) if module.stride else kernel
    dilation, padding = _pair(getattr(module, "dilation", 1)), getattr(module, "padding", 0)
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        pads = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
    else:
        row, column = _pair(padding)
        pads = (row, row, column, column)
    return ConvSpec(C1, "dense", kernel, stride, pads, dilation)


def uneven_grid(geometry: ConvSpec, pixels: tuple[int, ...], group: PointGroup) -> bool:
    """Whether ``(n + 2·padding - dilation·(k-1) - 1) % stride`` is not 0 on an axis that the group reverses."""
    reversed_axes = [bool((group.arrays[:, :, axis] < 0).any()) for axis in (0, 1)]
    return any(_span(geometry, axis, n) % geometry.stride[axis] for axis, n in enumerate(pixels) if reversed_axes[axis])


def _span(geometry: ConvSpec, axis: int, n: int) -> int:
    before, after = geometry.padding[2 * axis : 2 * axis + 2]
    return n + before + after - geometry.dilation[axis] * (geometry.kernel_size[axis] - 1) - 1


def _grid(geometry: ConvSpec, pixels: tuple[int, ...]) -> Cause:
    k, s, p, d = (v[0] for v in (geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation))
    n, left = pixels[0], _span(geometry, 0, pixels[0]) % s
    why = (
        f"the grid of stride {s} is not symmetric at this size: n + 2·padding - dilation·(k-1) - 1 = "
        f"{n} + 2·{p} - {d}·{k - 1} - 1 = {_span(geometry, 0, n)}, which {s} does not divide ({left} left over)"
    )
    even = [v[0] == v[-1] for v in (geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation, pixels)]
    change = _exact_kernel(n, k, s, p, d) if all(even) and geometry.padding[0] == geometry.padding[1] else None
    if change is None:
        return Cause(why, "another input size", resamples=True)
    words = f"kernel_size={change['kernel_size']}, padding={change['padding']} is exact at {n}×{n} pixels"
    return Cause(why, f"{words} and keeps the size of the output", change, resamples=True)


def _exact_kernel(n: int, k: int, s: int, p: int, d: int) -> dict[str, int] | None:
    """Return the kernel and padding nearest to those given that are exact at n pixels and keep the output's size."""
    found = [
        {"kernel_size": kernel, "padding": pad}
        for kernel in range(1, k + s + 1)
        for pad in range(max(p, kernel // 2) + 1)
        if n + 2 * pad - d * (kernel - 1) - 1 == ((n + 2 * p - d * (k - 1) - 1) // s) * s
        and (pad == p or 2 * pad <= kernel)
    ]
    return min(
        found, key=lambda c: (abs(c["kernel_size"] - k) + abs(c["padding"] - p), -c["kernel_size"]), default=None
    )


def _padding(module: nn.Module) -> list[Cause]:
    if isinstance(module, nn.Conv2d) and module.padding == "same":
        sides = (geometry := geometry_of(module)) and geometry.padding
        if sides and (sides[0] != sides[1] or sides[2] != sides[3]):
            kernel = tuple(k + (k + 1) % 2 for k in module.kernel_size)
            why = f"padding='same' pads {sides} pixels (top, bottom, left, right) for kernel_size={module.kernel_size}"
            return [Cause(why, f"an odd kernel_size such as {kernel}", {"kernel_size": kernel})]
    if isinstance(module, _PADS) and len({*_sides(module.padding)}) > 1:
        pad = max(_sides(module.padding))
        why = f"its padding {_sides(module.padding)} (left, right, top, bottom) is not the same on all sides"
        return [Cause(why, f"padding={pad} on all sides, or half of it on each", {"padding": pad})]
    return []


def _filter_breaks(module: nn.Conv2d, x: Tensor, reading: Reading, orbit: Orbit, tolerance: float) -> bool:
    """Try the filter alone, without padding and on a part of its input where the stride's grid is symmetric."""
    geometry = ConvSpec(C1, "dense", _pair(module.kernel_size), _pair(module.stride), dilation=_pair(module.dilation))
    rows, columns = reading.pixels
    height, width = (n - _span(geometry, axis, n) % geometry.stride[axis] for axis, n in enumerate((rows, columns)))
    if _span(geometry, 0, height) < 0 or _span(geometry, 1, width) < 0:
        return True
    part = x[..., :height, :width]
    smaller = Reading(reading.labels, tuple(
        {"Y": height, "X": width}.get(label, n) for label, n in zip(reading.labels, reading.sizes, strict=True)
    ))  # fmt: skip
    with torch.no_grad():
        part = smaller.corrected(part, orbit)
        y = F.conv2d(part, module.weight, module.bias, module.stride, 0, module.dilation, module.groups)
    return max(read(y, orbit, tolerance)[1]) > tolerance


def _ordinary(module: nn.Conv2d, reading: Reading, group: PointGroup) -> Cause:
    fiber = "H" in reading.labels
    inputs = reading.size("C") if fiber else module.in_channels
    call = f"{'GroupConv2d' if fiber else 'LiftingConv2d'}({inputs}, …, group={_name(group)!r})"
    where = f" on maps (B, {inputs}, {group.order}, Y, X)" if fiber else ", GroupConv2d after it"
    why = f"an ordinary {type(module).__name__}, whose filter {_name(group)} changes"
    return Cause(why, f"{call} in its place{where}")


def _flattened(reading: Reading) -> Cause:
    parts, pools = [f"{reading.size('C')} channels"], []
    if "H" in reading.labels:
        parts.append(f"{reading.size('H')} elements of the group")
        pools.append("GroupPool over the elements")
    if reading.pixels:
        parts.append(f"{_pixels(reading)} positions")
        pools.append("an average over the positions")
    why = f"a flatten before it: its inputs are {' × '.join(parts)}, each with weights of its own"
    return Cause(why, f"{' and '.join(pools)} before the flatten")


def _unshared(module: nn.Module, reading: Reading) -> Cause:
    over = " and ".join(
        text for axis, text in (("H", "elements of the group"), ("Y", "positions")) if axis in reading.labels
    )
    why = f"a non-shared affine: its parameters and statistics differ between {over} ({reading} values)"
    channels = reading.size("C")
    if "H" in reading.labels:
        return Cause(why, f"GroupBatchNorm2d({channels}) on (B, {channels}, {reading.size('H')}, Y, X)")
    return Cause(why, f"one number for each of the {channels} channels, as BatchNorm2d has")


def _between(step: Step) -> Cause:
    before, after = step.before, step.reading
    if step.name == OUTPUT:
        why = f"the answer, {after}, depends on the orientation of the picture"
        return Cause(why, "GroupPool over the elements of the group and an average over the positions, before it")
    where = f"what is computed before {step.name.removesuffix(INPUT)}, between two modules,"
    if before is None or not before.pixels or not after.pixels or before.pixels == after.pixels:
        return Cause(f"{where} does not treat all positions and elements alike", "a step that does")
    sizes = f"takes {_pixels(before)} pixels to {_pixels(after)}"
    if after.pixels > before.pixels:
        return Cause(f"{where} {sizes}, not alike on all sides", "padding that is the same on all sides")
    stride = before.pixels[0] // after.pixels[0]
    window = before.pixels[0] - (after.pixels[0] - 1) * stride
    why = f"{where} {sizes} by a pooling or a stride whose grid is not symmetric at this size"
    return Cause(why, f"a window of {window} with stride {stride}, without padding", resamples=True)


def _unknown(step: Step) -> Cause:
    return Cause(
        f"{type(step.module).__name__} does not treat all positions and elements of the group alike",
        "a layer that does: no parameters of their own for positions, elements or their order",
    )


def _name(group: PointGroup) -> str:
    return group.name or f"the group of order {group.order}"


def _pixels(reading: Reading) -> str:
    return "×".join(map(str, reading.pixels))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _sides(padding: Any) -> tuple[int, ...]:
    return (padding,) * 4 if isinstance(padding, int) else tuple(padding)
