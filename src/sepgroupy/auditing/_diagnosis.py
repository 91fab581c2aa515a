"""The causes for which a layer breaks the symmetry, and their fixes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..backends import CONV, ConvSpec
from ..groups import PointGroup, axis_names
from ..nn import GroupConvolution
from ._axis_layout import NOT_CHANNELS, AxisLayout, Orbit, find_layout, spatial_last
from ._grid import CONVS, asymmetric_axis, exact_kernel, geometry_of, has_symmetric_grid, span
from ._tracing import INPUT, Resize, Step

_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d,
    nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm, nn.PReLU,
)  # fmt: skip
_PADS = (
    nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d,
    nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d, nn.CircularPad1d,
    nn.CircularPad2d, nn.CircularPad3d,
)  # fmt: skip
_SIDES = ("left", "right", "top", "bottom", "front", "back")
_UNPOOLS = (nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d)
_LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Diagnosis:
    """One cause for which a layer breaks the symmetry, and its fix."""

    cause: str
    suggested_fix: str
    suggested_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the layer, or of the function called, that would make it exact."""
    depends_on_size: bool = False
    """Whether the layer may be exact at another size of its input."""


def diagnose(step: Step, group: PointGroup, orbit: Orbit, tolerance: float) -> list[Diagnosis]:
    """Find the causes for which a broken step breaks the symmetry.

    Args:
        step: of a corrected trace.
        group: the audited group.
        orbit: the orbit that was traced.
        tolerance: largest error of an exact layout.
    """
    module = step.module
    if module is None:
        return [_diagnose_between(step)]
    x = next((a for a in step.inputs if isinstance(a, Tensor) and orbit.is_batch_of(a)), None)
    layout = None if x is None else find_layout(x, orbit, tolerance)[0]
    if x is not None and layout is not None and geometry_of(module) and not layout.labels.endswith(orbit.spatial):
        layout = spatial_last(x, orbit)  # as convolutions and pooling read it, whatever the values
    found = []
    if layout is not None and layout.pixels and (geometry := geometry_of(module)):
        pixels = layout.pixels
        if not has_symmetric_grid(geometry, pixels, group):
            found.append(_grid(geometry, pixels, group))
    found += _padding(module)
    if isinstance(module, GroupConvolution) and not group.is_subgroup_of(module.group):
        cause = f"it is equivariant under {_name(module.group)} alone, not under {_name(group)}"
        found.append(Diagnosis(cause, f"group={_name(group)!r}"))
    elif isinstance(module, CONVS) and x is not None and layout is not None:
        if not found or _filter_breaks(module, x, layout, orbit, tolerance):
            found.append(_plain_convolution(module, layout, orbit.group))
    elif isinstance(module, nn.Linear) and layout is not None and NOT_CHANNELS & set(layout.labels):
        found.append(_flattened(layout))
    elif isinstance(module, _NORMS) and layout is not None and NOT_CHANNELS & set(layout.labels):
        found.append(_unshared(layout, group.dimension))
    elif isinstance(module, _UNPOOLS):
        cause = "its indices are those of a max-pooling, which takes the first of equal values, such as zeros of a ReLU"
        found.append(Diagnosis(cause, "nn.Upsample in its place"))
    elif resize := _asymmetric(step):
        found.append(_resize(resize, "it"))
    if not found and layout is not None and layout.pixels != step.layout.pixels and step.layout.pixels:
        cause = f"it goes from {_pixels(layout)} to {_pixels(step.layout)} pixels on a grid that is not symmetric"
        found.append(Diagnosis(cause, "another input size", depends_on_size=True))
    return found or [_unknown(step)]


def _grid(geometry: ConvSpec, pixels: tuple[int, ...], group: PointGroup) -> Diagnosis:
    axis = asymmetric_axis(geometry, pixels, group)
    assert axis is not None
    k, s, p, d = (v[axis] for v in (geometry.kernel_size, geometry.stride, geometry.padding[::2], geometry.dilation))
    n, remainder = pixels[axis], span(geometry, axis, pixels[axis]) % s
    cause = (
        f"the grid of stride {s} is not symmetric at this size: n + 2·padding - dilation·(k-1) - 1 = "
        f"{n} + 2·{p} - {d}·{k - 1} - 1 = {span(geometry, axis, n)}, which {s} does not divide (remainder {remainder})"
    )
    axes = (geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation, pixels)
    equal = all(len(set(v)) == 1 for v in axes)
    arguments = exact_kernel(n, k, s, p, d) if equal else None
    if arguments is None:
        return Diagnosis(cause, "another input size", depends_on_size=True)
    size = "×".join(map(str, pixels))
    words = f"kernel_size={arguments['kernel_size']}, padding={arguments['padding']} is exact at {size} pixels"
    return Diagnosis(cause, f"{words} and leaves the size of the output unchanged", arguments, depends_on_size=True)


def _padding(module: nn.Module) -> list[Diagnosis]:
    if isinstance(module, CONVS) and module.padding == "same":
        sides = (geometry := geometry_of(module)) and geometry.padding
        if sides and sides[::2] != sides[1::2]:
            kernel = tuple(k + (k + 1) % 2 for k in module.kernel_size)
            cause = (
                f"padding='same' pads {sides} pixels (before and after, by axis) for kernel_size={module.kernel_size}"
            )
            return [Diagnosis(cause, f"an odd kernel_size such as {kernel}", {"kernel_size": kernel})]
    if isinstance(module, _PADS) and len({*_sides(module.padding)}) > 1:
        pad = max(_sides(module.padding))
        names = ", ".join(_SIDES[: len(_sides(module.padding))])
        cause = f"its padding {_sides(module.padding)} ({names}) is not the same on all sides"
        return [Diagnosis(cause, f"padding={pad} on all sides, or half of it on each", {"padding": pad})]
    return []


def _filter_breaks(module: Any, x: Tensor, layout: AxisLayout, orbit: Orbit, tolerance: float) -> bool:
    """Measure the filter alone, without padding and on a part of its input where the stride's grid is symmetric."""
    geometry = geometry_of(module)
    if geometry is None or len(layout.pixels) != geometry.dimension:
        return True
    geometry = replace(geometry, padding=(0,) * len(geometry.padding))
    spans = [span(geometry, axis, n) for axis, n in enumerate(layout.pixels)]
    size = tuple(n - span % s for n, span, s in zip(layout.pixels, spans, geometry.stride, strict=True))
    if any(span(geometry, axis, n) < 0 for axis, n in enumerate(size)):
        return True
    region: Any = (..., *(slice(n) for n in size))
    part = x[region]
    of_axis = dict(zip(orbit.spatial, size, strict=True))
    sizes = tuple(of_axis.get(label, n) for label, n in zip(layout.labels, layout.sizes, strict=True))
    with torch.no_grad():
        part = AxisLayout(layout.labels, sizes).corrected(part, orbit)
        conv = CONV[geometry.dimension]
        y = conv(part, module.weight, module.bias, module.stride, 0, module.dilation, module.groups)
    return max(find_layout(y, orbit, tolerance)[1]) > tolerance


def _plain_convolution(module: Any, layout: AxisLayout, group: PointGroup) -> Diagnosis:
    lifted = "H" in layout.labels
    inputs = layout.size("C") if lifted else module.in_channels
    dimension, axes = group.dimension, ", ".join(axis_names(group.dimension))
    call = f"{'GroupConv' if lifted else 'LiftingConv'}{dimension}d({inputs}, …, group={_name(group)!r})"
    where = f" on feature maps (B, {inputs}, {group.order}, {axes})" if lifted else f", GroupConv{dimension}d after it"
    cause = f"an ordinary {type(module).__name__}, whose filter {_name(group)} changes"
    return Diagnosis(cause, f"{call} in its place{where}")


def _flattened(layout: AxisLayout) -> Diagnosis:
    parts, pools = [f"{layout.size('C')} channels"], []
    if "H" in layout.labels:
        parts.append(f"{layout.size('H')} elements of the group")
        pools.append("GroupPool over the elements")
    if layout.pixels:
        parts.append(f"{_pixels(layout)} positions")
        pools.append("an average over the positions")
    cause = f"a flatten before it: its inputs are {' × '.join(parts)}, each with its own weights"
    return Diagnosis(cause, f"{' and '.join(pools)} before the flatten")


def _unshared(layout: AxisLayout, dimension: int) -> Diagnosis:
    over = " and ".join(
        text for axis, text in (("H", "elements of the group"), ("X", "positions")) if axis in layout.labels
    )
    cause = f"a non-shared affine: its parameters and statistics differ between {over} ({layout} values)"
    channels = layout.size("C")
    if "H" in layout.labels:
        axes = ", ".join(axis_names(dimension))
        shape = f"(B, {channels}, {layout.size('H')}, {axes})"
        return Diagnosis(cause, f"GroupBatchNorm{dimension}d({channels}) on {shape}")
    return Diagnosis(cause, f"one number for each of the {channels} channels, as BatchNorm{dimension}d has")


def _asymmetric(step: Step) -> Resize | None:
    return next((resize for resize in step.resizes if not resize.is_symmetric), None)


def _resize(resize: Resize, subject: str) -> Diagnosis:
    before, after = ("×".join(map(str, sizes)) for sizes in (resize.before, resize.after))
    cause = f"{subject} resizes {before} pixels to {after} with mode={resize.mode!r}"
    if resize.mode.startswith("nearest"):
        cause += ", which does not treat both ends of an axis alike at these sizes"
        mode = _LINEAR_MODES[len(resize.before)]
        return Diagnosis(cause, f"mode={mode!r}", {"mode": mode}, depends_on_size=True)
    cause += f" and scale_factor={resize.scale_factor}, which gives no whole number of pixels at this size"
    fix = "recompute_scale_factor=True"
    return Diagnosis(cause, fix, {"recompute_scale_factor": True}, depends_on_size=True)


def _diagnose_between(step: Step) -> Diagnosis:
    before, after = step.before, step.layout
    if resize := _asymmetric(step):
        where = "before the output" if step.is_output else f"before {step.name.removesuffix(INPUT)}"
        return _resize(resize, f"a call of interpolate {where}, between two modules,")
    if step.is_output:
        cause = f"the network's output, {after}, depends on the orientation of the image"
        return Diagnosis(cause, "GroupPool over the elements of the group and an average over the positions, before it")
    where = f"the code before {step.name.removesuffix(INPUT)}, between two modules,"
    if before is None or not before.pixels or not after.pixels or before.pixels == after.pixels:
        return Diagnosis(f"{where} does not treat all positions and elements alike", "code that does")
    sizes = f"takes {_pixels(before)} pixels to {_pixels(after)}"
    if after.pixels > before.pixels:
        return Diagnosis(f"{where} {sizes}, not alike on all sides", "padding that is the same on all sides")
    stride = before.pixels[0] // after.pixels[0]
    window = before.pixels[0] - (after.pixels[0] - 1) * stride
    cause = f"{where} {sizes} by a pooling or a stride whose grid is not symmetric at this size"
    fix = f"a window of {window} with stride {stride}, without padding"
    return Diagnosis(cause, fix, depends_on_size=True)


def _unknown(step: Step) -> Diagnosis:
    return Diagnosis(
        f"{type(step.module).__name__} does not treat all positions and elements of the group alike",
        "a layer that does: no separate parameters for positions, elements or their order",
    )


def _name(group: PointGroup) -> str:
    return group.name or f"the group of order {group.order}"


def _pixels(layout: AxisLayout) -> str:
    return "×".join(map(str, layout.pixels))


def _sides(padding: Any) -> tuple[int, ...]:
    return (padding,) * 4 if isinstance(padding, int) else tuple(padding)
