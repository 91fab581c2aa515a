"""Every layer, computed by every backend, against the definition."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import oracle
from conftest import (
    GROUPS,
    KINDS,
    Build,
    LayerVariant,
    as_defined,
    assert_as_defined,
    build_layer,
    pairs,
    random_input,
    refuses,
    variants_of,
)
from sepgroupy import functional
from sepgroupy.errors import ArgumentError
from sepgroupy.groups import D1, D4, PointGroup
from sepgroupy.nn import GroupConv2d, LiftingConv2d

pytestmark = pytest.mark.usefixtures("as_if_large")

CASES: dict[str, dict[str, Any]] = {
    **{f"kernel-{k}": {"kernel_size": k} for k in (1, 2, 3, 4, 5)},
    **{f"kernel-{k}-padded": {"kernel_size": k, "padding": k // 2} for k in (2, 3, 4, 5)},
    "kernel-pair": {"kernel_size": (2, 3)},
    "kernel-row": {"kernel_size": (1, 4), "padding": (0, 2)},
    "stride": {"kernel_size": 3, "stride": 2},
    "stride-over-kernel": {"kernel_size": 1, "stride": 3},
    "stride-pair": {"kernel_size": 2, "stride": (2, 1)},
    "padding-over-kernel": {"kernel_size": 1, "padding": 2},
    "padding-pair": {"kernel_size": 3, "padding": (1, 0)},
    "padding-even-pair": {"kernel_size": 3, "padding": (1, 1)},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "same-3": {"kernel_size": 3, "padding": "same"},
    "same-5-dilated": {"kernel_size": 5, "padding": "same", "dilation": 2},
    "same-2-dilated": {"kernel_size": 2, "padding": "same", "dilation": 2},
    "same-2": {"kernel_size": 2, "padding": "same"},
    "same-columns-4": {"kernel_size": (3, 4), "padding": "same"},
    "dilation": {"kernel_size": 3, "dilation": 2},
    "dilation-pair": {"kernel_size": 2, "dilation": (1, 3)},
    "groups": {"kernel_size": 3, "groups": 2},
    "no-bias": {"kernel_size": 3, "bias": False},
    **{
        f"{mode}": {"kernel_size": 3, "padding": 2, "padding_mode": mode}
        for mode in ("reflect", "replicate", "circular")
    },
    "circular-same-2": {"kernel_size": 2, "padding": "same", "padding_mode": "circular"},
    "signals": {"dimension": 1, "kernel_size": 4, "stride": 2, "padding": 3, "groups": 2},
    "signals-same": {"dimension": 1, "kernel_size": 3, "padding": "same", "padding_mode": "reflect"},
    "volumes": {"dimension": 3, "kernel_size": 3, "padding": 1},
    "volumes-unpadded": {"dimension": 3, "kernel_size": 2},
    "volumes-1x1x1": {"dimension": 3, "kernel_size": 1},
    "volumes-stride": {"dimension": 3, "kernel_size": 2, "stride": 2, "padding": 1, "padding_mode": "replicate"},
    "volumes-slices": {"dimension": 3, "kernel_size": (1, 3, 3), "stride": (2, 1, 1), "dilation": (3, 1, 1)},
    "volumes-video": {"dimension": 3, "kernel_size": (3, 7, 7), "stride": (1, 2, 2), "padding": (1, 3, 3)},
    "volumes-blocks": {
        "dimension": 3,
        "kernel_size": (2, 1, 1),
        "groups": 2,
        "padding": (1, 2, 2),
        "padding_mode": "circular",
    },
    "everything": {
        "kernel_size": 4,
        "stride": 2,
        "padding": 3,
        "dilation": 2,
        "groups": 2,
        "bias": False,
        "padding_mode": "reflect",
    },
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_backend_computes_the_definition(kind: str, case: dict[str, Any]) -> None:
    variants = [variant for variant in variants_of(**case) if variant.kind == kind]
    dimension, options = case.get("dimension", 2), {name: case[name] for name in case if name != "dimension"}
    channels, size = (4, (9, 8)) if dimension < 3 else (2, (5, 7))
    for group in GROUPS[dimension]:
        if not keeps_symmetry(group, case):
            reason = f"must be the same on axes . and X: {re.escape(repr(group))}|padding='same'"
            with pytest.raises(ArgumentError, match=reason):
                build_layer(variants[0], channels, 2, group=group, **options)
            continue
        layers = [
            build_layer(variant, channels, 2, group=group, dtype=torch.float64, **options) for variant in variants
        ]
        x = random_input(layers[0], *size)
        expected = as_defined(layers[0], x, **geometry_of(case))
        for layer in layers:
            layer.load_state_dict(layers[0].state_dict())
            if refuses(layer, x):
                continue
            for wants_gradients in (True, False):
                with torch.set_grad_enabled(wants_gradients):
                    y = layer(x).detach().numpy()
                np.testing.assert_allclose(y, expected, atol=1e-10, rtol=0, err_msg=repr(layer))


@st.composite
def cases(draw: st.DrawFn) -> tuple[LayerVariant, PointGroup, dict[str, Any], tuple[int, ...]]:
    """Draw a variant, a group, arguments that keep its symmetry, and a size that they fit."""
    dimension = draw(st.sampled_from([2, 2, 1, 3]))
    group = draw(st.sampled_from(GROUPS[dimension]))
    groups = draw(st.integers(1, 2))

    def sizes(least: int, most: int) -> st.SearchStrategy[Any]:
        each = st.integers(least, most)
        return each | st.tuples(*[each] * dimension)

    case: dict[str, Any] = {
        "in_channels": groups * draw(st.integers(1, 2)),
        "out_channels": groups * draw(st.integers(1, 2)),
        "kernel_size": draw(sizes(1, 5 if dimension < 3 else 3)),
        "dilation": draw(sizes(1, 3 if dimension < 3 else 2)),
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(sorted(oracle.PAD_MODES))),
    }
    case["padding"] = draw(sizes(0, 3 if dimension < 3 else 1) | st.sampled_from(["same", "valid"]))
    if case["padding"] != "same":
        case["stride"] = draw(sizes(1, 3))
    assume(keeps_symmetry(group, case))
    supported = {name: value for name, value in case.items() if not name.endswith("channels")}
    kernel, gaps = oracle.by_axis(case["kernel_size"], dimension), oracle.by_axis(case["dilation"], dimension)
    pads = oracle.pads(case["padding"], kernel, gaps)
    size = []
    for k, gap, (before, after) in zip(kernel, gaps, pads, strict=True):
        fits = gap * (k - 1) + 1 - before - after  # the kernel into the padded image
        wraps = max(before, after) + 1  # reflection and wrapping see each pixel once at most
        size.append(draw(st.integers(max(fits, wraps, 1), max(fits, wraps, 1) + 4)))
    return draw(st.sampled_from(variants_of(dimension, **supported))), group, case, tuple(size)


@settings(max_examples=200, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture])
@given(cases(), st.integers(0, 3))
def test_any_arguments(arguments: tuple[LayerVariant, PointGroup, dict[str, Any], tuple[int, ...]], batch: int) -> None:
    variant, group, case, size = arguments
    layer = build_layer(variant, group=group, dtype=torch.float64, **case)
    assert_as_defined(layer, random_input(layer, *size, batch=batch), **geometry_of(case))


SEPARABLE = {"one-block": {"kernel_size": 4}, "blocks": {"kernel_size": 4, "groups": 2}}


@pytest.mark.parametrize(("variant", "case"), [pair for pair in pairs(SEPARABLE) if pair.values[0][0] in ("g", "gc")])
def test_a_separable_layer_equals_the_dense_one_with_its_full_filter(
    variant: tuple[str, str], case: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"padding": 1, "group": D4, "dtype": torch.float64, **case}
    layer, dense = build_layer(variant, 4, 6, **options), build_layer(("dense", "reference"), 4, 6, **options)
    with torch.no_grad():
        dense.weight.copy_(functional.full_filter(layer.depthwise_weight, layer.pointwise_weight))
        dense.bias.copy_(layer.bias)
    x = random_input(layer, 7, 7)
    torch.testing.assert_close(layer(x), dense(x), atol=1e-10, rtol=0)


FUNCTIONAL: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3},
    "3x3-stride": {"kernel_size": 3, "stride": 2},
    "3x3-groups": {"kernel_size": 3, "groups": 2},
    "1x1": {"kernel_size": 1},
}


@pytest.mark.parametrize(("variant", "case"), pairs(FUNCTIONAL))
def test_functional_calls_compute_the_same(variant: tuple[str, str], case: dict[str, Any]) -> None:
    layer = build_layer(variant, 4, 2, padding=1, group=D4, dtype=torch.float64, **case)
    geometry = geometry_of(case) | {"padding": 1}
    x = random_input(layer, 7, 7)
    calls: dict[str, Any] = {
        "lifting": lambda x, backend, **options: functional.lifting_conv2d(x, **options),
        "dense": functional.group_conv2d,
        "g": functional.separable_group_conv2d,
        "gc": functional.separable_group_conv2d,
    }
    y = calls[variant[0]](x, **dict(layer.named_parameters()), **geometry, group=D4, backend=variant[1])
    np.testing.assert_allclose(y.detach().numpy(), as_defined(layer, x, **geometry), atol=1e-10, rtol=0)


def test_float32_stays_close_to_the_definition(build: Build) -> None:
    layer = build(5, 8, 3, padding=1, group=D4)
    x = random_input(layer, 9, 9, dtype=torch.float32)
    y = layer(x)
    assert y.dtype == torch.float32
    np.testing.assert_allclose(y.detach().numpy(), as_defined(layer, x.double(), padding=1), atol=2e-5)


def test_the_trivial_group_gives_an_ordinary_convolution() -> None:
    plain = torch.nn.Conv2d(4, 6, (2, 3), (1, 2), (1, 0), (2, 1), 2, padding_mode="reflect")
    layer = LiftingConv2d(4, 6, (2, 3), (1, 2), (1, 0), (2, 1), 2, padding_mode="reflect", group="p1")
    layer.load_state_dict({"weight": plain.weight.unsqueeze(2), "bias": plain.bias})
    x = torch.randn(2, 4, 8, 9)
    torch.testing.assert_close(layer(x).squeeze(2), plain(x))


def test_positional_arguments_are_in_the_order_of_torch() -> None:
    arguments: Any = (4, 6, 3, 2, 1, 1, 2, False, "circular")
    plain, lifting, group = (
        torch.nn.Conv2d(*arguments),
        LiftingConv2d(*arguments, group="p4"),
        GroupConv2d(*arguments, group="p4"),
    )
    assert lifting.weight.shape == (6, 2, 1, 3, 3)
    assert group.weight.shape == (6, 2, 4, 3, 3)
    assert lifting.bias is group.bias is plain.bias is None
    x = torch.randn(1, 4, 7, 7)
    assert lifting(x).shape[-2:] == plain(x).shape[-2:]


def test_an_empty_batch_gives_an_empty_output_and_zero_gradients(build: Build) -> None:
    layer = build(3, 2, 3, padding=1, group=D4)
    x = random_input(layer, 5, 5, batch=0, dtype=torch.float32).requires_grad_()
    y = layer(x)
    assert y.shape == (0, 2, layer.group.order, *x.shape[-layer.dimension :])
    y.sum().backward()
    assert all((parameter.grad == 0).all() for parameter in layer.parameters())


def test_inputs_that_are_not_contiguous(build: Build) -> None:
    layer = build(3, 2, 3, group=D4, dtype=torch.float64)
    x = random_input(layer, 6, 5)
    strided = x.transpose(1, -1).contiguous().transpose(1, -1)
    assert not strided.is_contiguous()
    torch.testing.assert_close(layer(strided), layer(x), atol=1e-12, rtol=0)


def test_the_input_is_left_as_it_is(build: Build) -> None:
    layer = build(2, 2, 3, padding=1, group=D1, padding_mode="circular")
    x = random_input(layer, 5, 5)
    before = x.clone()
    layer.double()(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_the_group_axis_lies_outermost_so_that_merging_it_is_free(build: Build, padding_mode: str) -> None:
    layer = build(2, 3, 3, padding=1, group=D4, padding_mode=padding_mode)
    x = random_input(layer, 5, 6, dtype=torch.float32)
    y = layer(x)
    assert y.shape == (2, 3, layer.group.order, *x.shape[-layer.dimension :])
    assert y.transpose(1, 2).is_contiguous()
    assert functional.merge_group(y, layer.dimension).data_ptr() == y.data_ptr()


def geometry_of(case: dict[str, Any]) -> dict[str, Any]:
    return {name: case[name] for name in ("stride", "padding", "dilation", "groups", "padding_mode") if name in case}


def keeps_symmetry(group: PointGroup, case: dict[str, Any]) -> bool:
    """Whether every element maps kernel, strides, dilations and the padding on both sides to themselves."""
    dimension = group.dimension
    for name in ("kernel_size", "stride", "dilation", "padding"):
        value = case.get(name, 1)
        sizes = np.array(oracle.by_axis(0 if isinstance(value, str) else value, dimension))
        if any((abs(matrix) @ sizes != sizes).any() for matrix in group.arrays):
            return False
    if case.get("padding") != "same":
        return True
    kernel, gaps = (oracle.by_axis(case.get(name, 1), dimension) for name in ("kernel_size", "dilation"))
    difference = np.array([after - before for before, after in oracle.pads("same", kernel, gaps)])
    return all((matrix @ difference == difference).all() for matrix in group.arrays)
