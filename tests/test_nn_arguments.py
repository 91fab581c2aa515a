"""Bad arguments and inputs are refused by name and value, when the layer is made or called."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from conftest import DIAGONAL, GROUPS, OTHER_DIMENSIONS, Build, LayerVariant, build_layer, variants_of
from sepgroupy.errors import ArgumentError, SepgroupyError
from sepgroupy.functional import group_conv2d, lifting_conv2d, separable_group_conv2d
from sepgroupy.groups import C4, D1, D2, PointGroup
from sepgroupy.nn import GROUP_CONV_TRANSPOSES, GroupConv2d, GroupPool, PerElement

one_variant_each = pytest.mark.parametrize(
    "variant", [("lifting", "expanded"), ("dense", "auto"), ("g", "auto"), ("gc", "auto")], ids="-".join
)

GOOD: dict[str, Any] = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "group": "p4m"}

BAD: list[tuple[str, dict[str, Any]]] = [
    ("in_channels (=0)", {"in_channels": 0}),
    ("in_channels (=-1)", {"in_channels": -1}),
    ("in_channels (=2.0)", {"in_channels": 2.0}),
    ("in_channels (='4')", {"in_channels": "4"}),
    ("in_channels (=4) must be divisible by groups (=3)", {"groups": 3}),
    ("out_channels (=0)", {"out_channels": 0}),
    ("out_channels (=6) must be divisible by groups (=4)", {"groups": 4}),
    ("out_channels (=None)", {"out_channels": None}),
    ("kernel_size (=0)", {"kernel_size": 0}),
    ("kernel_size (=-3)", {"kernel_size": -3}),
    ("kernel_size (=2.5)", {"kernel_size": 2.5}),
    ("kernel_size (=(3,))", {"kernel_size": (3,)}),
    ("kernel_size (=(3, 3, 3))", {"kernel_size": (3, 3, 3)}),
    ("kernel_size (=(3, 0))", {"kernel_size": (3, 0)}),
    ("kernel_size (='3')", {"kernel_size": "3"}),
    ("kernel_size (=None)", {"kernel_size": None}),
    ("kernel_size (=(3, 5)) must be the same on axes Y and X", {"kernel_size": (3, 5)}),
    ("kernel_size (=(3, 5)) must be the same on axes Y and X", {"kernel_size": (3, 5), "group": "p4"}),
    ("kernel_size (=(3, 5)) must be the same on axes Y and X", {"kernel_size": (3, 5), "group": DIAGONAL}),
    ("stride (=0)", {"stride": 0}),
    ("stride (=(1, 2, 3))", {"stride": (1, 2, 3)}),
    ("stride (=(1, 2)) must be the same on axes Y and X", {"stride": (1, 2)}),
    ("padding (=-1)", {"padding": -1}),
    ("padding (=1.5)", {"padding": 1.5}),
    ("padding (=(1, 0)) must be the same on axes Y and X", {"padding": (1, 0)}),
    ("padding (='full')", {"padding": "full"}),
    ("padding='same'", {"padding": "same", "stride": 2}),
    ("padding='same'", {"padding": "same", "kernel_size": 2}),
    ("padding='same'", {"padding": "same", "kernel_size": (3, 2), "group": "p2mm"}),
    ("padding='same'", {"padding": "same", "kernel_size": (2, 3), "group": "pm"}),
    ("padding='same'", {"padding": "same", "kernel_size": 4, "dilation": 3, "group": "p2"}),
    ("dilation (=0)", {"dilation": 0}),
    ("dilation (=(1, 2)) must be the same on axes Y and X", {"dilation": (1, 2)}),
    ("groups (=0)", {"groups": 0}),
    ("groups (=-2)", {"groups": -2}),
    ("groups (=1.0)", {"groups": 1.0}),  # although 1.0 == 1
    ("kernel_size (=(3.0, 3.0))", {"kernel_size": (3.0, 3.0)}),
    ("stride (=1.0)", {"stride": 1.0}),
    ("padding_mode (='mirror')", {"padding_mode": "mirror"}),
    ("padding_mode (=None)", {"padding_mode": None}),
    ("group (='p6') is unknown", {"group": "p6"}),
    ("generator", {"group": [[[1, 1], [0, 1]]]}),
    ("must act on 2 axes", {"group": [[[-1]]]}),
    ("must act on 2 axes", {"group": PointGroup.generate([np.eye(3, dtype=int).tolist()])}),
]


@one_variant_each
@pytest.mark.parametrize(("message", "bad"), BAD, ids=str)
def test_a_bad_argument_is_refused(build: Build, message: str, bad: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        build(**(GOOD | bad))


OTHER_BAD: dict[int, list[tuple[str, dict[str, Any]]]] = {
    1: [
        ("kernel_size (=(3, 3))", {"kernel_size": (3, 3)}),
        ("stride (=(1, 2))", {"stride": (1, 2)}),
        ("padding='same'", {"padding": "same", "kernel_size": 2}),
        ("group (='p4m')", {"group": "p4m"}),
        ("must act on 1 axis", {"group": C4}),
        ("must act on 1 axis", {"group": GROUPS[3][0]}),
    ],
    3: [
        ("kernel_size (=(3, 3))", {"kernel_size": (3, 3)}),
        ("kernel_size (=(3, 3, 0))", {"kernel_size": (3, 3, 0)}),
        ("kernel_size (=(3, 3, 5)) must be the same on axes Y and X", {"kernel_size": (3, 3, 5), "group": "D4h"}),
        ("kernel_size (=(1, 3, 3)) must be the same on axes Z", {"kernel_size": (1, 3, 3), "group": "T"}),
        ("stride (=(2, 1, 1)) must be the same on axes Z", {"stride": (2, 1, 1), "group": "O"}),
        ("dilation (=(1, 2, 1)) must be the same on axes Y and X", {"dilation": (1, 2, 1), "group": "C4"}),
        ("padding='same'", {"padding": "same", "kernel_size": (3, 3, 2), "group": "C2v"}),
        ("group (='p4m')", {"group": "p4m"}),
        ("must act on 3 axes", {"group": C4}),
        ("must act on 3 axes", {"group": GROUPS[1][0]}),
    ],
}
"""Arguments that are wrong by the number of axes."""
OF_ANY_DIMENSION = [
    case for case in BAD if "group" not in case[1] and not any(isinstance(value, tuple) for value in case[1].values())
]


@pytest.mark.parametrize(
    ("variant", "message", "bad"),
    [
        pytest.param(variant, *case, id=f"{variant}-{case[0]}-{case[1]}")
        for variant in OTHER_DIMENSIONS
        for case in OF_ANY_DIMENSION + OTHER_BAD[variant.dimension]
    ],
)
def test_a_bad_argument_of_a_layer_of_signals_or_volumes_is_refused(
    variant: LayerVariant, message: str, bad: dict[str, Any]
) -> None:
    good = GOOD | {"group": GROUPS[variant.dimension][0]}
    with pytest.raises(ArgumentError, match=re.escape(message)):
        build_layer(variant, **(good | bad))
    if variant.kind != "lifting" and bad.get("padding") != "same" and "padding_mode" not in bad:
        with pytest.raises(ArgumentError, match=re.escape(message)):
            GROUP_CONV_TRANSPOSES[variant.dimension](**(good | bad), kind=variant.kind)


@pytest.mark.parametrize(
    ("message", "bad"),
    [
        ("kind (='gcc') must be one of dense, g, gc", {"kind": "gcc"}),
        ("kind (='lifting') must be one of dense, g, gc", {"kind": "lifting"}),
        ("kind (=None)", {"kind": None}),
        ("backend (='fast')", {"backend": "fast"}),
        ("backend (=None)", {"backend": None}),
        ("backend (='dense') must be one of auto, torch, native", {"backend": "dense"}),
        ("backend (='fourier')", {"backend": "fourier"}),
        ("backend (='fourier')", {"backend": "fourier", "kind": "gc", "groups": 2}),
    ],
    ids=str,
)
def test_a_bad_kind_or_backend_is_refused(message: str, bad: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        GroupConv2d(**(GOOD | bad))


def test_the_errors_can_be_caught_as_ours_or_as_value_errors() -> None:
    for error in (SepgroupyError, ValueError):
        with pytest.raises(error):
            GroupConv2d(0, 1, 3, group="p4")


@one_variant_each
@pytest.mark.parametrize("pair", [(2, 3), [2, 3], torch.Size([2, 3])], ids=["tuple", "list", "size"])
def test_pairs_may_be_any_sequence(build: Build, pair: Any) -> None:
    layer = build(1, 1, pair, group=D2)
    assert next(p for p in layer.parameters() if p.shape[-1] == 3).shape[-2:] == (2, 3)


UNEQUAL: dict[str, Any] = {"kernel_size": (1, 2), "stride": (1, 2), "padding": (0, 1), "dilation": (1, 2)}


@pytest.mark.parametrize("variant", variants_of(**UNEQUAL), ids=str)
def test_a_group_without_rotations_takes_unequal_pairs(build: Build) -> None:
    assert build(1, 1, group=D1, **UNEQUAL).stride == (1, 2)


@one_variant_each
@pytest.mark.parametrize(
    "shape", [(), (4,), (4, 8, 5, 5), (2, 4, 5, 5), (2, 4, 4, 5, 5), (2, 3, 8, 5, 5), (2, 8, 4, 5, 5)]
)
def test_an_input_of_another_shape_is_refused_by_a_group_layer(build: Build, shape: tuple[int, ...]) -> None:
    layer = build(4, 6, 3, group="p4m")
    if shape == (2, 4, 5, 5) and layer.kind == "lifting":
        return
    wanted = "(B, 4, Y, X)" if layer.kind == "lifting" else "(B, 4, 8, Y, X)"
    with pytest.raises(ArgumentError, match=re.escape(f"x has shape {shape}; this layer reads {wanted}")):
        layer(torch.zeros(shape))


@one_variant_each
@pytest.mark.parametrize("size", [(2, 5), (5, 2), (1, 1), (0, 5), (0, 0)])
def test_an_image_smaller_than_the_kernel_is_refused(build: Build, size: tuple[int, int]) -> None:
    layer = build(1, 1, 2, dilation=2, group=C4)
    group_axis = () if layer.kind == "lifting" else (4,)
    with pytest.raises(ArgumentError, match=f"x is {size[0]}×{size[1]} pixels"):
        layer(torch.zeros(1, 1, *group_axis, *size))


@one_variant_each
@pytest.mark.parametrize(
    ("padding_mode", "padding", "size"), [("reflect", 3, 3), ("reflect", 1, 1), ("circular", 4, 3)], ids=str
)
def test_padding_that_the_image_is_too_small_to_fill_is_refused(
    build: Build, padding_mode: str, padding: int, size: int
) -> None:
    layer = build(1, 1, 3, padding=padding, padding_mode=padding_mode, group=C4)
    group_axis = () if layer.kind == "lifting" else (4,)
    with pytest.raises(ArgumentError, match=f"padding.*{padding}.*{padding_mode}|{padding_mode}.*padding.*{padding}"):
        layer(torch.zeros(1, 1, *group_axis, size, size))


@pytest.mark.parametrize("variant", OTHER_DIMENSIONS, ids=str)
def test_signals_and_volumes_of_another_shape_or_too_small_are_refused(variant: LayerVariant) -> None:
    layer = build_layer(variant, 4, 6, 3, dilation=2, group=GROUPS[variant.dimension][0])
    channels = [4] if variant.kind == "lifting" else [4, layer.group.order]
    axes = ", ".join(["B", *map(str, channels), *"ZYX"[3 - variant.dimension :]])
    for shape in (
        [],
        [2, *channels],
        [2, *channels, *[5] * (variant.dimension + 1)],
        [2, 3, *channels[1:], *[5] * variant.dimension],
    ):
        with pytest.raises(ArgumentError, match=re.escape(f"x has shape {tuple(shape)}; this layer reads ({axes})")):
            layer(torch.zeros(shape))
    size = [5] * (variant.dimension - 1) + [4]
    with pytest.raises(ArgumentError, match=f"x is {'×'.join(map(str, size))} "):
        layer(torch.zeros(2, *channels, *size))


X4 = torch.zeros(1, 2, 4, 5, 5)
DENSE, POINTWISE = torch.zeros(3, 2, 4, 3, 3), torch.zeros(3, 2, 4, 1, 1)
OF_G, OF_GC = torch.zeros(3, 2, 3, 3), torch.zeros(3, 1, 1, 3, 3)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("(3, 2, 3, 3)", lambda: lifting_conv2d(X4[:, :, 0], OF_G, group="p4")),
        ("(3, 2, 4, 3, 3)", lambda: lifting_conv2d(X4[:, :, 0], DENSE, group="p4")),
        ("(3, 2, 3, 3)", lambda: group_conv2d(X4, OF_G, group="p4")),
        ("(3, 2, 4, 3, 3)", lambda: group_conv2d(X4, DENSE, group="p4m")),
        ("(1, 2, 5, 5)", lambda: group_conv2d(X4[:, :, 0], DENSE, group="p4")),
        ("(1, 1, 4, 5, 5)", lambda: group_conv2d(X4[:, :1], DENSE, group="p4")),
        ("(2, 2, 4, 1, 1)", lambda: separable_group_conv2d(X4, OF_GC, POINTWISE[:2], group="p4")),
        ("(2, 2, 4, 1, 1)", lambda: separable_group_conv2d(X4, OF_G, POINTWISE[:2], group="p4")),
        ("(1, 1, 1, 3, 3)", lambda: separable_group_conv2d(X4, OF_GC[:1], POINTWISE, group="p4", backend="expanded")),
        ("(3, 1, 3, 3)", lambda: separable_group_conv2d(X4, OF_G[:, :1], POINTWISE, group="p4", backend="expanded")),
        ("(3, 2, 4, 3, 3)", lambda: separable_group_conv2d(X4, OF_GC, DENSE, group="p4", backend="expanded")),
        ("(4,)", lambda: separable_group_conv2d(torch.zeros(4), OF_GC, POINTWISE, group="p4")),
        ("(4,)", lambda: group_conv2d(torch.zeros(4), POINTWISE, group="p4")),
        ("(3, 3)", lambda: separable_group_conv2d(X4, OF_GC[0, 0, 0], POINTWISE, group="p4")),
        ("(3,)", lambda: group_conv2d(X4, OF_GC[0, 0, 0, 0], group="p4")),
        ("(3, 3, 3)", lambda: separable_group_conv2d(X4, OF_GC[:, 0, 0], POINTWISE, group="p4")),
        ("bias", lambda: group_conv2d(X4, DENSE, torch.zeros(2), group="p4")),
        ("bias", lambda: group_conv2d(X4, DENSE, torch.zeros(12), group="p4")),
        ("groups (=2)", lambda: group_conv2d(X4, DENSE[:, :1], groups=2, group="p4")),
        ("backend (='two_step')", lambda: group_conv2d(X4, DENSE, group="p4", backend="two_step")),
        ("stride (=0)", lambda: group_conv2d(X4, DENSE, stride=0, group="p4")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_functional_calls_refuse_what_does_not_fit(message: str, call: Any) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        call()


def test_pools_refuse_what_does_not_fit() -> None:
    with pytest.raises(ArgumentError, match=r"mode \(='sum'\).*max.*mean"):
        GroupPool("sum")
    with pytest.raises(ArgumentError, match=r"x has shape \(1, 2, 5, 5\)"):
        GroupPool()(torch.zeros(1, 2, 5, 5))
    with pytest.raises(ArgumentError, match=r"x has shape \(1, 2, 5, 5\)"):
        PerElement(torch.nn.Identity())(torch.zeros(1, 2, 5, 5))


def test_numpy_integers_are_integers() -> None:
    three: Any = np.int64(3)
    assert (
        build_layer(("gc", "auto"), three, three, three, padding=np.int64(1), group="p4").pointwise_weight.shape[0] == 3
    )
