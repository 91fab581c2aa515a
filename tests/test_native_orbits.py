"""Lifting convolutions of the compiled kernels as pointwise ones of gathered pixels, against the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sepgroupy.backends import ConvSpec
from sepgroupy.backends.native.library import kernels
from sepgroupy.backends.native.limits import can_gather, is_gathered
from sepgroupy.backends.native.orbits import orbits_of
from sepgroupy.groups import C4, D4, as_group
from sepgroupy.nn import LiftingConv1d, LiftingConv2d, LiftingConv3d

needs_kernels = pytest.mark.skipif(not kernels(), reason=kernels().summary)
SIZES: dict[int, tuple[int, ...]] = {1: (40,), 2: (19, 23), 3: (9, 11, 10)}
LAYERS: dict[int, Any] = {1: LiftingConv1d, 2: LiftingConv2d, 3: LiftingConv3d}


@pytest.mark.parametrize(
    ("group", "kernel", "sizes"),
    [
        (C4, 3, [1, 4, 4]),  # center, edges, corners
        (D4, 3, [1, 4, 4]),
        (C4, 2, [4]),
        (D4, 4, [4, 4, 8]),
        (D4, 7, [1] + 6 * [4] + 3 * [8]),  # three on the axes, three on the diagonals, three elsewhere
        (as_group("O", 3), 3, [1, 6, 8, 12]),  # center, faces, corners, edges
    ],
)
def test_orbits_are_those_of_the_group(group: Any, kernel: int, sizes: list[int]) -> None:
    orbits = orbits_of(group, (kernel,) * group.dimension)
    found = [sorted(set(row.tolist())) for row in orbits.place.reshape(-1, group.order)]
    assert sorted(len(orbit) for orbit in found) == sizes
    assert sorted(k for orbit in found for k in orbit) == list(range(kernel**group.dimension))  # each is in one
    for first, orbit, scales in zip(orbits.first, found, orbits.scale.reshape(-1, group.order), strict=True):
        assert first in orbit
        assert set(scales.tolist()) == {len(orbit) / group.order}


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("group", "dimension", "options"),
    [
        ("p4", 2, {"kernel_size": 3, "padding": 1}),
        ("p4m", 2, {"kernel_size": 7, "stride": 2, "padding": 3}),  # the stem of a ResNet
        ("p4m", 2, {"kernel_size": 4, "stride": 4}),  # that of a ConvNeXt
        ("p4m", 2, {"kernel_size": 11, "stride": 4, "padding": 2}),  # that of an AlexNet
        ("p4m", 2, {"kernel_size": 2, "stride": 3}),
        ("p4m", 2, {"kernel_size": 3, "padding": 40, "dilation": 8}),
        ("p4", 2, {"kernel_size": 5, "padding": "same", "padding_mode": "reflect"}),
        ("O", 3, {"kernel_size": 3, "stride": 2, "padding": 1}),
        ("Oh", 3, {"kernel_size": 2}),
        ("C4", 3, {"kernel_size": (2, 3, 3), "padding": (0, 1, 1)}),
    ],
)
def test_values_and_gradients_are_those_of_the_definition(
    group: str, dimension: int, options: dict[str, Any], dtype: torch.dtype
) -> None:
    x, found = torch.randn(3, 4, *SIZES[dimension], dtype=torch.float64), []
    for backend, precision in (("native", dtype), ("reference", torch.float64)):
        torch.manual_seed(0)
        layer = LAYERS[dimension](4, 3, group=group, backend=backend, **options).to(precision)
        images = x.to(precision, copy=True).requires_grad_()
        y = layer(images)
        y.backward(torch.rand(y.shape).to(y))
        found.append([y, images.grad, layer.weight.grad, layer.bias.grad])
    assert is_gathered(layer.spec, 4)
    for ours, exact in zip(*found, strict=True):
        error = (ours - exact).abs().max() / exact.abs().max()
        assert error < (1e-5 if dtype is torch.float32 else 1e-13)


@pytest.mark.parametrize(
    ("reason", "group", "options"),
    [
        ("no fast transform", "p2", {"kernel_size": 5}),
        ("no fewer multiplications", D4, {"kernel_size": 1}),
        ("blocks of channels", D4, {"kernel_size": 5, "groups": 2}),
        ("no lifting", D4, {"kernel_size": 5, "kind": "dense"}),
    ],
)
def test_others_are_not_gathered(reason: str, group: Any, options: dict[str, Any]) -> None:
    spec = ConvSpec.parse(as_group(group, 2), **{"kind": "lifting", **options})
    assert not can_gather(spec), reason


def test_a_3x3_filter_of_one_channel_is_convolved_directly() -> None:
    spec = ConvSpec.parse(D4, "lifting", 3)
    assert not is_gathered(spec, 1)
    assert is_gathered(spec, 2)
    assert is_gathered(ConvSpec.parse(D4, "lifting", 3, stride=4), 1)  # which direct convolution does not know
