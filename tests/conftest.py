"""What the tests share: seeds, the groups under test, and every way in which a layer is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

import oracle
from sepgroupy.errors import ArgumentError
from sepgroupy.functional import _native, _plan, _tiled
from sepgroupy.functional._plan import ALGORITHMS, RULES
from sepgroupy.groups import C1, C2, C4, D1, D2, D4, PointGroup
from sepgroupy.nn import GroupConv2d, LiftingConv2d

settings.register_profile("seeded", derandomize=True, deadline=None, database=None)
settings.load_profile("seeded")
torch.set_num_threads(1)  # the tensors are small: more threads would only wait for each other

DIAGONAL = PointGroup.generate([[[0, 1], [1, 0]]], "diagonal mirror")
PLANE_GROUPS = (C1, C2, C4, D1, D2, D4, DIAGONAL)

_TURN_YX = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
_CYCLE = [[0, 0, 1], [1, 0, 0], [0, 1, 0]]  # a third of a turn about the cube's diagonal
_INVERSION = [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]
_TIMES_I = [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]]
_TIMES_J = [[0, 0, -1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, -1, 0, 0]]
OTHER_GROUPS = (
    PointGroup.generate([[[0, 1], [1, 0]], [[0, -1], [-1, 0]]], "both diagonals"),
    PointGroup.generate([[[-1]]], "mirror of a line"),
    PointGroup.generate([_TURN_YX, _INVERSION], "prism"),
    PointGroup.generate([_TURN_YX, _CYCLE], "octahedral"),
    PointGroup.generate([_TURN_YX, _CYCLE, _INVERSION], "full octahedral"),
    PointGroup.generate([_TIMES_I, _TIMES_J], "quaternions"),
)

WAYS = [(kind, algorithm) for kind, algorithms in ALGORITHMS.items() for algorithm in (*RULES, *algorithms)]
WAYS = [way for way in WAYS if way[0] != "lifting" or way[1] in RULES]  # by kernels and without
if not _native.kernels():
    WAYS = [way for way in WAYS if way[1] != "native"]
"""Every kind of layer, "lifting" among them, with every algorithm that computes it."""

AS_IF_LARGE = ((_plan, "SMALL", 0), (_plan, "LEAST", 0), (_plan, "FUSED", 0), (_tiled, "TILE_BYTES", 1))

Layer = LiftingConv2d | GroupConv2d
Build = Callable[..., Any]  # a Layer, whose parameters a type checker does not know


def build_layer(way: tuple[str, str], *args: Any, **options: Any) -> Any:
    """Build a layer of that kind, computed by that algorithm, from the arguments that all layers share.

    Its bias is drawn at random, since that of a fresh layer is zero and nothing would tell if it were left out.
    """
    kind, algorithm = way
    if kind == "lifting":
        layer: Any = LiftingConv2d(*args, algorithm=algorithm, **options)
    else:
        layer = GroupConv2d(*args, kind=kind, algorithm=algorithm, **options)
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    return layer


def ways_of(**case: Any) -> list[tuple[str, str]]:
    """List the ways that know these arguments: another algorithm than these three may know some alone."""
    return [way for way in WAYS if way[1] in (*RULES, "dense", "full") or _knows(way, **case)]


def _knows(way: tuple[str, str], **case: Any) -> bool:
    try:
        build_layer(way, 2, 2, group="p1", **case)
    except ArgumentError as error:
        if not str(error).startswith("algorithm"):
            raise
        return False
    return True


def pairs(cases: Mapping[str, dict[str, Any]]) -> list[Any]:
    """Each case with each way that knows it, for ``pytest.mark.parametrize(("way", "case"), …)``."""
    return [pytest.param(w, case, id=f"{name}-{'-'.join(w)}") for name, case in cases.items() for w in ways_of(**case)]


@pytest.fixture(autouse=True)
def _seeds() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002


@pytest.fixture
def as_if_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small maps take the ways that "auto" has for large ones: the Fourier domain, and one tile an image."""
    for setting in AS_IF_LARGE:
        monkeypatch.setattr(*setting)


@pytest.fixture(params=PLANE_GROUPS + OTHER_GROUPS, ids=lambda group: group.name.replace(" ", "-"))
def group(request: pytest.FixtureRequest) -> PointGroup:
    return request.param


@pytest.fixture(params=PLANE_GROUPS, ids=lambda group: group.name.replace(" ", "-"))
def plane_group(request: pytest.FixtureRequest) -> PointGroup:
    return request.param


@pytest.fixture(params=ways_of(kernel_size=3), ids="-".join)
def way(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def build(way: tuple[str, str]) -> Build:
    """Build layers of the way under test."""
    return partial(build_layer, way)


def random_input(layer: Layer, *size: int, batch: int = 2, dtype: Any = torch.float64) -> Any:
    """Draw an input of the shape that the layer reads."""
    fiber = () if isinstance(layer, LiftingConv2d) else (layer.plan.group.order,)
    return torch.randn(batch, layer.in_channels, *fiber, *size, dtype=dtype)


def as_defined(layer: Layer, x: Any, **geometry: Any) -> oracle.Array:
    """Compute what the definition says that the layer answers, given the geometry it was built with."""
    names = ("weight", "depthwise_weight", "pointwise_weight", "bias")
    found = {name: getattr(layer, name, None) for name in names}
    parameters = {name: value.detach().double().numpy() for name, value in found.items() if value is not None}
    return oracle.layer(x.numpy(), parameters, layer.plan.group, **geometry)


def assert_as_defined(layer: Layer, x: Any, **geometry: Any) -> None:
    """Hold a layer in float64 to the definition, with gradients and without."""
    expected = as_defined(layer, x, **geometry)
    for wants_gradients in (True, False):
        with torch.set_grad_enabled(wants_gradients and not x.is_inference()):
            y = layer(x)
        assert y.shape == expected.shape
        np.testing.assert_allclose(y.detach().numpy(), expected, atol=1e-10, rtol=0, err_msg=repr(layer))


def use(layer: Any, x: Any, how: str) -> None:
    """Call a layer before the test proper, so that it keeps whatever it keeps; not if ``how`` is "not"."""
    if how == "grad":
        layer(x).sum().backward()
        layer.zero_grad()
    elif how == "no_grad":
        with torch.no_grad():
            layer(x)
    elif how == "inference_mode":
        with torch.inference_mode():
            layer(x)
