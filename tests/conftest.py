"""What the tests share: seeds, the groups under test, and every kind of layer with every backend."""

from __future__ import annotations

import copy
import io
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import settings

import oracle
from sepgroupy.backends import RULES, ConvSpec, dispatch, registered_backends
from sepgroupy.errors import ArgumentError
from sepgroupy.groups import C1, C2, C4, D1, D2, D4, PointGroup, as_group
from sepgroupy.nn import GROUP_CONVS, LIFTING_CONVS, GroupConv, GroupConvTranspose, LiftingConv

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

GROUPS = {1: (as_group("reflection", 1),), 2: PLANE_GROUPS, 3: (as_group("C4v", 3), as_group("T", 3))}
"""Groups to test layers of each dimension with."""


def _of_slices(group: PointGroup) -> PointGroup:
    """Let a group of images act on every slice of volumes."""
    elements = (((1, 0, 0), *((0, *row) for row in element)) for element in group.elements)
    return PointGroup(tuple(elements), f"{group.name} of slices")


COUNTERPARTS = {
    1: dict.fromkeys(PLANE_GROUPS, GROUPS[1][0]),
    2: {group: group for group in PLANE_GROUPS},
    3: {group: _of_slices(group) for group in PLANE_GROUPS},
}
"""What takes the place of a group of images where a test runs in another dimension."""

KINDS = ("lifting", "dense", "g", "gc")


class LayerVariant(NamedTuple):
    """A kind of layer, a value of ``backend=`` and a number of spatial axes."""

    kind: str
    backend: str
    dimension: int = 2

    def __str__(self) -> str:
        return "-".join(self[:2]) + ("" if self.dimension == 2 else f"-{self.dimension}d")


def _backends_of(kind: str) -> list[str]:
    """Name the backends of this machine that compute some layer of a kind."""
    specs = [ConvSpec.parse(C4, kind, kernel) for kernel in (1, 3)]
    return [
        backend.name
        for backend in registered_backends()
        if backend.unavailable_reason() is None and any(backend.unsupported_reason(spec) is None for spec in specs)
    ]


VARIANTS = [LayerVariant(kind, backend) for kind in KINDS for backend in (*RULES, *_backends_of(kind))]
"""Every kind of layer of images with every value of ``backend=`` that computes it on this machine."""
OTHER_DIMENSIONS = [LayerVariant(kind, "auto", dimension) for dimension in (1, 3) for kind in KINDS]
"""Every kind of layer of signals and volumes."""

AS_IF_LARGE = ((dispatch, "FOURIER_MIN_WORK", 0),)

Layer = LiftingConv | GroupConv | GroupConvTranspose
Build = Callable[..., Any]  # a Layer, whose parameters a type checker does not know


def build_layer(variant: tuple[Any, ...], *args: Any, **options: Any) -> Any:
    """Build a layer of that kind, backend and dimension (2 if there is none) from the arguments that all layers share.

    Its bias is drawn at random, since that of a new layer is zero and nothing would tell if it were left out.
    """
    kind, backend, dimension = LayerVariant(*variant)
    if kind == "lifting":
        layer: Any = LIFTING_CONVS[dimension](*args, backend=backend, **options)
    else:
        layer = GROUP_CONVS[dimension](*args, kind=kind, backend=backend, **options)
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    return layer


def variants_of(dimension: int = 2, **case: Any) -> list[LayerVariant]:
    """List the variants that support these arguments, as the backends themselves say."""
    found = [variant._replace(dimension=dimension) for variant in VARIANTS]
    return [variant for variant in found if _supports(variant, **case)]


def _supports(variant: LayerVariant, **case: Any) -> bool:
    try:
        build_layer(variant, 2, 2, group=PointGroup.generate([np.eye(variant.dimension, dtype=int).tolist()]), **case)
    except ArgumentError as error:
        if not str(error).startswith("backend"):
            raise
        return False
    return True


def pairs(cases: Mapping[str, dict[str, Any]], every_backend: bool = True, rules: bool = True) -> list[Any]:
    """Each case with each variant that supports it, for ``pytest.mark.parametrize(("variant", "case"), …)``.

    A case may have a dimension. If it does, it may be computed by the backends that "auto" selects alone. Without
    ``rules``, "auto" and "torch" are left out: each selects one of the named backends.
    """
    found = []
    for name, case in cases.items():
        variants = variants_of(**case)
        arguments = {argument: value for argument, value in case.items() if argument != "dimension"}
        if "dimension" in case and not every_backend:
            variants = [variant for variant in variants if variant.backend == "auto"]
        elif not rules:
            variants = [variant for variant in variants if variant.backend not in RULES]
        found += [pytest.param(variant, arguments, id=f"{name}-{variant}") for variant in variants]
    return found


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Restore the number of threads, on which the last bits of sums depend."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002


@pytest.fixture(autouse=True)
def _caches_filters_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the layers of the tests, which are small, use the cache of filters as large ones do."""
    monkeypatch.setattr(dispatch, "NATIVE_MIN_REUSED", 0)


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


@pytest.fixture(
    params=[*(variant for variant in variants_of(kernel_size=3) if variant.backend != "torch"), *OTHER_DIMENSIONS],
    ids=str,
)
def variant(request: pytest.FixtureRequest) -> LayerVariant:
    return request.param


@pytest.fixture
def build(variant: tuple[Any, ...]) -> Build:
    """Build layers of the variant under test; for signals and volumes with the counterpart of a group of images."""
    dimension = LayerVariant(*variant).dimension

    def build(*args: Any, group: Any, **options: Any) -> Any:
        if isinstance(group, PointGroup):
            group = COUNTERPARTS[dimension].get(group, group)
        return build_layer(variant, *args, group=group, **options)

    return build


def random_input(layer: Layer, *size: int, batch: int = 2, dtype: Any = torch.float64) -> Any:
    """Draw an input of the shape that the layer reads; of the size of an image, three slices or a row if need be."""
    group_axis = () if layer.kind == "lifting" else (layer.group.order,)
    size = (3, *size)[-layer.dimension :]
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
    return parameters["variant"][1] if "variant" in parameters else None


@pytest.fixture
def fresh_compiler() -> None:
    """Forget what other tests compiled: one function is compiled for a few layers at most."""
    torch._dynamo.reset()


def assert_compiled_once(layer: torch.nn.Module, *shapes: tuple[int, ...]) -> None:
    """Compare outputs and gradients of a compiled layer with its own, and compile it once for all shapes."""
    import torch._dynamo.testing  # which takes seconds

    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for shape in shapes:
        x, found = torch.randn(shape, requires_grad=True), []
        for function in (layer, compiled):
            y = function(x)
            found.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1
