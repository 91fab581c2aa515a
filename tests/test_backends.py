"""The registry of backends, the specification they read, and the one-way order of the packages."""

from __future__ import annotations

import ast
import copy
import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import oracle
import sepgroupy
from conftest import VARIANTS, build_layer, random_input
from sepgroupy.backends import (
    KINDS,
    RULES,
    Backend,
    ConvSpec,
    Filters,
    available_backends,
    check_backend,
    full_filter,
    register,
    registered_backends,
    select_backend,
    unregister,
)
from sepgroupy.errors import ArgumentError
from sepgroupy.groups import C2, C4, D4, PointGroup
from sepgroupy.nn import GroupConv2d, LiftingConv2d

BUILT_IN = ("native", "fourier", "two_step", "expanded", "reference")


class Toy(Backend):
    """A backend from outside: the oracle, for group convolutions without gradients, geometry or channel blocks."""

    name = "toy"
    vmap = forward_mode = compiles = exports = False

    def unsupported_reason(self, spec: ConvSpec, x: Tensor | None = None) -> str | None:
        if spec.kind == "lifting" or spec.transposed or spec.groups != 1 or spec.padding_mode != "zeros":
            return "a group convolution with groups=1 and zero padding"
        return None if x is None or not torch.is_grad_enabled() else "torch.no_grad()"

    def expand_filters(self, spec: ConvSpec, parameters: Mapping[str, Tensor]) -> Filters:
        if "weight" in parameters:
            return (parameters["weight"],)
        return (full_filter(parameters["depthwise_weight"], parameters["pointwise_weight"]),)

    def run(self, spec: ConvSpec, x: Tensor, filters: Filters, bias: Tensor | None) -> Tensor:
        called.append(spec)
        (weight,) = filters
        assert weight is not None
        parameters = {"weight": weight.numpy()} | ({} if bias is None else {"bias": bias.numpy()})
        y = oracle.layer(x.numpy(), parameters, spec.group, spec.stride, spec.padding[::2], spec.dilation)
        return torch.from_numpy(y).to(x.dtype)


called: list[ConvSpec] = []


@pytest.fixture
def toy() -> Iterator[Toy]:
    called.clear()
    backend = Toy()
    register(backend)
    yield backend
    unregister("toy")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("requested", ["auto", "toy"])
@torch.no_grad()
def test_a_backend_from_outside_is_chosen_and_removed_again(toy: Toy, kind: str, requested: str) -> None:
    options: dict[str, Any] = {"padding": 1, "group": D4, "kind": kind, "dtype": torch.float64}
    layer, plain = (GroupConv2d(2, 3, 3, backend=name, **options) for name in (requested, "expanded"))
    plain.load_state_dict(layer.state_dict())
    x = random_input(layer, 5, 6)
    torch.testing.assert_close(layer(x), plain(x), atol=1e-12, rtol=0)
    assert called == [layer.spec]
    with sepgroupy.cached_filters(layer):
        for _ in range(2):
            torch.testing.assert_close(layer(x), plain(x), atol=1e-12, rtol=0)
    assert len(called) == 3
    unregister("toy")
    if requested == "auto":
        torch.testing.assert_close(layer(x), plain(x), atol=1e-12, rtol=0)
    else:
        with pytest.raises(ArgumentError, match=r"backend \(='toy'\) must be one of auto, torch, native"):
            layer(x)
    assert len(called) == 3


def test_where_it_does_not_support_an_input_auto_chooses_another_and_its_name_is_refused(toy: Toy) -> None:
    x = torch.randn(1, 2, 4, 5, 5)
    GroupConv2d(2, 2, 3, group="p4")(x).sum().backward()
    LiftingConv2d(2, 2, 3, group="p4")(x[:, :, 0])
    GroupConv2d(2, 2, 3, group="p4", backend="torch")(x.detach())
    assert not called
    with pytest.raises(ArgumentError, match=r"backend \(='toy'\) needs torch\.no_grad\(\)"):
        GroupConv2d(2, 2, 3, group="p4", backend="toy")(x)
    with pytest.raises(ArgumentError, match=r"backend \(='toy'\) needs a group convolution with groups=1"):
        LiftingConv2d(2, 2, 3, group="p4", backend="toy")


@pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")  # of torch.func.jvp
@torch.no_grad()
def test_what_it_does_not_serve_is_left_to_another(toy: Toy) -> None:
    layer, x = GroupConv2d(2, 2, 3, group="p4"), torch.randn(3, 1, 2, 4, 5, 5)
    torch.func.vmap(layer)(x)
    torch.func.jvp(layer, (x[0],), (x[1],))
    torch.export.export(layer, (x[0],))
    torch._dynamo.reset()
    torch.compile(layer, fullgraph=True, backend="eager")(x[0])
    assert not called
    layer(x[0])
    assert called


def test_a_backend_replaces_the_one_of_its_name(toy: Toy) -> None:
    before = [backend.name for backend in registered_backends()]
    assert before == ["toy", *BUILT_IN]
    other = Toy()
    register(other)
    assert [backend.name for backend in registered_backends()] == before
    assert registered_backends()[0] is other
    unregister("toy")
    unregister("toy")  # nothing more to remove
    assert tuple(backend.name for backend in registered_backends()) == BUILT_IN


@pytest.mark.parametrize("name", [*RULES, None, 3])
def test_a_name_that_is_a_rule_or_no_text_is_refused(name: Any) -> None:
    backend = type("Misnamed", (Toy,), {"name": name})()
    with pytest.raises(ArgumentError, match="must be a Backend with a name other than auto and torch"):
        register(backend)
    with pytest.raises(ArgumentError, match="must be a Backend"):
        register(Toy)  # type: ignore[arg-type]
    assert tuple(backend.name for backend in registered_backends()) == BUILT_IN


class Unavailable(Toy):
    """A backend that this machine cannot use."""

    def unavailable_reason(self) -> str | None:
        return "no toy shop"


@torch.no_grad()
def test_an_unavailable_backend_is_listed_refused_by_name_and_passed_over() -> None:
    called.clear()
    register(Unavailable())
    try:
        assert available_backends()["toy"] == "unavailable: no toy shop"
        with pytest.raises(ArgumentError, match=r"backend \(='toy'\) is unavailable: no toy shop"):
            GroupConv2d(2, 2, 3, group="p4", backend="toy")
        GroupConv2d(2, 2, 3, group="p4")(torch.randn(1, 2, 4, 5, 5))
        assert not called
    finally:
        unregister("toy")


def test_available_backends_says_what_each_computes_with() -> None:
    found = sepgroupy.available_backends()
    assert tuple(found) == BUILT_IN
    assert {found[name] for name in BUILT_IN[1:]} == {"PyTorch's operations"}
    assert found["native"].startswith(("C++ kernels", "unavailable: "))
    assert not any(variant.backend == "native" for variant in VARIANTS) or found["native"].startswith("C++ kernels")


BLOCKS, REFLECTED = {"groups": 2}, {"padding": 1, "padding_mode": "reflect"}


@pytest.mark.parametrize(
    ("backend", "reason", "case"),
    [
        ("two_step", "a layer of kind g or gc", {"kind": "dense"}),
        ("two_step", "a layer of kind g or gc", {"kind": "lifting"}),
        ("two_step", "a layer of kind gc where it is transposed", {"kind": "g", "transposed": True}),
        ("two_step", None, {"kind": "gc", "transposed": True}),
        ("two_step", None, {"kind": "g", **BLOCKS, **REFLECTED}),
        ("fourier", "groups=1, and no transposed convolution", {"kind": "gc", **BLOCKS}),
        ("fourier", "groups=1, and no transposed convolution", {"kind": "gc", "transposed": True}),
        ("fourier", "a layer of kind gc, or kernel_size=1 in a layer of kind dense", {"kind": "dense"}),
        ("fourier", "a layer of kind gc, or kernel_size=1 in a layer of kind dense", {"kind": "g"}),
        ("fourier", None, {"kind": "dense", "kernel_size": 1}),
        ("native", "strides up to 3", {"kind": "gc", "stride": 4}),
        ("native", None, {"kind": "lifting", "stride": 2, **BLOCKS}),
        ("native", "kernels of up to 49 elements", {"kind": "dense", "kernel_size": 8}),
        ("native", "kernels that extend over up to 64 pixels", {"kind": "gc", "dilation": 1000}),
        ("native", None, {"kind": "gc", "transposed": True, "stride": 2}),
        ("native", "groups=1 where it is transposed", {"kind": "gc", "transposed": True, **BLOCKS}),
        ("native", "strides up to 3", {"kind": "gc", "stride": 4, **BLOCKS}),
        ("native", None, {"kind": "g", **REFLECTED}),
        ("expanded", None, {"kind": "g", "transposed": True, **BLOCKS}),
        ("reference", None, {"kind": "dense", "stride": 7, **REFLECTED}),
    ],
)
def test_a_backend_names_what_it_would_need(backend: str, reason: str | None, case: dict[str, Any]) -> None:
    spec = ConvSpec.parse(C4, **({"kernel_size": 3} | case))
    (found,) = (b for b in registered_backends() if b.name == backend)
    assert found.unsupported_reason(spec) == reason
    if reason is None:
        return
    with pytest.raises(ArgumentError) as caught:
        check_backend(spec, backend)
    assert str(caught.value) == f"backend (={backend!r}) needs {reason}"


@pytest.mark.parametrize("name", ["full", "dense", "", "Auto", None, 3, torch.float32], ids=str)
def test_unknown_names_are_refused_with_the_known_ones(name: Any) -> None:
    with pytest.raises(ArgumentError) as caught:
        GroupConv2d(2, 2, 3, group="p4", backend=name)
    assert str(caught.value) == f"backend (={name!r}) must be one of {', '.join((*RULES, *BUILT_IN))}"


@pytest.mark.usefixtures("as_if_large")
@pytest.mark.parametrize(
    ("kind", "kernel", "rule", "gradients", "chosen"),
    [
        ("gc", 3, "torch", True, "fourier"),
        ("dense", 1, "torch", True, "fourier"),
        ("dense", 3, "torch", True, "expanded"),
        ("g", 3, "torch", True, "expanded"),
        ("lifting", 3, "torch", True, "expanded"),
        *[(kind, 3, "auto", gradients, "native") for kind in ("lifting", *KINDS) for gradients in (True, False)],
    ],
)
def test_rules_choose_for_large_feature_maps(kind: str, kernel: int, rule: str, gradients: bool, chosen: str) -> None:
    if (kind, chosen, 2) not in VARIANTS:
        pytest.skip("there are no kernels")
    layer = build_layer((kind, rule), 2, 3, kernel, group=D4)
    with torch.set_grad_enabled(gradients):
        assert select_backend(layer.spec, random_input(layer, 5, 5, dtype=torch.float32), rule).name == chosen
        half = select_backend(layer.spec, random_input(layer, 5, 5, dtype=torch.float16), rule).name
    assert (half == "native") == (chosen == "native")  # which computes it in float32


def test_rules_choose_for_small_feature_maps() -> None:
    spec = ConvSpec.parse(D4, "gc", 3)
    x = torch.zeros(1, 2, 8, 4, 4)
    assert select_backend(spec, x, "torch").name == "two_step"
    for dtype in (torch.float32, torch.bfloat16):
        assert select_backend(spec, x.to(dtype), "auto").name == (
            "native" if ("gc", "native", 2) in VARIANTS else "two_step"
        )


# ---- the specification ---------------------------------------------------------------------------------------------

CASES: list[dict[str, Any]] = [
    {"kind": "lifting", "kernel_size": 3},
    {"kind": "gc", "kernel_size": 3},
    {"kind": "gc", "kernel_size": 5},
    {"kind": "gc", "kernel_size": 3, "stride": 2},
    {"kind": "gc", "kernel_size": 3, "padding": 1},
    {"kind": "gc", "kernel_size": 3, "dilation": 2},
    {"kind": "gc", "kernel_size": 3, "groups": 2},
    {"kind": "gc", "kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    {"kind": "gc", "kernel_size": 3, "transposed": True},
    {"kind": "gc", "kernel_size": 3, "transposed": True, "stride": 2},
    {"kind": "gc", "kernel_size": (3, 2)},
    {"kind": "gc", "kernel_size": (2, 3)},
]
SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"kernel_size": 3}, {"kernel_size": (3, 3)}),
    ({"kernel_size": 3}, {"kernel_size": [3, 3]}),
    ({"kernel_size": 3}, {"kernel_size": torch.Size([3, 3])}),
    ({"kernel_size": 3}, {"kernel_size": np.int64(3)}),
    ({"kernel_size": 3, "padding": "same"}, {"kernel_size": 3, "padding": (1, 1)}),
    ({"kernel_size": 3, "padding": "valid"}, {"kernel_size": 3}),
]


def test_specifications_are_values() -> None:
    specs = [ConvSpec.parse(C2, **case) for case in CASES] + [ConvSpec.parse(C4, "gc", 3)]
    assert len(set(specs)) == len(specs)
    assert [ConvSpec.parse(C2, **case) for case in CASES] == specs[:-1]
    for a, b in SAME:
        one, other = ConvSpec.parse(D4, "gc", **a), ConvSpec.parse(D4, "gc", **b)
        assert one == other
        assert hash(one) == hash(other)
    by_matrices = ConvSpec.parse(PointGroup.generate([[[0, -1], [1, 0]]]), "gc", 3)
    assert by_matrices == ConvSpec.parse(C4, "gc", 3)  # of a group that is the same by another name
    with pytest.raises(dataclasses.FrozenInstanceError):
        specs[0].stride = (2, 2)  # type: ignore[misc]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_copies_of_a_specification_are_equal(case: dict[str, Any]) -> None:
    spec = ConvSpec.parse(C2, **case)
    for other in (copy.copy(spec), copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))):
        assert other == spec
        assert hash(other) == hash(spec)
    assert dataclasses.replace(spec, stride=(3, 3)) != spec
    layer = LiftingConv2d(2, 2, 3, group=C2)
    assert copy.deepcopy(layer).spec is layer.spec
    assert pickle.loads(pickle.dumps(layer)).spec == layer.spec


def test_a_specification_keeps_its_meaning_in_another_process(tmp_path: Path) -> None:
    specs = {ConvSpec.parse(C2, **case): index for index, case in enumerate(CASES)}
    path = tmp_path / "specs.pickle"
    path.write_bytes(pickle.dumps(specs))
    code = (
        "import pickle, sys; from sepgroupy.backends import ConvSpec; from sepgroupy.groups import C2;"
        "specs = pickle.load(open(sys.argv[1], 'rb'));"
        f"assert [specs[ConvSpec.parse(C2, **case)] for case in {CASES!r}] == list(range({len(CASES)}))"
    )
    # Strings hash differently in every process.
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=environment)


# ---- the order of the packages -------------------------------------------------------------------------------------

SOURCE = Path(sepgroupy.__file__).parent
LEVELS = (
    ("errors", "_constants", "_devices", "_files", "_nested"),
    ("groups",),
    ("backends",),
    ("functional",),
    ("nn",),
    ("models", "gconv", "_plain_weights"),
    ("fusion", "testing", "analysis", "auditing", "conversion", "compression", "exporting", "info"),
    ("data", "image_models", "pages", "play"),
    ("training",),
    ("paper",),
    ("cli",),
    ("__main__",),
    ("__init__",),
)
LEVEL = {package: level for level, packages in enumerate(LEVELS) for package in packages}
FILES = {str(path.relative_to(SOURCE)): path for path in sorted(SOURCE.rglob("*.py"))}


def package_of(file: str) -> str:
    return Path(file).parts[0].removesuffix(".py")


def imports_of(file: str) -> Iterator[tuple[str, str]]:
    """Give each module of sepgroupy that a file imports, by its path below the package, and what of it."""
    here = ["sepgroupy", *Path(file).parent.parts]
    for node in ast.walk(ast.parse(FILES[file].read_text())):
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [(module, alias.name) for alias in node.names]
        else:
            continue
        for module, name in names:
            if module == "sepgroupy" and name:
                yield name, ""
            elif module.partition(".")[0] == "sepgroupy":
                yield module.partition(".")[2] or "__init__", name


def test_imports_go_one_way_and_to_public_modules() -> None:
    wrong = []
    for file in FILES:
        mine = package_of(file)
        assert mine in LEVEL, f"{mine} has no place in the order of the packages"
        for module, name in imports_of(file):
            package, *inner = module.split(".")
            if package == mine:
                continue
            if LEVEL.get(package, 0) > LEVEL[mine]:
                wrong.append(f"{file} imports {module}, which is above {mine}")
            if any(part.startswith("_") for part in (*inner, name)):
                wrong.append(f"{file} imports {module} {name}, which is private to {package}")
    assert not wrong


def test_packages_do_not_import_each_other_in_a_circle() -> None:
    needs: dict[str, set[str]] = {}
    for file in FILES:
        needs.setdefault(package_of(file), set()).update(module.split(".")[0] for module, _ in imports_of(file))
    needs = {package: (found & needs.keys()) - {package} for package, found in needs.items()}
    while free := [package for package, found in needs.items() if not found]:
        needs = {package: found - {*free} for package, found in needs.items() if package not in free}
    assert not needs


@pytest.mark.parametrize("package", ["groups", "backends", "functional", "nn", "models", "fusion"])
def test_modules_of_a_package_do_not_import_each_other_in_a_circle(package: str) -> None:
    files = {file for file in FILES if package_of(file) == package}
    needs: dict[str, set[str]] = {}
    for file in files:
        needs[file] = set()
        for module, name in imports_of(file):
            path = module.replace(".", "/")
            submodule = [found for found in (f"{path}/{name}.py", f"{path}/{name}/__init__.py") if found in files]
            needs[file] |= {*(submodule or [f"{path}.py", f"{path}/__init__.py"])} & files - {file}
    while free := [file for file, found in needs.items() if not found]:
        needs = {file: found - {*free} for file, found in needs.items() if file not in free}
    assert not needs
