"""The state of a layer: its dict, files, copies, devices and dtypes."""

from __future__ import annotations

import copy
import io
from itertools import product
from typing import Any

import pytest
import torch

from conftest import (
    COPIES,
    COUNTERPARTS,
    GROUPS,
    OTHER_DIMENSIONS,
    VARIANTS,
    Build,
    LayerVariant,
    assert_as_defined,
    build_layer,
    random_input,
    refuses,
    use,
    variants_of,
)
from sepgroupy.groups import C4, D4
from sepgroupy.nn import GROUP_CONVS, LIFTING_CONVS, GroupConv2d

pytestmark = pytest.mark.usefixtures("as_if_large")


def shapes(kind: str, order: int, kernel: tuple[int, ...], inner: int) -> dict[str, tuple[int, ...]]:
    """Give the published parameters of a layer with six output channels."""
    ones = (1,) * len(kernel)
    every: dict[str, dict[str, tuple[int, ...]]] = {
        "lifting": {"weight": (6, inner, 1, *kernel)},
        "dense": {"weight": (6, inner, order, *kernel)},
        "g": {"depthwise_weight": (6, inner, *kernel), "pointwise_weight": (6, inner, order, *ones)},
        "gc": {"depthwise_weight": (6, 1, 1, *kernel), "pointwise_weight": (6, inner, order, *ones)},
    }
    return every[kind]


@pytest.mark.parametrize(("kernel", "groups"), [(3, 1), (4, 2), (1, 1)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_the_state_is_the_published_parameters_alone(dimension: int, kernel: int, groups: int, bias: bool) -> None:
    for group, variant in product(GROUPS[dimension], variants_of(kernel_size=kernel, groups=groups)):
        if dimension != 2 and variant.backend != "auto":
            continue
        variant = variant._replace(dimension=dimension)
        layer = build_layer(variant, 4, 6, kernel, groups=groups, padding=1, bias=bias, group=group)
        expected = shapes(variant.kind, group.order, (kernel,) * dimension, 4 // groups)
        expected |= {"bias": (6,)} if bias else {}
        for mode in (True, False, True):
            with torch.no_grad():
                layer.train(mode)(random_input(layer, 5, 5, dtype=torch.float32))
            assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == expected
            assert {name: tuple(value.shape) for name, value in layer.named_parameters()} == expected


def test_a_state_moves_between_backends() -> None:
    for kind in ("dense", "g", "gc"):
        layers = [
            build_layer(variant, 3, 2, 1, group=D4, dtype=torch.float64)
            for variant in variants_of(kernel_size=1)
            if variant[0] == kind
        ]
        x = random_input(layers[0], 4, 4)
        for layer in layers[1:]:
            layer.load_state_dict(layers[0].state_dict(), strict=True)
            torch.testing.assert_close(layer(x), layers[0](x), atol=1e-12, rtol=0)


def test_a_state_survives_a_file(build: Build) -> None:
    layer, other = build(2, 3, 3, group=D4), build(2, 3, 3, group=D4)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = random_input(layer, 5, 5, dtype=torch.float32)
    assert torch.equal(other(x), layer(x))


@COPIES
def test_copies_compute_the_same_and_stand_alone(build: Build, duplicate: Any) -> None:
    for used in ("not", "no_grad", "inference_mode", "grad"):
        layer = build(2, 3, 3, group=C4, dtype=torch.float64)
        x = random_input(layer, 5, 5)
        use(layer, x, used)
        other = duplicate(layer)
        torch.testing.assert_close(other(x), layer(x), atol=0, rtol=0)
        before = layer(x)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
            assert torch.equal(layer(x), before)
    assert_as_defined(other, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_change_of_dtype_and_back_leaves_no_rounding_in_the_constants(build: Build, dtype: torch.dtype) -> None:
    layer = build(2, 3, 3, group=D4)
    x = random_input(layer, 5, 5, dtype=dtype)
    assert layer.to(dtype)(x).dtype == dtype
    assert_as_defined(layer.double(), x.double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close(build: Build, dtype: torch.dtype) -> None:
    layer = build(2, 3, 3, group=C4, dtype=dtype)
    x = random_input(layer, 5, 5, dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype
    assert (y.double() - layer.double()(x.double())).abs().max() < 0.05


@pytest.mark.parametrize("wants_gradients", [True, False], ids=["grad", "no_grad"])
def test_autocast_computes_in_its_type_and_leaves_nothing_behind(build: Build, wants_gradients: bool) -> None:
    layer = build(2, 3, 3, group=C4)
    x = random_input(layer, 5, 5, dtype=torch.float32)
    before = layer(x)
    with torch.set_grad_enabled(wants_gradients), torch.autocast("cpu", torch.bfloat16):
        if refuses(layer, x):
            return
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert (y.float() - before).abs().max() < 0.05
    with torch.set_grad_enabled(wants_gradients):
        torch.testing.assert_close(layer(x), before)


def test_dtype_and_device_are_passed_down(build: Build) -> None:
    layer = build(2, 3, 3, group=C4, dtype=torch.float16, device="meta")
    assert all(p.dtype == torch.float16 and p.is_meta for p in layer.parameters())


@pytest.mark.parametrize("variant", [*VARIANTS, *OTHER_DIMENSIONS], ids=str)
def test_skip_init_leaves_the_parameters_uninitialized(variant: LayerVariant) -> None:
    kind, backend, dimension = variant
    options = {} if kind == "lifting" else {"kind": kind, "backend": backend}
    layer: Any = torch.nn.utils.skip_init(
        (LIFTING_CONVS if kind == "lifting" else GROUP_CONVS)[dimension],
        *(2, 3, 1), group=COUNTERPARTS[dimension][D4], dtype=torch.float64, **options,
    )  # fmt: skip
    assert not any(parameter.is_meta for parameter in layer.parameters())
    layer.reset_parameters()
    assert_as_defined(layer, random_input(layer, 4, 4))


def test_to_meta_and_back(build: Build) -> None:
    layer = build(2, 3, 3, group=D4, dtype=torch.float64)
    state = copy.deepcopy(layer.state_dict())
    x = random_input(layer, 5, 5)
    before = layer(x)
    layer.to("meta").to_empty(device="cpu").load_state_dict(state)
    assert torch.equal(layer(x), before)
    layer.to("meta").load_state_dict(state, assign=True)
    assert torch.equal(layer(x), before)


def test_shapes_on_the_meta_device(build: Build) -> None:
    layer = build(2, 3, 3, padding=1, group=D4, device="meta")
    x = random_input(layer, 5, 6, dtype=torch.float32).to("meta")
    assert refuses(layer, x) or layer(x).shape == (2, 3, layer.group.order, *x.shape[-layer.dimension :])


def test_repr_says_what_the_layer_is() -> None:
    text = repr(GroupConv2d(4, 6, 3, 2, 1, 2, 2, False, "circular", group="p4m", kind="gc"))
    for part in ("GroupConv2d(4, 6", "(3, 3)", "stride=(2, 2)", "padding=(1, 1)", "dilation=(2, 2)", "groups=2"):
        assert part in text
    for part in ("circular", "bias=False", "p4m", "gc"):
        assert part in text
