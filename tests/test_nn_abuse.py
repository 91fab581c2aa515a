"""Layers under abuse: any arguments and any input give the definition's answer, or an error of ours that names them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import oracle
from conftest import GROUPS, VARIANTS, LayerVariant, as_defined, build_layer
from sepgroupy.errors import ArgumentError
from sepgroupy.groups import C4
from sepgroupy.nn import GROUP_CONV_TRANSPOSES, GroupConvTranspose2d, GroupPool, PerElement

quickly = settings(max_examples=250, suppress_health_check=list(HealthCheck))

HUGE = st.sampled_from([2**31, 2**40, 2**63, 10**30])
WRONG = st.sampled_from(
    [0, -1, 1.5, math.nan, "3", "", None, True, (), (1,), (1, 2, 3), [2, 2], ("a", 1), {}, torch.zeros(2)]
)
"""What is no size: some of it by type, some by value, and some of it is one after all."""
DIMENSIONS = (1, 2, 2, 3)
LARGEST = {1: 30, 2: 12, 3: 6}
"""Most pixels of an axis by the number of axes, for the definition, which is slow."""
PADS = st.just(0) | st.just(0) | st.just(0) | st.integers(0, 3) | WRONG | HUGE
NAMED = {
    "generator",
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
    "group",
}


@st.composite
def arguments(draw: st.DrawFn, dimension: int) -> dict[str, Any]:
    """Draw arguments of a layer of signals, images or volumes, most of them right, some wrong or huge."""
    sizes = st.integers(1, 3) | st.integers(1, 2) | st.tuples(*[st.integers(1, 3)] * dimension)
    right: dict[str, st.SearchStrategy[Any]] = {
        "in_channels": st.sampled_from([2, 4]),
        "out_channels": st.sampled_from([2, 4]),
        "kernel_size": sizes,
        "stride": sizes,
        "padding": st.integers(0, 3) | st.sampled_from(["same", "valid"]),
        "dilation": sizes,
        "groups": st.integers(1, 2),
        "padding_mode": st.sampled_from(sorted(oracle.PAD_MODES)),
        "group": st.sampled_from(GROUPS[dimension]),
    }
    chosen = {name: draw(values) for name, values in right.items()}
    for name in draw(st.just([]) | st.just([]) | st.lists(st.sampled_from(sorted(right)), max_size=2)):
        chosen[name] = draw(WRONG | HUGE)
    return chosen


DTYPES = [torch.float64] * 6 + [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64]


@st.composite
def inputs(draw: st.DrawFn, channels: int, order: int | None, dimension: int) -> Any:
    """Draw what is given to a layer: mostly maps that it reads, laid out in memory in any way, and what is none."""
    if draw(st.integers(0, 19)) == 7:
        return draw(st.sampled_from([None, "x", [[1.0]], 3.0, np.zeros((1, channels, *[5] * dimension))]))
    group_axis = [] if order is None else [order]
    shape = [
        draw(st.integers(0, 2)),
        channels,
        *group_axis,
        *draw(st.tuples(*[st.integers(0, LARGEST[dimension])] * dimension)),
    ]
    match draw(st.integers(0, 9)):
        case 3:
            shape = draw(st.lists(st.integers(0, 5), max_size=6))
        case 4:
            shape[draw(st.integers(0, len(shape) - 1))] = draw(st.integers(0, 9))
        case 5:
            return torch.zeros(1).double().expand(*shape[:-dimension], *[2 ** (44 // dimension)] * dimension)
    x = torch.randn(shape, dtype=torch.float64)
    match draw(st.integers(0, 9)):
        case 0 if x.ndim > 1:  # axes in another order
            order_of_axes = draw(st.permutations(range(x.ndim)))
            x = x.permute(order_of_axes).contiguous().permute(np.argsort(order_of_axes).tolist())
        case 1 if x.ndim:  # every second one
            x = torch.randn([2 * size for size in shape], dtype=torch.float64)[(slice(None, None, 2),) * x.ndim]
        case 2 if x.ndim:  # one in all places
            x = torch.randn([1] * x.ndim, dtype=torch.float64).expand(shape)
        case 5:
            return x.to_sparse()
        case 6:
            x = x.flip(-1) if x.ndim else x
    return x.to(draw(st.sampled_from(DTYPES)))


def attempt(call: Callable[[], Any], names: set[str]) -> Any:
    """Return what a call gives, or None if it refuses something that it names."""
    try:
        return call()
    except ArgumentError as error:
        if any(name in str(error) for name in names):
            return None
        raise


@quickly
@given(st.data(), st.sampled_from(VARIANTS), st.sampled_from(DIMENSIONS))
def test_any_layer_answers_as_defined_or_says_what_is_wrong(
    data: st.DataObject, variant: LayerVariant, dimension: int
) -> None:
    case, variant = data.draw(arguments(dimension)), variant._replace(dimension=dimension)
    layer = attempt(lambda: build_layer(variant, **case, dtype=torch.float64), NAMED | {"backend"})
    if layer is None:
        return
    x = data.draw(inputs(layer.in_channels, None if variant.kind == "lifting" else layer.group.order, dimension))
    y = attempt(lambda: layer(x), {"x ", "x, "})
    if y is None:
        return
    assert x.dtype == torch.float64
    geometry = {name: case[name] for name in ("stride", "padding", "dilation", "groups", "padding_mode")}
    np.testing.assert_allclose(y.detach().numpy(), as_defined(layer, x, **geometry), atol=1e-10, rtol=0)


@quickly
@given(st.data(), st.sampled_from(DIMENSIONS), st.sampled_from(["dense", "g", "gc"]), PADS)
def test_any_transposed_layer_is_the_transpose_or_says_what_is_wrong(
    data: st.DataObject, dimension: int, kind: str, output_padding: Any
) -> None:
    case = data.draw(arguments(dimension))
    del case["padding_mode"]
    case_of_transpose = case | {"kind": kind, "output_padding": output_padding}
    layer = attempt(
        lambda: GROUP_CONV_TRANSPOSES[dimension](**case_of_transpose, dtype=torch.float64), NAMED | {"output_padding"}
    )
    if layer is None:
        return
    x = data.draw(inputs(layer.in_channels, layer.group.order, dimension))
    y = attempt(lambda: layer(x), {"x ", "output of"})
    if y is None or not y.numel():
        return
    if layer.bias is not None:
        torch.nn.init.zeros_(layer.bias)
    # <conv(y), x> = <y, layer(x)>, with conv as the definition has it for the same parameters.
    y, other = layer(x).detach(), torch.randn_like(y)
    forward = as_defined_without_bias(layer, other, case)
    fitting = tuple(slice(size) for size in x.shape[-dimension:])  # output_padding may let one more row of it fit
    assert float((forward[(..., *fitting)] * x.numpy()).sum()) == pytest.approx(float((other * y).sum()), abs=1e-8)


def as_defined_without_bias(layer: Any, x: torch.Tensor, case: dict[str, Any]) -> oracle.Array:
    names = ("weight", "depthwise_weight", "pointwise_weight")
    found = {name: getattr(layer, name).detach().numpy() for name in names if hasattr(layer, name)}
    geometry = {name: case[name] for name in ("stride", "padding", "dilation", "groups")}
    return oracle.layer(x.numpy(), found, layer.group, **geometry)


@pytest.mark.parametrize("build", [lambda: GroupPool("max"), lambda: PerElement(torch.nn.Identity())])
@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 5, 5), (1, 2, 4, 5, 5, 1)])
def test_pooling_and_merging_name_the_shape_that_they_refuse(build: Callable[[], Any], shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"x has shape {shape}")):
        build()(torch.zeros(shape))


@pytest.mark.parametrize(
    "build", [build_layer, lambda variant, *args, **options: GroupConvTranspose2d(*args, **options)]
)
@pytest.mark.parametrize(
    ("message", "options"),
    [
        (r"dtype \(=torch\.int64\)", {"dtype": torch.int64}),
        (r"dtype \(=torch\.complex64\)", {"dtype": torch.complex64}),
        (r"dtype \(='float32'\)", {"dtype": "float32"}),
        (r"device \(='nowhere'\)", {"device": "nowhere"}),
    ],
)
def test_a_type_or_device_that_is_none_is_named(build: Any, message: str, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=message):
        build(("gc", "auto"), 2, 2, 3, group="p4", **options)


def test_types_that_differ_are_named_and_autocast_lets_them() -> None:
    layer = build_layer(("gc", "auto"), 2, 2, 3, group="p4")
    x = torch.randn(1, 2, 4, 5, 5)
    with pytest.raises(ArgumentError, match=r"x is torch\.float64 and the layer's parameters are torch\.float32"):
        layer(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("argument", ["in_channels", "out_channels", "kernel_size"])
def test_parameters_that_no_machine_holds_are_refused_before_they_are_allocated(argument: str) -> None:
    case: dict[str, Any] = {"in_channels": 2**10, "out_channels": 2**10, "kernel_size": 3}
    with pytest.raises(ArgumentError, match=rf"{argument} \(=.*more than any machine holds"):
        build_layer(("dense", "auto"), **case | {argument: 2**30}, group="p4m")


def test_maps_that_no_machine_holds_are_refused_before_they_are_allocated() -> None:
    layer = build_layer(("dense", "auto"), 1, 1, 3, group=C4, padding=2**25)
    with pytest.raises(
        ArgumentError, match=r"x, 4 feature maps of 5×5 pixels with padding .* more than any machine holds"
    ):
        layer(torch.zeros(1, 1, 4, 5, 5))
