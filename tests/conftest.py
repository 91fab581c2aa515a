"""What the tests share: seeds, the groups under test, and every kind of layer with every backend."""

from __future__ import annotations

import copy
import io
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

import oracle
from sepgroupy.backends import RULES, ConvSpec, dispatch, registered_backends
from sepgroupy.errors import ArgumentError
from sepgroupy.groups import C1, C2, C4, D1, D2, D4, PointGroup
from sepgroupy.nn import GroupConv2d, GroupConvTranspose2d, LiftingConv2d

settings.register_profile("seeded", derandomize=True, deadline=None, database=None)
settings.load_profile("seeded")
torch.set_num_threads(1)  # the tensors are small: more threads would only wait for each other
# Autograd starts threads for the devices that exist at its first backward pass: here for none, so that tests can fork.
torch.ones((), requires_grad=True).backward()

DIAGONAL = PointGroup.generate([[[0, 1], [1, 0]]], "diagonal reflection")
PLANE_GROUPS = (C1, C2, C4, D1, D2, D4, DIAGONAL)

_ROTATION_YX = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
_CYCLE = [[0, 0, 1], [1, 0, 0], [0, 1, 0]]  # a rotation by 120° about the cube's diagonal
_INVERSION = [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]
_TIMES_I = [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]]
_TIMES_J = [[0, 0, -1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, -1, 0, 0]]
OTHER_GROUPS = (
    PointGroup.generate([[[0, 1], [1, 0]], [[0, -1], [-1, 0]]], "both diagonals"),
    PointGroup.generate([[[-1]]], "reflection of a line"),
    PointGroup.generate([_ROTATION_YX, _INVERSION], "prism"),
    PointGroup.generate([_ROTATION_YX, _CYCLE], "octahedral"),
    PointGroup.generate([_ROTATION_YX, _CYCLE, _INVERSION], "full octahedral"),
    PointGroup.generate([_TIMES_I, _TIMES_J], "quaternions"),
)

KINDS = ("lifting", "dense", "g", "gc")


def _backends_of(kind: str) -> list[str]:
    """Name the backends of this machine that compute some layer of a kind."""
    specs = [ConvSpec.parse(C4, kind, kernel) for kernel in (1, 3)]
    return [
        backend.name
        for backend in registered_backends()
        if backend.unavailable_reason() is None and any(backend.unsupported_reason(spec) is None for spec in specs)
    ]


WAYS = [(kind, backend) for kind in KINDS for backend in (*RULES, *_backends_of(kind))]
"""Every kind of layer with every value of ``backend=`` that computes it on this machine."""

AS_IF_LARGE = ((dispatch, "FOURIER_MIN_WORK", 0),)

Layer = LiftingConv2d | GroupConv2d | GroupConvTranspose2d
Build = Callable[..., Any]  # a Layer, whose parameters a type checker does not know


def build_layer(way: tuple[str, str], *args: Any, **options: Any) -> Any:
    """Build a layer of that kind and backend from the arguments that all layers share.

    Its bias is drawn at random, since that of a new layer is zero and nothing would tell if it were left out.
    """
    kind, backend = way
    if kind == "lifting":
        layer: Any = LiftingConv2d(*args, backend=backend, **options)
    else:
        layer = GroupConv2d(*args, kind=kind, backend=backend, **options)
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    return layer


def ways_of(**case: Any) -> list[tuple[str, str]]:
    """List the ways that support these arguments, as the backends themselves say."""
    return [way for way in WAYS if _supports(way, **case)]


def _supports(way: tuple[str, str], **case: Any) -> bool:
    try:
        build_layer(way, 2, 2, group="p1", **case)
    except ArgumentError as error:
        if not str(error).startswith("backend"):
            raise
        return False
    return True


def pairs(cases: Mapping[str, dict[str, Any]]) -> list[Any]:
    """Each case with each way that supports it, for ``pytest.mark.parametrize(("way", "case"), …)``."""
    return [pytest.param(w, case, id=f"{name}-{'-'.join(w)}") for name, case in cases.items() for w in ways_of(**case)]


@pytest.fixture(autouse=True)
def _seeds() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002


@pytest.fixture
def as_if_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let "auto" choose for small feature maps what it chooses for large ones: the kernels or the Fourier domain."""
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
    group_axis = () if layer.kind == "lifting" else (layer.group.order,)
    return torch.randn(batch, layer.in_channels, *group_axis, *size, dtype=dtype)


def as_defined(layer: Layer, x: Any, **geometry: Any) -> oracle.Array:
    """Compute what the definition says that the layer returns, given the geometry it was built with."""
    names = ("weight", "depthwise_weight", "pointwise_weight", "bias")
    found = {name: getattr(layer, name, None) for name in names}
    parameters = {name: value.detach().double().numpy() for name, value in found.items() if value is not None}
    define = oracle.transposed_layer if layer.spec.transposed else oracle.layer
    return define(x.detach().numpy(), parameters, layer.group, **geometry)


def assert_as_defined(layer: Layer, x: Any, **geometry: Any) -> None:
    """Compare a layer in float64 with the definition, with gradients and without.

    A backend that was requested by name may refuse an input, if it says what it needs.
    """
    if refuses(layer, x):
        return
    expected = as_defined(layer, x, **geometry)
    for wants_gradients in (True, False):
        with torch.set_grad_enabled(wants_gradients and not x.is_inference()):
            y = layer(x)
        assert y.shape == expected.shape
        np.testing.assert_allclose(y.detach().numpy(), expected, atol=1e-10, rtol=0, err_msg=repr(layer))


def refuses(layer: Layer, x: Any) -> bool:
    """Whether the backend that a layer requests by name does not support this input; then the layer must say so."""
    backend = next((b for b in registered_backends() if b.name == layer.backend), None)
    reason = None if backend is None else backend.unsupported_reason(layer.spec, x)
    if reason is None:
        return False
    with pytest.raises(ArgumentError) as caught:
        layer(x)
    assert str(caught.value) == f"backend (={layer.backend!r}) needs {reason}"
    return True


def use(layer: Any, x: Any, how: str) -> None:
    """Call a layer before the test proper; not if ``how`` is "not"."""
    if how == "grad":
        layer(x).sum().backward()
        layer.zero_grad()
    elif how == "no_grad":
        with torch.no_grad():
            layer(x)
    elif how == "inference_mode":
        with torch.inference_mode():
            layer(x)


def reopened(module: torch.nn.Module) -> torch.nn.Module:
    """Save a module and load it."""
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module)), reopened],
    ids=["copy", "pickle", "file"],
)
"""The ways to copy a module."""


@pytest.fixture(scope="session")
def _lazy_backend() -> None:
    from torch._lazy import ts_backend

    ts_backend.init()  # a second time in one process is an error


@pytest.fixture
def lazy_device(_lazy_backend: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a second device that needs no hardware."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device=None: False)  # which does not know it
    return "lazy"


def distinct(cells: Sequence[Any]) -> list[Any]:
    """Leave out of a list of ways, or of :func:`pairs`, the rules: each selects one of the named backends."""
    return [cell for cell in cells if getattr(cell, "values", [cell])[0][1] not in RULES]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a second run with the kernels switched off, leave out layers whose backend is requested by name.

    They compute by the same code with kernels and without: only "auto" selects another backend.
    """
    if os.environ.get("SEPGROUPY_NATIVE") == "0":
        repeated = [item for item in items if _backend_of(item) not in (None, "auto")]
        config.hook.pytest_deselected(items=repeated)
        items[:] = [item for item in items if item not in repeated]


def _backend_of(item: pytest.Item) -> str | None:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return parameters["way"][1] if "way" in parameters else None
