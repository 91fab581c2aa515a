"""What is particular to the compiled kernels. The contract tests compare every backend with the definition."""

from __future__ import annotations

import copy
import ctypes
import itertools
import math
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

import oracle
import sepgroupy
from sepgroupy import fusion
from sepgroupy.backends import BatchNormReLU, ConvSpec, dispatch, select_backend
from sepgroupy.backends.native import (
    Native,
    backend,
    batch_statistics,
    launch,
    library,
    limits,
    norm_clamp,
    norm_relu_max_pool,
    operator,
    transform,
)  # fmt: skip
from sepgroupy.backends.native import batch_norm as native_batch_norm
from sepgroupy.backends.native import convolution as native_convolution
from sepgroupy.backends.native import problem as native_problem
from sepgroupy.backends.native.backend import FusedOutput
from sepgroupy.backends.native.launch import ConvInputs, NativeConv, native_conv
from sepgroupy.backends.native.library import kernels
from sepgroupy.errors import ArgumentError
from sepgroupy.groups import C1, C4, D2, D4, PointGroup, as_group
from sepgroupy.nn import GroupConv2d, LiftingConv2d, cached_filters
from stress import native as stress

pytestmark = pytest.mark.skipif(not kernels(), reason=kernels().summary)
ROOT = Path(__file__).parents[1]
KINDS = ("dense", "g", "gc")
SPEC = ConvSpec.parse(D4, "dense", 3, padding=1)


def lifting_of(spec: ConvSpec) -> NativeConv:
    return native_conv(ConvSpec(spec.group, "lifting", spec.kernel_size, spec.stride, spec.padding, spec.dilation))


def layer(kind: str = "dense", backend: str = "native", **options: Any) -> Any:
    options = {"padding": 1, "group": D4, "backend": backend} | options
    built = LiftingConv2d(3, 4, 3, **options) if kind == "lifting" else GroupConv2d(3, 4, 3, **options, kind=kind)
    assert built.bias is not None
    nn.init.normal_(built.bias)
    return built


def input_axes(kind: str) -> tuple[int, ...]:
    """Return channels, and group elements, of the input of such a layer."""
    return (3,) if kind == "lifting" else (3, 8)


def as_defined(convolution: GroupConv2d | LiftingConv2d, x: Tensor, **geometry: Any) -> Tensor:
    """Compute what the layer is defined to return."""
    parameters = {name: value.detach().double().numpy() for name, value in convolution.named_parameters()}
    return torch.from_numpy(oracle.layer(x.detach().double().numpy(), parameters, convolution.group, **geometry))


def run_fused(convolution: GroupConv2d, x: Tensor, *args: Any, **options: Any) -> FusedOutput:
    """Compute the layer with what may be fused with it: a norm, a residual, statistics, a shared input."""
    native, parameters = Native(), {name: getattr(convolution, name) for name in convolution.filter_names}
    filters = native.expand_filters(convolution.spec, parameters)
    return native.run_fused(convolution.spec, x, filters, convolution.bias, *args, **options)


def norm_of(channels: int = 3, batch_stats: bool = False) -> BatchNormReLU:
    mean, var = torch.randn(channels), torch.rand(channels) + 0.5
    return BatchNormReLU(mean, var, torch.rand(channels) + 0.5, torch.randn(channels), 1e-5, batch_stats)


# ---- what is refused before any pointer is used ------------------------------------------------------------------


class Untouched:
    """Stands for the library in a test in which no kernel may be reached; functions of sizes alone may be."""

    def __getattr__(self, name: str) -> Any:
        if name in ("filters_size", "vector_values", "workspace_bytes"):
            return getattr(kernels().library, name)
        return pytest.fail(f"{name} was reached")


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> NativeConv:
    monkeypatch.setattr(library, "kernels", lambda: library.Kernels(Untouched(), ""))
    return NativeConv(SPEC)


def filters_of(kind: str, outputs: int, inputs: int, order: int) -> tuple[Tensor, Tensor | None]:
    """Draw a 3×3 filter, or its pointwise and depthwise factor."""
    if kind == "dense":
        return torch.randn(outputs, inputs, order, 3, 3), None
    return torch.randn(outputs, inputs, order, 1, 1), torch.randn(outputs, inputs if kind == "g" else 1, 1, 3, 3)


def tensors(kind: str = "dense") -> dict[str, Any]:
    """All that a forward call reads, in its order."""
    weight, depthwise = filters_of(kind, 4, 3, 8)
    return {
        "x": torch.randn(2, 8, 3, 5, 6),
        "weight": weight,
        "depthwise": depthwise,
        "bias": torch.randn(4),
        "gamma": torch.randn(3),
        "beta": torch.randn(3),
        "mean": torch.randn(3),
        "var": torch.rand(3) + 0.5,
        "residual": torch.randn(2, 8, 4, 5, 6),
    }


SHAPES = {
    "x": [(8, 3, 5, 6), (2, 4, 3, 5, 6), (2, 8, 2, 5, 6), (2, 8, 3, 5), ()],
    "weight": [(4, 3, 8, 3), (4, 2, 8, 3, 3), (4, 3, 1, 3, 3), (4, 3, 8, 5, 5), (4, 3, 8, 1, 9), ()],
    "depthwise": [
        (4, 1, 1, 3, 3),
        (),
        (3, 1, 1, 3, 3),
        (4, 1, 1, 3, 5),
        (4, 9),
        (4, 2, 1, 3, 3),
        (4, 3, 3, 3),
        (4, 3, 8, 3, 3),
    ],
    "bias": [(), (1,), (3,), (4, 1), (5,)],
    "gamma": [(), (1,), (4,), (1, 3)],
    "beta": [(), (1,), (4,), (3, 1)],
    "mean": [(), (1,), (4,), (1, 3)],
    "var": [(), (1,), (4,), (3, 1)],
    "residual": [(), (4, 5, 6), (2, 8, 4, 5, 5), (2, 8, 3, 5, 6), (1, 8, 4, 5, 6)],
}


@pytest.mark.parametrize(("name", "shape"), [(name, shape) for name, shapes in SHAPES.items() for shape in shapes])
def test_other_shapes_are_refused(name: str, shape: tuple[int, ...], untouched: NativeConv) -> None:
    given = tensors("gc" if name == "depthwise" and shape != (4, 1, 1, 3, 3) else "dense")  # where the other is refused
    with pytest.raises(ArgumentError, match=f"({name}|gamma|weight) .*has shape|x has shape"):
        untouched.forward(ConvInputs(**given | {name: torch.randn(shape)}))


@pytest.mark.parametrize("missing", ["mean", "var"])
def test_half_a_norm_is_refused(missing: str, untouched: NativeConv) -> None:
    with pytest.raises(ArgumentError, match=f"{missing} has shape None"):
        untouched.forward(ConvInputs(**tensors() | {missing: None}))


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "dtype": lambda t: t.double(),
    "half": lambda t: t.half(),
    "integer": lambda t: t.long(),
    "complex": lambda t: t.to(torch.complex64),
    "device": lambda t: t.to("meta"),
    "layout": lambda t: t.to_sparse(),
    "strides": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "repeated": lambda t: t[:1].expand(t.shape),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.quint8),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", [*tensors(), "expanded"])
@pytest.mark.filterwarnings("ignore:.*quantiz.*")
def test_other_kinds_of_tensors_are_refused(name: str, change: str, untouched: NativeConv) -> None:
    given = tensors("gc") | {"expanded": torch.randn(40)}
    given[name] = CHANGES[change](given[name])
    expanded = given.pop("expanded")
    with pytest.raises(ArgumentError, match="contiguous CPU tensors of one dtype, float32 or float64, or feature maps"):
        untouched.forward(ConvInputs(**given), expanded=expanded)


@pytest.mark.parametrize("kind", KINDS)
def test_expanded_filters_of_another_size_are_refused(kind: str, untouched: NativeConv) -> None:
    given = tensors(kind)
    names = ("x", "weight", "depthwise")
    shapes = tuple(None if given[name] is None else given[name].shape for name in names)
    size = kernels().library.filters_size(
        native_problem.checked_problem(untouched.spec, "forward", names, shapes, 1, torch.float32).problem
    )
    for shape in ((size + 1,), (size - 1,), (0,), (), (1, size), (size, 1)):
        with pytest.raises(ArgumentError, match="expanded has shape"):
            untouched.forward(ConvInputs(**given), expanded=torch.randn(shape))


@pytest.mark.parametrize("name", ["weight", "depthwise"])
def test_filters_that_do_not_fit_are_not_expanded(name: str, untouched: NativeConv) -> None:
    given = tensors("gc")
    for shape in ((), (4, 3, 8), (4, 2, 8, 3, 3)):
        filters = {key: given[key] for key in ("weight", "depthwise")} | {name: torch.randn(shape)}
        with pytest.raises(ArgumentError, match=r"has shape|weight"):
            untouched.expand_filters((2, 8, 3, 5, 6), **filters)
        with pytest.raises(ArgumentError, match=r"contiguous CPU tensors|has shape"):
            untouched.expand_filters((2, 8, 3, 5, 6), **filters | {name: given[name].repeat(1, 1, 1, 1, 2)[..., ::2]})


@pytest.mark.parametrize("shape", [(), (2, 8, 4, 5, 5), (2, 8, 3, 5, 6), (1, 8, 4, 5, 6), (2, 8, 4, 30)])
def test_other_gradients_are_refused(shape: tuple[int, ...], untouched: NativeConv) -> None:
    x, weight, *_ = tensors().values()
    with pytest.raises(ArgumentError, match="the output's gradient has shape"):
        untouched.backward(torch.randn(shape), ConvInputs(x, weight))


@pytest.mark.parametrize("shape", [(), (4, 3, 8, 3), (4, 2, 8, 3, 3)])
def test_gradients_for_other_filters_are_refused(shape: tuple[int, ...], untouched: NativeConv) -> None:
    with pytest.raises(ArgumentError, match="weight"):
        untouched.backward(torch.randn(2, 8, 4, 5, 6), ConvInputs(tensors()["x"], torch.randn(shape)))


@pytest.mark.parametrize("shape", [(), (2, 8, 3, 5, 5), (2, 8, 4, 5, 6), (1, 8, 3, 5, 6)])
def test_other_gradients_to_add_are_refused(shape: tuple[int, ...], untouched: NativeConv) -> None:
    x, weight, *_ = tensors().values()
    with pytest.raises(ArgumentError, match="other_grad has shape"):
        untouched.backward(torch.randn(2, 8, 4, 5, 6), ConvInputs(x, weight), other_grad=torch.randn(shape))


def test_images_smaller_than_the_kernel_are_refused(untouched: NativeConv) -> None:
    inputs = ConvInputs(torch.randn(1, 8, 3, 6, 9), torch.randn(4, 3, 8, 7, 7))
    with pytest.raises(ArgumentError, match="smaller than the extent of kernel_size"):
        NativeConv(ConvSpec.parse(D4, "dense", 7)).forward(inputs)


UNKNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "stride": ("strides up to 3", {"stride": 4}),
    "kernel": ("kernels of up to 49 elements", {"kernel_size": 8}),
    "dilation": ("kernels that extend over up to 64 pixels", {"dilation": 32}),
    "transposed": ("groups=1 where it is transposed", {"transposed": True, "groups": 2}),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_convolutions_that_the_kernels_do_not_know_are_refused(what: str) -> None:
    needed, change = UNKNOWN[what]
    spec = ConvSpec.parse(D4, **{"kind": "dense", "kernel_size": 3} | change)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=f"the kernels need {needed}"):
        NativeConv(spec)
    assert Native().unsupported_reason(spec) == needed


def test_a_transposed_convolution_is_stated_as_the_one_to_transpose() -> None:
    with pytest.raises(ArgumentError, match="the kernels need the convolution that is transposed"):
        NativeConv(ConvSpec.parse(D4, "dense", 3, transposed=True))


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, 5).half(), torch.zeros(2, 3, 0, 5), torch.zeros(2, 3, 4, 5).mT]
)
def test_statistics_of_other_tensors_are_refused(x: Tensor, untouched: NativeConv) -> None:
    with pytest.raises(ArgumentError, match="the kernels read contiguous"):
        batch_statistics(x)


@pytest.mark.parametrize("name", ["gamma", "beta", "mean", "var"])
def test_norms_of_other_shapes_are_not_pooled(name: str, untouched: NativeConv) -> None:
    given = {key: value for key, value in tensors().items() if key in ("gamma", "beta", "mean", "var")}
    for shape in ((), (1,), (4,), (3, 1)):
        norm = BatchNormReLU(**given | {name: torch.randn(shape)}, eps=1e-5, batch_stats=False)
        with pytest.raises(ArgumentError, match=f"{name} has shape"):
            norm_relu_max_pool(torch.randn(2, 3, 4, 6), norm)


@pytest.mark.parametrize(
    "change",
    [
        {"stride": [0, 0]}, {"stride": [-1, -1]}, {"stride": [4, 4]}, {"stride": [1, 2]}, {"stride": [1]},
        {"padding": [-1, -1]}, {"dilation": [0, 0]}, {"dilation": [-1, -1]}, {"dilation": [40, 40]},
        {"elements": [1, 0, 0, 1]}, {"elements": [2, 0, 0, 1]}, {"elements": [1, 0, 0]}, {"elements": [1, 0]},
        {"weight": torch.zeros(4, 3, 8, 9, 9)}, {"weight": torch.zeros(4, 3, 8)}, {"x": torch.zeros(2, 8, 3, 5)},
    ],
    ids=lambda change: "-".join(change),
)  # fmt: skip
def test_the_operators_refuse_what_no_layer_asks_for(change: dict[str, Any], untouched: NativeConv) -> None:
    arguments = operator_arguments() | change
    with pytest.raises(ArgumentError):
        torch.ops.sepgroupy.group_conv(*arguments.values())
    x, weight, depthwise, bias, _, *options = arguments.values()
    with pytest.raises(ArgumentError):
        torch.ops.sepgroupy.group_conv_backward(
            torch.zeros(2, 8, 4, 5, 6), x, weight, depthwise, bias, [True] * 4, *options
        )


def operator_arguments(kind: str = "dense", group: PointGroup = D4) -> dict[str, Any]:
    """Name the arguments of the operator, for p4m."""
    lifting = kind == "lifting"
    given = tensors("dense" if lifting else kind)
    if lifting:
        given |= {"x": torch.randn(2, 1, 3, 5, 6), "weight": torch.randn(4, 3, 1, 3, 3)}
    given = {name: given[name] for name in ("x", "weight", "depthwise", "bias", "residual")}
    options = {"elements": group.arrays.flatten().tolist(), "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]}
    return given | {"lifting": lifting, "groups": 1} | options


# ---- the interface -----------------------------------------------------------------------------------------------


def declared(struct: str) -> list[tuple[str, Any]]:
    """Return the fields of a structure as csrc/interface.h declares them."""
    header = re.sub(r"/\*.*?\*/", "", (ROOT / "csrc" / "interface.h").read_text(), flags=re.DOTALL)
    (body,) = re.findall(rf"struct {struct} \{{(.*?)\}};", header, flags=re.DOTALL)
    types = {"int64_t": ctypes.c_int64, "double": ctypes.c_double, "Address": ctypes.c_void_p}
    fields = []
    for kind, names in re.findall(r"(?:const )?(\w+) ([^;]+);", body):
        for name in names.split(","):
            pointer, name, sizes = re.fullmatch(r"\s*(\*?)(\w+)(\[AXES\])?\s*", name).groups()  # type: ignore[union-attr]
            one = ctypes.c_void_p if pointer else types[kind]
            fields.append((name, one * library.AXES if sizes else one))
    return fields


@pytest.mark.parametrize(("name", "struct"), [("Problem", library.Problem), ("Tensors", library.TensorAddresses)])
def test_python_and_the_kernels_declare_the_same_structures(name: str, struct: type[ctypes.Structure]) -> None:
    assert declared(name) == struct._fields_
    size = getattr(kernels().library, f"{name.lower()}_bytes")()
    assert size == ctypes.sizeof(struct)


def test_a_tensor_of_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="dwieght"):
        launch.launch("backward", None, {"dwieght": torch.zeros(1)})


def test_python_and_the_kernels_have_the_same_constants() -> None:
    header = (ROOT / "csrc" / "interface.h").read_text()
    constants = {name: int(value) for name, value in re.findall(r"\b([A-Z][A-Z0-9_]+) = (\d+)", header)}
    modules = vars(native_problem) | vars(limits) | vars(transform)
    ours = {name: value for name, value in modules.items() if name in constants}
    assert ours == {name: constants[name] for name in ours}
    assert {"DENSE", "SEPARABLE", "FACTORED", "DIRECT", "GENERAL", "MAX_STRIDE", "MAX_ORDER"} <= set(ours)
    passes = {"forward": constants["FORWARD"], "backward": constants["BACKWARD"], "expand_filters": 2}
    assert passes == native_problem.PASSES
    assert (constants["INTERFACE_VERSION"], constants["AXES"]) == (library.VERSION, library.AXES)
    assert {t: constants[name] for t, name in zip(library.DTYPES, ("FLOAT32", "FLOAT64", "BFLOAT16"), strict=True)} == (
        library.DTYPES
    )
    assert constants["MAX_ELEMENTS"] >= max(limits.MAX_KERNEL_ELEMENTS.values())


# ---- the definition, at sizes that are awkward for vectors, tiles and threads ------------------------------------


@pytest.mark.parametrize("group", [C1, C4, D4, stress.DIAGONAL], ids=lambda group: group.name)
@pytest.mark.parametrize("kind", ["dense", "lifting"])
def test_the_definition_of_the_stress_program_is_that_of_the_oracle(kind: str, group: PointGroup) -> None:
    """Its gradients are those of finite differences, exact for a function that is linear in each argument."""
    order = 1 if kind == "lifting" else group.order
    for kernel, stride, padding, dilation in ((3, 1, 1, 1), (2, 2, 0, 1), (3, 3, 2, 2)):
        spec = ConvSpec.parse(group, kind, kernel, stride, padding, dilation)
        x, weight = np.random.randn(2, order, 3, 7, 8), np.random.randn(4, 3, order, kernel, kernel)  # noqa: NPY002
        definition = stress.Definition(x, weight, spec)
        y, logical = definition.forward(), x[:, 0] if kind == "lifting" else x.swapaxes(1, 2)
        expected = oracle.layer(logical, {"weight": weight}, group, stride, padding, dilation)
        np.testing.assert_allclose(y.swapaxes(1, 2), expected, atol=1e-12)
        grad, (dx, dweight) = np.random.randn(*y.shape), definition.gradients(np.random.randn(*y.shape))  # noqa: NPY002
        dx, dweight = definition.gradients(grad)
        step_x, step_weight = np.random.randn(*x.shape), np.random.randn(*weight.shape)  # noqa: NPY002
        by_x = (stress.Definition(step_x, weight, spec).forward() * grad).sum()
        by_weight = (stress.Definition(x, step_weight, spec).forward() * grad).sum()
        np.testing.assert_allclose([by_x, by_weight], [(dx * step_x).sum(), (dweight * step_weight).sum()])


def test_random_problems() -> None:
    counts = stress.check(120, seed=38)
    assert counts["empty"] > 3
    what = (
        "in 1-D",
        "in 3-D",
        "with norm",
        "with residual",
        "in blocks",
        "gc of long rows",
        "of packed columns",
        "divided by outputs",
        "on shuffled p4m",
        "1 threads",
        "2 threads",
        "torch.bfloat16",
    )
    assert min(counts[name] for name in (*KINDS, *what)) > 2


@pytest.mark.parametrize(
    "group", [D2, C4, D4, stress.SHUFFLED, as_group("reflection", 1), as_group("C4", 3)], ids=lambda group: group.name
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [1, 2])
def test_small_feature_maps_with_packed_columns_are_as_defined(group: PointGroup, kind: str, stride: int) -> None:
    for width, dtype in ((2, torch.float64), (3, torch.float32), (5, torch.float32), (4, torch.bfloat16)):
        spec = ConvSpec.parse(group, "dense", 3, stride, 1)
        problem = stress.Problem(spec, 3, 96, 4, (width,) * group.dimension, dtype, kind, True, True, 2)
        assert problem.is_packed
        assert problem.check() < 1, problem


@pytest.mark.parametrize("group", [C4, D4, stress.SHUFFLED, as_group("C4", 3)], ids=lambda group: group.name)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [1, 2])
def test_many_channels_on_few_pixels_are_as_defined(group: PointGroup, kind: str, stride: int) -> None:
    spec = ConvSpec.parse(group, "dense", 3, stride, 1)
    inputs, outputs = (97, 190) if group.order == 8 else (190, 191)
    for threads, norm, dtype in ((1, True, torch.float32), (3, False, torch.float64), (2, True, torch.bfloat16)):
        size = (2, 3, 2)[: group.dimension]
        problem = stress.Problem(spec, 2, inputs, outputs, size, dtype, kind, True, norm, threads, norm, norm)
        assert problem.is_by_outputs
        assert problem.check() < 1, problem
        saves = native_conv(spec).new_products(problem.draw_inputs()) is not None
        assert saves == (kind == "gc")


@pytest.mark.parametrize("group", [C1, D2, C4, D4, stress.DIAGONAL, stress.SHUFFLED], ids=lambda group: group.name)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_every_width_beside_that_of_vectors(group: PointGroup, kind: str, stride: int) -> None:
    for width in (1, 2, 4, 7, 8, 9, 15, 16, 17, 32, 33):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            spec = ConvSpec.parse(group, "dense", 3, stride, 1)
            size = (1 + 18 // width, width)
            problem = stress.Problem(spec, 2, 3, 5, size, dtype, kind, True, True, 1)
            assert problem.check() < 1, problem


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_largest_kernel_is_as_defined(kind: str, stride: int) -> None:
    spec = ConvSpec.parse(D4, "dense", 7, stride, 3)
    for size in ((1, 1), (5, 9), (16, 16), (70, 31)):
        assert stress.Problem(spec, 2, 2, 3, size, torch.float64, kind, True, True, 2).check() < 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_kernels_that_reach_far_beyond_their_images(kind: str, stride: int) -> None:
    """The widest extent, 64 pixels, around images of one pixel and of a few; several images, and bands of one."""
    for dilation, padding, size, batch in ((31, 31, (1, 1), 9), (31, 40, (3, 5), 9), (21, 63, (64, 2), 1)):
        spec = ConvSpec.parse(D4, "dense", 3, stride, padding, dilation)
        assert stress.Problem(spec, batch, 2, 3, size, torch.float64, kind, True, True, 2).check() < 1


def test_the_general_transform_is_tested_beside_the_fast_ones() -> None:
    general = (C1, D2, stress.DIAGONAL, stress.BOTH_DIAGONALS, stress.SHUFFLED)
    assert {transform.kernel_transform(group)[0] for group in general} == {transform.GENERAL}
    fast = {C4: transform.CYCLIC4, D4: transform.DIHEDRAL4, as_group("C4v", 3): transform.DIHEDRAL4}
    fast |= {as_group("O"): transform.OCTAHEDRAL, as_group("Oh"): transform.FULL_OCTAHEDRAL}
    assert {group: transform.kernel_transform(group)[0] for group in fast} == fast


WORK = {
    "one large image": (1, 3, (130, 90)),
    "many small images": (60, 3, (5, 5)),
    "some large images": (5, 3, (64, 50)),
    "remainder of a tile": (7, 40, (9, 9)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("work", WORK)
def test_the_number_of_threads_changes_nothing_but_rounding(work: str, kind: str) -> None:
    batch, channels, size = WORK[work]
    problem = stress.Problem(SPEC, batch, channels, 4, size, torch.float32, kind, True, True, 1)
    conv, inputs = native_conv(SPEC), problem.draw_inputs()
    x = inputs.x
    grad = torch.randn(batch, 8, 4, *size)
    lifting, images, filters = lifting_of(SPEC), x[:, :1, :3], torch.randn(4, 3, 1, 3, 3)
    images, maps = images.contiguous(), x.flatten(0, 1)

    def results(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        found = (
            *conv.forward(inputs, stress.EPS, return_stats=True),
            *conv.backward(grad, inputs, stress.EPS, batch_stats=True),
            *lifting.forward(ConvInputs(images, filters), return_stats=True),
        )
        found += lifting.backward_directly(grad, ConvInputs(images, filters))
        return [*(t for t in found if t is not None), *batch_statistics(maps)]

    expected = results(1)
    for threads in (1, 2, 3):
        found = results(threads)
        for ours, again, theirs in zip(found, results(threads), expected, strict=True):
            assert torch.equal(ours, again)  # bitwise
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_fewer_threads_may_come_than_were_asked_for() -> None:
    command = [sys.executable, "-m", "tests.stress.native", "--problems", "25", "--library", str(library.FOLDER)]
    environment = os.environ | {"OMP_THREAD_LIMIT": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert "25 problems clean" in done.stdout, done.stderr


class Maps(Dataset[Tensor]):
    """Convolves as it loads."""

    def __init__(self, convolution: nn.Module, x: Tensor) -> None:
        self.convolution, self.x = convolution, x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            return self.convolution(self.x[index : index + 1])[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Python 3.12: torch's threads sleep
def test_workers_of_a_data_loader_compute_what_their_parent_does() -> None:
    torch.set_num_threads(2)
    convolution, x = layer(), torch.randn(6, 3, 8, 20, 20)
    expected = convolution(x)  # with threads, which a forked process does not have
    (found,) = DataLoader(Maps(convolution, x), batch_size=6, num_workers=1)
    torch.testing.assert_close(found, expected.detach())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 17), (17, 1)])
def test_maps_of_a_pixel_or_a_row(kind: str, size: tuple[int, int]) -> None:
    problem = stress.Problem(SPEC, 2, 3, 4, size, torch.float64, kind, True, True, 1, residual=True)
    assert problem.check() < 1
    convolution, x = layer(kind), torch.randn(2, 3, 8, *size)
    torch.testing.assert_close(convolution(x).double(), as_defined(convolution, x, padding=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_gives_an_empty_output_and_zero_gradients(kind: str) -> None:
    convolution, x, norm = layer(kind), torch.zeros(0, 3, 8, 5, 6, requires_grad=True), norm_of()
    leaves = [x, norm.gamma, norm.beta, *convolution.parameters()]
    y = run_fused(convolution, x, norm_of_leaves(norm), return_stats=True)
    assert y.y.shape == (0, 4, 8, 5, 6)
    assert y.stats is None
    gradients = torch.autograd.grad(y.y.sum(), leaves)
    assert [g.shape for g in gradients] == [leaf.shape for leaf in leaves]  # type: ignore[union-attr]
    assert not any(g.any() for g in gradients)
    with pytest.raises(ArgumentError, match="x is 1×0 pixels"):
        layer(kind)(torch.zeros(1, 3, 8, 1, 0))


def norm_of_leaves(norm: BatchNormReLU) -> BatchNormReLU:
    for t in (norm.gamma, norm.beta):
        assert t is not None
        t.requires_grad_()
    return norm


@pytest.mark.parametrize("backend", ["native", "auto"])
def test_a_batch_of_nothing_leaves_the_running_statistics_alone(backend: str) -> None:
    net = sepgroupy.fuse(nn.Sequential(sepgroupy.GroupBatchNorm2d(3), nn.ReLU(), layer(backend=backend)))
    before = {name: value.clone() for name, value in net[0].state_dict().items()}
    net(torch.zeros(0, 3, 8, 5, 6, requires_grad=True)).sum().backward()
    torch.testing.assert_close(net[0].state_dict(), before | {"num_batches_tracked": torch.tensor(1)})
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())


@pytest.mark.parametrize(("inputs", "size"), [(0, (5, 6)), (3, (0, 6))])
def test_sums_over_nothing_are_the_bias(inputs: int, size: tuple[int, int]) -> None:
    conv = native_conv(ConvSpec.parse(D4, "dense", 1))
    given = ConvInputs(torch.zeros(2, 8, inputs, *size), torch.zeros(4, inputs, 8, 1, 1))
    if 0 in size:
        with pytest.raises(ArgumentError, match="pixels"):
            conv.forward(given._replace(bias=torch.ones(4)))
    else:
        y, *stats = conv.forward(given._replace(bias=torch.arange(4.0)), return_stats=True)
        assert stats == [None, None]
        assert torch.equal(y, torch.arange(4.0).view(-1, 1, 1).expand(2, 8, 4, *size))
        assert not conv.forward(given)[0].any()
        _, dweight, *_ = conv.backward(y, given)
        assert dweight is not None
        assert dweight.shape == (4, 0, 8, 1, 1)
        assert conv.expand_filters(given.x.shape, given.weight, None).numel() == 0
        images, filters = torch.zeros(2, 1, 0, *size), torch.zeros(4, 0, 1, 1, 1)
        _, dweight, _, dbias = lifting_of(conv.spec).backward_directly(y, ConvInputs(images, filters))
        assert dweight is not None
        assert dweight.numel() == 0
        assert torch.equal(dbias, y.sum((0, 1, 3, 4)))


# ---- expanded filters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [C4, D4, stress.DIAGONAL], ids=lambda group: group.name)
def test_expanded_filters_give_the_same_bits(group: PointGroup, kind: str, dtype: torch.dtype) -> None:
    lanes = set()
    for stride in (1, 2, 3):
        spec = ConvSpec.parse(group, "dense", 3, stride, 1)
        conv = native_conv(spec)
        for width in (7, 8, 16, 24, 32, 48):  # rows that fill no vectors, narrow ones and wide ones
            lanes.add(conv.filter_layout(width, dtype)[0])
            problem = stress.Problem(spec, 2, 3, 5, (9, width), dtype, kind, True, True, 1)
            inputs = problem.draw_inputs()
            expected = conv.forward(inputs, stress.EPS, return_stats=True)
            expanded = conv.expand_filters(inputs.x.shape, inputs.weight, inputs.depthwise)
            garbage = inputs._replace(weight=torch.full_like(inputs.weight, math.nan))  # not read
            found = conv.forward(garbage, stress.EPS, return_stats=True, expanded=expanded)
            for ours, theirs in zip(found, expected, strict=True):
                assert ours is not None
                assert torch.equal(ours, theirs)  # type: ignore[arg-type]
    wide = dtype is torch.float32 and "avx512" in kernels().summary
    assert len(lanes) == 1 + wide


@pytest.mark.parametrize(("channels", "expansions"), [(4, 0), (64, 1)])
def test_only_filters_of_many_values_are_cached(
    channels: int, expansions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "NATIVE_MIN_REUSED", 2**14)
    cached, expand = [], Native.expand_filters_for_reuse
    monkeypatch.setattr(Native, "expand_filters_for_reuse", lambda *args: (cached.append(1), expand(*args))[1])
    convolution, x = GroupConv2d(channels, channels, 3, group="p4m"), torch.randn(1, channels, 8, 5, 5)
    with torch.no_grad():
        y = convolution(x)
        with cached_filters(convolution):
            assert torch.equal(convolution(x), y)
            assert torch.equal(convolution(x), y)
    assert len(cached) == expansions


@pytest.mark.parametrize("kind", [*KINDS, "lifting"])
@pytest.mark.parametrize("padding", [1, "same"])
def test_cached_filters_give_the_same_bits_for_every_image_size(kind: str, padding: int | str) -> None:
    """Filters are expanded for one size, and used for another of the same layout alone."""
    kernel = 3 if padding == 1 else 4
    group = C1 if padding == "same" else D4  # of an even kernel, so that both sides are padded differently
    if kind == "lifting":
        convolution: nn.Module = LiftingConv2d(3, 4, kernel, padding=padding, group=group)
    else:
        convolution = GroupConv2d(3, 4, kernel, padding=padding, group=group, kind=kind, backend="native")
    axes = (3,) if kind == "lifting" else (3, group.order)
    images = [torch.randn(2, *axes, rows, width) for rows in (5, 40) for width in (7, 8, 9, 15, 16, 17, 32, 48)]
    with torch.no_grad():
        expected = [convolution(x) for x in images]
        with cached_filters(convolution):
            for _ in range(2):
                assert all(torch.equal(convolution(x), y) for x, y in zip(images, expected, strict=True))
            with torch.autocast("cpu", torch.bfloat16):
                short = convolution(images[0])
    torch.testing.assert_close(short.float(), expected[0], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_filters_without_values_are_not_cached(kind: str) -> None:
    convolution, x = layer(kind).to("meta"), torch.randn(2, 3, 8, 5, 6, device="meta")
    with torch.no_grad(), cached_filters(convolution):
        assert convolution(x).shape == convolution(x).shape == (2, 4, 8, 5, 6)


# ---- blocks of channels ------------------------------------------------------------------------------------------


def blocks(kind: str, backend: str = "native", group: PointGroup = C4, per_block: int = 1, **options: Any) -> Any:
    """Return a layer with three blocks of channels, in float64."""
    channels = 3 * per_block
    if kind == "lifting":
        return LiftingConv2d(channels, 6, 3, groups=3, group=group, backend=backend, **options).double()
    return GroupConv2d(channels, 6, 3, groups=3, group=group, kind=kind, backend=backend, **options).double()


BLOCK_GEOMETRIES: tuple[dict[str, Any], ...] = (
    {"padding": 1}, {"stride": 2, "padding": 1}, {"stride": (3, 1), "dilation": (1, 2), "padding": (0, 3)},
    {"padding": "same", "padding_mode": "circular"},
)  # fmt: skip


@pytest.mark.parametrize("kind", [*KINDS, "lifting"])
@pytest.mark.parametrize("per_block", [1, 2])
@pytest.mark.parametrize("options", BLOCK_GEOMETRIES, ids=str)
def test_blocks_of_channels_have_the_results_and_gradients_of_the_definition(
    kind: str, per_block: int, options: dict[str, Any]
) -> None:
    group = D2 if "dilation" in options else C4
    ours, reference = (blocks(kind, of, group, per_block, **options) for of in ("native", "expanded"))
    reference.load_state_dict(ours.state_dict())
    axes = (3 * per_block,) if kind == "lifting" else (3 * per_block, group.order)
    x = torch.randn(2, *axes, 8, 11, dtype=torch.float64, requires_grad=True)
    y, expected = ours(x), reference(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, *ours.parameters()], grad)
    wanted = torch.autograd.grad(expected, [x, *reference.parameters()], grad)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    with torch.no_grad(), cached_filters(ours):
        assert torch.equal(ours(x), y)
        assert torch.equal(ours(x), y)


@pytest.mark.parametrize("kind", [*KINDS, "lifting"])
@pytest.mark.parametrize("options", BLOCK_GEOMETRIES[:2], ids=str)
def test_more_threads_than_blocks_of_channels_change_nothing_but_rounding(kind: str, options: dict[str, Any]) -> None:
    convolution, results = blocks(kind, **options), []
    x = torch.randn(1, 3, *(() if kind == "lifting" else (4,)), 9, 11, dtype=torch.float64, requires_grad=True)
    for threads in (1, 8):
        torch.set_num_threads(threads)
        y = convolution(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *convolution.parameters()])))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["dense", "gc", "lifting"])
def test_blocks_of_channels_are_differentiable_twice_and_mapped(kind: str) -> None:
    convolution = blocks(kind, padding=1, stride=2)
    x = torch.randn(1, 3, *(() if kind == "lifting" else (4,)), 4, 5, dtype=torch.float64, requires_grad=True)
    parameters = dict(convolution.named_parameters())

    def function(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(convolution, dict(zip(parameters, values, strict=True)), (x,))

    leaves = (x, *parameters.values())
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)
    mapped = torch.func.vmap(convolution)(torch.stack([x, 2 * x]))
    torch.testing.assert_close(mapped, torch.stack([convolution(x), convolution(2 * x)]))


@pytest.mark.parametrize("kind", ["dense", "gc", "lifting"])
@pytest.mark.usefixtures("fresh_compiler")
def test_blocks_of_channels_are_one_operator_to_a_compiler(kind: str) -> None:
    convolution = blocks(kind, "auto", padding=1).float()
    x = torch.randn(2, 3, *(() if kind == "lifting" else (4,)), 6, 7, requires_grad=True)
    counter = torch._dynamo.testing.EagerAndRecordGraphs()
    torch.compile(convolution, fullgraph=True, backend=counter)(x)
    assert counter.graphs[0].code.count("torch.ops.sepgroupy.group_conv") == 1
    compiled, results = torch.compile(convolution, fullgraph=True, backend="aot_eager"), []
    for function in (convolution, compiled):
        y = function(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *convolution.parameters()])])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(convolution(x).float(), results[0][0], rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("kind", "group", "channels", "chosen"),
    [
        ("dense", C4, 1, "native"), ("dense", C4, 2, "expanded"), ("dense", D4, 1, "expanded"),
        ("g", D4, 1, "native"), ("g", D4, 2, "expanded"), ("gc", D4, 6, "native"), ("gc", D4, 7, "two_step"),
        ("lifting", D4, 5, "native"), ("lifting", D4, 6, "expanded"),
    ],
)  # fmt: skip
def test_blocks_of_few_channels_are_the_kernels(kind: str, group: PointGroup, channels: int, chosen: str) -> None:
    spec = ConvSpec.parse(group, kind, 3, groups=2)
    axes = (2 * channels,) if kind == "lifting" else (2 * channels, group.order)
    assert select_backend(spec, torch.zeros(1, *axes, 5, 5)).name == chosen


@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_with_blocks_of_channels_is_fused_without_them(kind: str) -> None:
    """The direct convolution reads no norm and adds nothing."""
    norm = sepgroupy.nn.GroupBatchNorm2d
    parts = [norm(3), nn.ReLU(), GroupConv2d(3, 6, 3, groups=3, group=C4, kind=kind, padding=1), norm(6), nn.ReLU()]
    net = nn.Sequential(*parts, GroupConv2d(6, 4, 3, group=C4, kind=kind))
    x = torch.randn(4, 3, 4, 9, 9)
    for training in (True, False):
        plain, fused = net.train(training), sepgroupy.fuse(copy.deepcopy(net))
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-5)
        assert ("3", "4", "5") in fusion.fusion_report(fused).fused


# ---- what is fused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_statistics_residual_and_shared_input(kind: str, training: bool) -> None:
    convolution, x, norm = layer(kind), torch.randn(2, 3, 8, 9, 7, requires_grad=training), norm_of()
    residual = torch.randn(2, 4, 8, 9, 7)
    with torch.set_grad_enabled(training):
        y, shared, stats = run_fused(convolution, x, norm, residual, return_stats=True, share_x=True)
    assert stats is not None
    merged = x.detach().transpose(1, 2).flatten(0, 1)
    read = norm(merged).unflatten(0, (2, 8)).transpose(1, 2)
    expected = as_defined(convolution, read, padding=1) + residual
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    values = y.detach().double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(stats[0].double(), values.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stats[1].double(), values.var(1, correction=0), rtol=1e-4, atol=1e-5)
    assert not any(s.requires_grad for s in stats)
    assert torch.equal(shared, x)
    assert shared.requires_grad == training
    assert run_fused(convolution, x).stats is None


def test_an_input_that_needs_no_gradient_is_shared_as_it_is() -> None:
    x = torch.randn(2, 3, 8, 6, 6)
    y, shared, _ = run_fused(layer(), x, share_x=True)
    assert y.requires_grad
    assert shared is x


# ---- NaN and infinity --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "lifting"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_pixel_that_is_not_finite_reaches_its_window_and_no_more(kind: str, stride: int, value: float) -> None:
    """The window over all group elements; beyond it every bit is what it is with another pixel there."""
    for width, dilation in ((11, 1), (16, 1), (37, 2)):
        spec = ConvSpec.parse(D4, "lifting" if kind == "lifting" else "dense", 3, stride, 2, dilation)
        conv = native_conv(spec)
        for column in (0, width // 2, width - 1):  # in a vector, and in the remainder of a row
            x = torch.randn(3, 1 if kind == "lifting" else 8, 3, 9, width)
            weight, depthwise = filters_of(kind, 4, 3, 8) if kind != "lifting" else (torch.randn(4, 3, 1, 3, 3), None)
            finite, _, _ = conv.forward(ConvInputs(x, weight, depthwise))
            at = (1, 0 if kind == "lifting" else 2, 2, 4, column)
            indicator = torch.zeros_like(x)
            indicator[at], x[at] = 1, value
            y, _, _ = conv.forward(ConvInputs(x, weight, depthwise))
            kernel = np.ones((1, 3, x.shape[1], 3, 3))
            window = stress.Definition(indicator.double().numpy(), kernel, spec).forward().any((1, 2))
            inside = torch.from_numpy(window)[:, None, None].expand(y.shape)
            assert inside.any()
            assert torch.equal(y[~inside], finite[~inside])
            assert not y[inside].isfinite().any()


@pytest.mark.parametrize("kind", ["dense", "gc"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_pixel_that_is_not_finite_stays_in_its_block_of_channels(kind: str, stride: int, value: float) -> None:
    spec = ConvSpec.parse(D4, "dense", 3, stride, 1, groups=2)
    x, (weight, depthwise) = torch.randn(2, 8, 4, 9, 11), filters_of(kind, 6, 2, 8)
    if depthwise is not None:
        depthwise = depthwise[:, :1]
    finite, _, _ = native_conv(spec).forward(ConvInputs(x, weight, depthwise))
    x[1, 2, 3, 4, 5] = value
    y, _, _ = native_conv(spec).forward(ConvInputs(x, weight, depthwise))
    inside = torch.zeros_like(y, dtype=torch.bool)
    reached = (
        slice(4 // stride - (stride == 1), 4 // stride + 2 - (stride == 2)),
        slice(-(-4 // stride), 6 // stride + 1),
    )
    inside[(1, slice(None), slice(3, 6), *reached)] = True
    assert torch.equal(y[~inside], finite[~inside])
    assert not y[inside].isfinite().any()


@pytest.mark.parametrize("kind", ["dense", "gc"])
@pytest.mark.parametrize("column", [0, 5, 10])  # in a vector, and in the remainder of a row
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_passes_a_norm_as_by_definition(kind: str, column: int, value: float) -> None:
    x = torch.randn(3, 3, 8, 9, 11)
    x[1, 2, 3, 4, column] = value
    convolution, norm = layer(kind), norm_of()
    y = run_fused(convolution, x, norm).y
    read = norm(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (3, 8)).transpose(1, 2)
    with np.errstate(invalid="ignore"):
        expected = as_defined(convolution, read, padding=1).float()
    reached = ~expected.isfinite()
    assert reached.any() == (value != -math.inf)  # which the ReLU makes zero
    assert (~y.isfinite())[reached].all()
    alone = torch.ones_like(reached)
    alone[1, :, :, 3:6, max(0, column - 1) : column + 2] = False
    torch.testing.assert_close(y[alone], expected[alone], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("column", [0, 10])
def test_gradients_at_what_is_not_finite(column: int) -> None:
    x = torch.randn(2, 3, 8, 5, 11)
    x[0, 1, 2, 3, column] = math.nan
    convolution, norm = layer(), norm_of()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    run_fused(convolution, ours, norm).y.backward(torch.ones(2, 4, 8, 5, 11))
    read = norm(theirs.transpose(1, 2).flatten(0, 1))
    weight = convolution.weight.detach().double().numpy()
    definition = stress.Definition(read.detach().double().numpy().reshape(2, 8, 3, 5, 11), weight, SPEC)
    dread, _ = definition.gradients(np.ones((2, 8, 4, 5, 11)))
    read.backward(torch.from_numpy(dread).float().flatten(0, 1))
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


# ---- derivatives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [None, False, True])  # no norm, one of fixed statistics, one of the batch's own
@pytest.mark.parametrize("group", [C4, D4, stress.DIAGONAL], ids=lambda group: group.name)
def test_first_and_second_derivatives_are_those_of_finite_differences(
    kind: str, batch: bool | None, group: PointGroup
) -> None:
    # At stride 1 blocks of a g filter stay in factors.
    spec = ConvSpec.parse(group, "dense", 3, 1 if kind == "g" else 2, 1)
    x = torch.randn(2, group.order, 2, 4, 5).double()
    weight, depthwise = (None if t is None else t.double() for t in filters_of(kind, 2, 2, group.order))
    affine = (torch.rand(2).double() + 0.5, torch.randn(2).double())
    given = [x, weight, *([depthwise] if depthwise is not None else []), torch.randn(2).double()]
    given += [] if batch is None else affine
    given += [torch.randn(2, group.order, 2, *spec.output_size(4, 5)).double()]  # a residual
    conv = native_conv(spec)

    def function(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        others = iter(leaves)
        x, weight, depthwise, bias = next(others), next(others), None if kind == "dense" else next(others), next(others)
        inputs, eps = ConvInputs(x, weight, depthwise, bias), 0.0
        if batch is not None:
            maps, eps = x.detach().movedim(2, 0).flatten(1), 1e-5
            mean, var = (maps.mean(1), maps.var(1, correction=0)) if batch else (x.new_ones(2) * 0.1, x.new_ones(2))
            inputs = inputs._replace(gamma=next(others), beta=next(others), mean=mean, var=var)
        inputs = inputs._replace(residual=next(others))
        y, again, _, _ = backend._convolve(inputs, eps, bool(batch), conv, share_x=True)
        assert again is not None
        return y, again.sin()

    leaves = [t.requires_grad_() for t in given if t is not None]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_derivatives_of_lifting_and_of_pooling() -> None:
    leaves = [torch.randn(shape).double().requires_grad_() for shape in ((2, 1, 3, 4, 5), (4, 3, 1, 3, 3), (4,))]

    def lift(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return backend._convolve(ConvInputs(x, weight, bias=bias), 0.0, False, lifting_of(SPEC))[0]

    def pool(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return norm_relu_max_pool(x, BatchNormReLU(x.new_zeros(3), x.new_ones(3), gamma, beta, 1e-5, False))

    assert torch.autograd.gradcheck(lift, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(lift, leaves, fast_mode=True)
    leaves = [torch.randn(shape).double().requires_grad_() for shape in ((2, 3, 5, 6), (3,), (3,))]
    assert torch.autograd.gradcheck(pool, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(pool, leaves, fast_mode=True)


@pytest.mark.parametrize("batch_stats", [False, True])
@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), (0.0, math.inf), (0.0, 6.0)], ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (3, 2, 1, 1), (1, 4, 8, 8)], ids=str)
def test_norm_sum_and_clamping_are_those_of_torch(
    shape: tuple[int, ...], with_residual: bool, bounds: tuple[float, float], batch_stats: bool
) -> None:
    channels = shape[1]
    leaves = [3 * torch.randn(size).double() for size in (shape, (channels,), (channels,), shape)]
    leaves = [leaf.requires_grad_() for leaf in leaves[: 4 if with_residual else 3]]
    var, mean = torch.var_mean(leaves[0].detach(), (0, 2, 3), unbiased=False)

    def by_kernel(x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None = None) -> Tensor:
        return norm_clamp(x, BatchNormReLU(mean, var, gamma, beta, 1e-5, batch_stats), residual, *bounds)

    def by_torch(x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None = None) -> Tensor:
        stats = (None, None) if batch_stats else (mean, var)
        y = F.batch_norm(x, *stats, gamma, beta, batch_stats, 0.0, 1e-5)
        return F.hardtanh(y if residual is None else y + residual, *bounds)

    grad = torch.randn(shape).double()
    found, wanted = (f(*leaves) for f in (by_kernel, by_torch))
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-10)
    expected = torch.autograd.grad(wanted, leaves, grad)
    torch.testing.assert_close(torch.autograd.grad(found, leaves, grad), expected, atol=1e-10, rtol=1e-10)
    for leaf, gradient in zip(leaves, expected, strict=True):  # each of them alone
        (alone,) = torch.autograd.grad(by_kernel(*leaves), leaf, grad)
        torch.testing.assert_close(alone, gradient, atol=1e-10, rtol=1e-10)
    if math.prod(shape) > channels:  # else the variance is 0
        assert torch.autograd.gradgradcheck(by_kernel, leaves, grad, fast_mode=True, atol=1e-4)
    plain = [leaf.detach().float() for leaf in leaves]
    mean, var = mean.float(), var.float()
    torch.testing.assert_close(by_kernel(*plain), by_torch(*plain), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("with_residual", [False, True])
def test_the_output_of_norm_and_clamping_is_saved_only_with_a_residual(with_residual: bool) -> None:
    x, ones, saved = torch.randn(2, 3, 4, 4, requires_grad=True), torch.ones(3), []
    residual = torch.randn(2, 3, 4, 4) if with_residual else None
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()), lambda t: t):
        y = norm_clamp(x, BatchNormReLU(ones, ones, None, None, 1e-5, False), residual, 0.0)
    assert x.data_ptr() in saved
    assert (y.data_ptr() in saved) == with_residual


def test_norm_and_clamping_refuse_tensors_of_other_shapes() -> None:
    x, ones = torch.randn(2, 3, 4, 4), torch.ones(3)
    with pytest.raises(ArgumentError, match=r"residual has shape \(2, 3, 4, 5\), not \(2, 3, 4, 4\)"):
        norm_clamp(x, BatchNormReLU(ones, ones, None, None, 1e-5, False), torch.randn(2, 3, 4, 5))
    with pytest.raises(ArgumentError, match="gamma has shape"):
        norm_clamp(x, BatchNormReLU(ones, ones, torch.ones(4), ones, 1e-5, False))


# ---- gradients that nobody needs ---------------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, dict[str, bool]]]:
    """Record each kernel that is launched: its name, its problem, and which tensors it is given."""
    calls: list[tuple[str, Any, dict[str, bool]]] = []

    def record(name: str, problem: Any, tensors: dict[str, Tensor | None]) -> None:
        calls.append((name, problem._obj, {field: t is not None for field, t in tensors.items()}))
        real(name, problem, tensors)

    real = launch.launch
    monkeypatch.setattr(launch, "launch", record)
    monkeypatch.setattr(native_batch_norm, "launch", record)
    return calls


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_x_reaches_the_kernel_through_four_files_in_one_direction(
    kind: str, grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, paths = ROOT / "src", []

    def record(*args: Any) -> None:
        files = [Path(frame.filename) for frame in traceback.extract_stack()[:-1]]
        paths.append([file.stem for file, _ in itertools.groupby(f for f in files if source in f.parents)])
        real(*args)

    real = launch.launch
    monkeypatch.setattr(launch, "launch", record)
    with torch.set_grad_enabled(grad):
        GroupConv2d(4, 4, 3, group="p4m", kind=kind)(torch.randn(1, 4, 8, 9, 9))
    assert paths == [["base", "backend", *(["convolution"] if grad else []), "launch"]]


def _names(wanted: set[str]) -> str:
    return "-".join(sorted(wanted))  # in the same order in every process


WANTED = [
    {"x"}, {"weight"}, {"depthwise"}, {"bias"}, {"gamma"}, {"beta"}, {"residual"}, {"gamma", "beta"},
    {"weight", "depthwise", "bias"}, {"x", "gamma", "beta"}, {"x", "weight"}, {"bias", "residual"},
    {"x", "weight", "depthwise", "bias", "gamma", "beta", "residual"},
]  # fmt: skip


@pytest.mark.parametrize("wanted", WANTED, ids=_names)
@pytest.mark.parametrize("batch_stats", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_computed_where_they_are_needed(
    kind: str, batch_stats: bool, wanted: set[str], launched: list[tuple[str, Any, dict[str, bool]]]
) -> None:
    given = tensors(kind)
    wanted = wanted & {name for name, t in given.items() if t is not None}
    if not wanted:
        return
    grad = torch.randn(2, 8, 4, 5, 6)

    def gradients(names: set[str]) -> dict[str, Tensor]:
        inputs = {n: None if t is None else t.clone().requires_grad_(n in names) for n, t in given.items()}
        y, *_ = backend._convolve(ConvInputs(**inputs), 1e-5, batch_stats, native_conv(SPEC), share_x=True)
        y.backward(grad)
        return {n: t.grad for n, t in inputs.items() if t is not None and t.grad is not None}

    expected = gradients({n for n, t in given.items() if t is not None and n not in ("mean", "var")})
    launched.clear()
    found = gradients(wanted)
    assert found.keys() == wanted
    assert all(torch.equal(found[name], expected[name]) for name in wanted)
    for_x, for_filters = bool(wanted & {"x", "gamma", "beta"}), bool(wanted & {"weight", "depthwise"})
    calls = [call for call in launched if call[0] == "backward"]
    assert len(calls) == (for_x or for_filters)
    for _, _, outputs in calls:
        assert outputs["dx"] == outputs["dgamma"] == outputs["dbeta"] == for_x
        assert outputs["dweight"] == for_filters
        assert outputs["ddepthwise"] == (for_filters and kind != "dense")


@pytest.mark.parametrize("inputs", [1, 3])  # of one channel, pixels are not gathered
@pytest.mark.parametrize("wanted", [{"x"}, {"weight"}, {"bias"}, {"x", "weight", "bias"}], ids=_names)
def test_lifting_computes_the_gradients_that_are_needed(
    inputs: int, wanted: set[str], launched: list[tuple[str, Any, dict[str, bool]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    convolution, x, calls = LiftingConv2d(inputs, 4, 3, group=D4), torch.randn(2, inputs, 7, 8), []
    leaves = {"x": x, "weight": convolution.weight, "bias": convolution.bias}
    of_images = native_convolution._images_grad
    monkeypatch.setattr(native_convolution, "_images_grad", lambda *args: (calls.append("x"), of_images(*args))[1])

    def gradients(names: set[str]) -> dict[str, Tensor]:
        for name, leaf in leaves.items():
            assert leaf is not None
            leaf.grad = None
            leaf.requires_grad_(name in names)
        convolution(x).square().sum().backward()
        return {name: leaf.grad for name, leaf in leaves.items() if leaf is not None and leaf.grad is not None}

    expected = gradients(set(leaves))
    launched.clear()
    calls.clear()
    found = gradients(wanted)
    assert found.keys() == wanted
    for name in wanted:  # the bias's alone is summed by PyTorch
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5 if name == "bias" else 0, atol=0)
    backward = [problem.kind for name, problem, _ in launched if name == "backward"]
    kind = native_problem.DIRECT if inputs == 1 else native_problem.GATHERED
    assert backward == ([kind] if "weight" in wanted else [])
    assert calls == (["x"] if "x" in wanted else [])


@pytest.mark.parametrize("batch_stats", [False, True])
@pytest.mark.parametrize("wanted", [{"x"}, {"gamma"}, {"beta"}, {"gamma", "beta"}, {"x", "gamma"}], ids=_names)
def test_pooling_computes_the_gradients_that_are_needed(
    wanted: set[str], batch_stats: bool, launched: list[tuple[str, Any, dict[str, bool]]]
) -> None:
    norm, x = norm_of(batch_stats=batch_stats), torch.randn(2, 3, 7, 6)
    leaves = {"x": x, "gamma": norm.gamma, "beta": norm.beta}

    def gradients(names: set[str]) -> dict[str, Tensor]:
        for name, leaf in leaves.items():
            assert leaf is not None
            leaf.grad = None
            leaf.requires_grad_(name in names)
        norm_relu_max_pool(x, norm).square().sum().backward()
        return {name: leaf.grad for name, leaf in leaves.items() if leaf is not None and leaf.grad is not None}

    expected = gradients(set(leaves))
    found = gradients(wanted)
    assert found.keys() == wanted
    assert all(torch.equal(found[name], expected[name]) for name in wanted)
    (_, _, given) = launched[-1]
    outputs = {name: given[name] for name in ("dx", "dgamma", "dbeta")}
    assert outputs == {"dx": "x" in wanted, **dict.fromkeys(("dgamma", "dbeta"), bool(wanted - {"x"}))}


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_networks_compute_the_gradients_that_remain(
    kind: str, launched: list[tuple[str, Any, dict[str, bool]]]
) -> None:
    """Of two layers and norms: frozen filters, a frozen first layer, and norms alone; fused and not."""
    norms = [sepgroupy.GroupBatchNorm2d(4), sepgroupy.GroupBatchNorm2d(4)]
    second = GroupConv2d(4, 4, 3, group=D4, kind=kind, backend="native")
    plain = nn.Sequential(layer(kind), norms[0], nn.ReLU(), second, norms[1], nn.ReLU())
    x, parameters = torch.randn(2, 3, 8, 7, 7), dict(plain.named_parameters())

    def gradients(net: nn.Module, wanted: set[str]) -> dict[str, Tensor]:
        for name, p in parameters.items():
            p.grad = None
            p.requires_grad_(name in wanted)
        launched.clear()
        net(x).square().sum().backward()
        return {name: p.grad for name, p in parameters.items() if p.grad is not None}

    of_norms = {name for name in parameters if name[0] in "14"}
    expected = gradients(plain, set(parameters))
    scale = max(float(g.abs().max()) for g in expected.values())
    for wanted in (of_norms, {name for name in parameters if name[0] in "34"}, {n for n in of_norms if n[0] == "4"}):
        for fused in (False, True):
            found = gradients(sepgroupy.fuse(plain) if fused else sepgroupy.fusion.restore(plain), wanted)
            assert found.keys() == wanted
            for name in wanted:
                torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5 * scale)
            calls = [outputs for name, _, outputs in launched if name == "backward"]
            assert len(calls) == (1 if any(name[0] in "13" for name in wanted) else 0)
            for outputs in calls:
                assert outputs["dweight"] == any(name.startswith("3.") for name in wanted)
                assert outputs["dx"] == any(name.startswith("1.") for name in wanted)
    sepgroupy.fusion.restore(plain)


# ---- as an operator ----------------------------------------------------------------------------------------------

NEEDS = [(True,) * 4, (True, False, False, False), (False, True, False, False), (False, False, True, True)]


@pytest.mark.parametrize("kind", [*KINDS, "lifting"])
@pytest.mark.parametrize("needs", NEEDS)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck looks at it
def test_the_operators_are_what_torch_expects(kind: str, needs: tuple[bool, ...]) -> None:
    arguments = operator_arguments(kind)
    for name, need in zip(("x", "weight", "depthwise", "bias", "residual"), (*needs, needs[0]), strict=True):
        if arguments[name] is not None:
            arguments[name].requires_grad_(need)
    if any(t is not None and t.requires_grad for t in list(arguments.values())[:5] if isinstance(t, Tensor)):
        torch.library.opcheck(operator.group_conv, tuple(arguments.values()))
    x, weight, depthwise, bias, _, *options = (a.detach() if isinstance(a, Tensor) else a for a in arguments.values())
    given = (torch.randn(2, 8, 4, 5, 6), x, weight, depthwise, bias, list(needs), *options)
    torch.library.opcheck(operator.group_conv_backward, given)
    tensors = zip((x, weight, depthwise, bias), needs, strict=True)
    sizes = [t.numel() if t is not None and need else 0 for t, need in tensors]
    assert [g.numel() for g in torch.ops.sepgroupy.group_conv_backward(*given)] == sizes


@pytest.mark.parametrize("kind", [*KINDS, "lifting"])
def test_the_operator_has_the_gradients_of_an_eager_layer(kind: str) -> None:
    """Whichever parameters are frozen."""
    given = operator_arguments(kind)
    names = [name for name in ("x", "weight", "depthwise", "bias", "residual") if given[name] is not None]
    inputs = ConvInputs(**{name: given[name] for name in names})
    for wanted in (*({name} for name in names), set(names)):
        for name in names:
            given[name].requires_grad_(name in wanted)
        leaves = [given[name] for name in sorted(wanted)]
        y = torch.ops.sepgroupy.group_conv(*given.values())
        expected, *_ = backend._convolve(
            inputs, 0.0, False, lifting_of(SPEC) if kind == "lifting" else native_conv(SPEC)
        )
        assert torch.equal(y, expected)
        ours, theirs = (torch.autograd.grad(t.square().sum(), leaves) for t in (y, expected))
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("kind", [*KINDS, "lifting"])
@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiler_sees_one_operator(kind: str) -> None:
    convolution, x = layer(kind), torch.randn(2, *input_axes(kind), 6, 6, requires_grad=True)
    counter = torch._dynamo.testing.EagerAndRecordGraphs()
    torch.compile(convolution, fullgraph=True, backend=counter)(x)
    (graph,) = counter.graphs
    assert graph.code.count("torch.ops.sepgroupy.group_conv") == 1
    compiled = torch.compile(convolution, fullgraph=True, backend="aot_eager")
    results = []
    for function in (convolution, compiled):
        y = function(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *convolution.parameters()])])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["native", "auto"])
@pytest.mark.parametrize("kind", [*KINDS, "lifting"])
@pytest.mark.usefixtures("fresh_compiler")
def test_sizes_are_symbols_to_a_compiler(kind: str, backend: str) -> None:
    stride = 2
    convolution = layer(kind, backend, stride=stride)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(convolution, dynamic=True, fullgraph=True, backend=counter)
    for batch, size in ((2, (6, 7)), (4, (9, 9)), (2, (32, 33)), (5, (16, 16)), (9, (64, 20))):
        x = torch.randn(batch, *input_axes(kind), *size, requires_grad=True)
        y = compiled(x)
        expected = as_defined(convolution, x, stride=stride, padding=1)
        torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
        y.sum().backward()
        assert x.grad is not None
    assert counter.frame_count == 1


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("backend", "times"), [("native", 1), ("auto", 0)])
@pytest.mark.usefixtures("fresh_compiler")
def test_only_a_forced_layer_exports_the_operator(backend: str, times: int, strict: bool) -> None:
    convolution, x = layer(backend=backend), torch.randn(2, 3, 8, 40, 40)
    sizes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(convolution, (x,), dynamic_shapes=sizes, strict=strict)
    assert program.graph_module.code.count("torch.ops.sepgroupy.group_conv") == times
    torch.testing.assert_close(program.module()(x[:1]), convolution(x[:1]))


@pytest.mark.usefixtures("fresh_compiler")
def test_one_compiled_function_lifts_images_of_any_number_of_channels() -> None:
    """Also of more than the kernels read, and where the compiler takes the number for a symbol."""

    @torch.compile(backend="aot_eager", fullgraph=True, dynamic=True)
    def compiled(lift: LiftingConv2d, x: Tensor) -> Tensor:
        return lift(x)

    for channels in (1, 3, 5, 6, 7):  # 5·9 elements are the most
        lift, x = LiftingConv2d(channels, 4, 3, group=D4), torch.randn(2, channels, 6, 6)
        torch.testing.assert_close(compiled(lift, x).double(), as_defined(lift, x), rtol=1e-4, atol=1e-4)


WITHOUT_KERNELS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "export": lambda lift, x: torch.export.export(lift, (x,)).module()(x),
    "vmap": lambda lift, x: torch.vmap(lambda one: lift(one[None])[0])(x),
    "jvp": lambda lift, x: torch.func.jvp(lift, (x,), (x,))[0],
}


@pytest.mark.parametrize("how", WITHOUT_KERNELS)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own, in jvp
def test_native_lifting_serves_exported_programs_and_function_transforms(how: str) -> None:
    lift, x = LiftingConv2d(3, 4, 3, padding=1, group=D4, backend="native"), torch.randn(2, 3, 9, 10)
    torch.testing.assert_close(WITHOUT_KERNELS[how](lift, x), lift(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_dtypes_are_computed_in_float32(dtype: torch.dtype) -> None:
    read = (
        dtype if dtype == torch.bfloat16 else torch.float32
    )  # the dtype in which the kernels read what autocast converts
    lift, images = LiftingConv2d(3, 4, 3, group=D4), torch.randn(2, 3, 6, 6)
    expected = lift(images.to(read).float()).to(dtype)
    with torch.autocast("cpu", dtype):
        assert torch.equal(lift(images), expected)
    convolution, x = layer(), torch.randn(2, 3, 8, 6, 6)
    expected = convolution(x.to(read).float())
    with torch.autocast("cpu", dtype):
        assert select_backend(convolution.spec, x.to(dtype)).name == "native"
        y = convolution(x)
    assert y.dtype is dtype
    assert torch.equal(y, expected.to(dtype))
    short = convolution.to(dtype)
    exact = {name: value.float() for name, value in short.state_dict().items()}
    expected = torch.func.functional_call(layer(), exact, (x.to(dtype).float(),))
    assert torch.equal(short(x.to(dtype)), expected.to(dtype))


BFLOAT16_CASES: list[dict[str, Any]] = [
    {}, {"kind": "g"}, {"kind": "gc"}, {"kind": "lifting"}, {"kind": "gc", "stride": 2}, {"stride": 3, "padding": 2},
    {"kind": "gc", "group": C4, "padding": 0}, {"kind": "gc", "padding": "same", "padding_mode": "circular"},
    {"kind": "lifting", "stride": 2}, {"group": C4}, {"kind": "g", "dilation": 2, "padding": 2},
]  # fmt: skip


@pytest.mark.parametrize("size", [(5, 7), (16, 16), (3, 33), (40, 8)], ids=str)
@pytest.mark.parametrize("options", BFLOAT16_CASES, ids=str)
def test_maps_in_bfloat16_are_read_exactly_and_rounded_once(options: dict[str, Any], size: tuple[int, int]) -> None:
    convolution, group = layer(**options), options.get("group", D4)
    axes = (3,) if options.get("kind") == "lifting" else (3, group.order)
    x = torch.randn(2, *axes, *size).bfloat16().requires_grad_()
    exact = x.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = convolution(x)
    expected = convolution(exact)
    assert torch.equal(y, expected.bfloat16())
    grad = torch.randn_like(y)
    dx, *found = torch.autograd.grad(y, [x, *convolution.parameters()], grad)
    dexact, *wanted = torch.autograd.grad(expected, [exact, *convolution.parameters()], grad.float())
    assert (dx.float() - dexact).norm() <= 2**-8 * dexact.norm()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for short in (copy.deepcopy(convolution).bfloat16(), convolution):  # parameters in bfloat16, then in float32
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=short is convolution):
            alone = short(x)
            with cached_filters(short):
                assert all(torch.equal(short(x), alone) for _ in range(2))
        assert alone.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_stats", [False, True])
def test_what_is_fused_reads_and_writes_bfloat16(kind: str, batch_stats: bool) -> None:
    convolution, norm = layer(kind), norm_of(batch_stats=batch_stats)
    leaves = [torch.randn(2, channels, 8, 9, 7).bfloat16().requires_grad_() for channels in (3, 4)]
    exact = [leaf.detach().float().requires_grad_() for leaf in leaves]
    results = []
    for x, residual in (leaves, exact):
        y, shared, stats = run_fused(convolution, x, norm, residual, return_stats=True, share_x=True)
        assert stats is not None
        grads = torch.autograd.grad((y.float() * 3).sum() + shared.float().square().sum(), [x, residual])
        results.append((y, stats, grads))
    (y, stats, grads), (expected, _, wanted) = results
    assert torch.equal(y, expected.bfloat16())
    values = y.detach().double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(stats[0].double(), values.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stats[1].double(), values.var(1, correction=0), rtol=1e-4, atol=1e-5)
    for found, gradient in zip(grads, wanted, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.float() - gradient).norm() <= 2**-7 * gradient.norm()  # rounded twice, with batch statistics


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [*KINDS, "lifting"])
@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_layer_under_autocast_is_the_eager_one(kind: str, dtype: torch.dtype) -> None:
    convolution, x = layer(kind), torch.randn(2, *input_axes(kind), 6, 6, requires_grad=True)
    results = []
    for function in (convolution, torch.compile(convolution, fullgraph=True, backend="aot_eager")):
        with torch.autocast("cpu", dtype):
            y = function(x)
        assert y.dtype == dtype
        results.append([y, *torch.autograd.grad(y.float().square().sum(), [x, *convolution.parameters()])])
    torch.testing.assert_close(*results, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("how", ["second", "forward", "vmap"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own, in jvp
def test_other_derivatives_and_maps_in_bfloat16(how: str) -> None:
    convolution, x = layer("gc"), torch.randn(2, 3, 8, 6, 6)
    results = []
    for cast in (torch.bfloat16, torch.float32):
        short = x.to(cast).requires_grad_()
        function = copy.deepcopy(convolution).to(cast)
        if how == "second":
            (dx,) = torch.autograd.grad(function(short).square().sum(), short, create_graph=True)
            found = torch.autograd.grad(dx.square().sum(), [*function.parameters()][:2])
        elif how == "forward":
            found = torch.func.jvp(function, (short.detach(),), (torch.ones_like(short),))
        else:
            found = (torch.vmap(lambda one: function(one.unsqueeze(0)).squeeze(0))(short.detach()),)  # noqa: B023
        assert all(t.dtype == cast for t in found)
        results.append([t.float() for t in found])
    for found, wanted in zip(*results, strict=True):
        assert (found - wanted).norm() <= 0.02 * wanted.norm()


def test_sums_of_bfloat16_are_not_rounded_on_the_way() -> None:
    convolution = GroupConv2d(3, 4, 1, group=D4, backend="native")
    x = torch.ones(4, 3, 8, 30, 30).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        convolution(x).backward(torch.ones(4, 4, 8, 30, 30).bfloat16())
    assert torch.equal(convolution.bias.grad, torch.full((4,), 28800.0))


def test_written_over_outputs_in_bfloat16() -> None:
    convolution, x = layer(), torch.randn(8, 3, 8, 64, 64).bfloat16()  # large enough for the pool of buffers
    with torch.autocast("cpu", torch.bfloat16):
        y = convolution(x)
        expected = y.relu()
        assert torch.equal(y.relu_(), expected)
    y.sum().backward()


def test_functions_of_tensors_are_transformed_by_the_definition() -> None:
    convolution, x = layer(), torch.randn(2, 3, 8, 6, 6)
    mapped = torch.vmap(lambda one: convolution(one.unsqueeze(0)).squeeze(0))(x)
    torch.testing.assert_close(mapped, convolution(x))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_those_of_batch_norm(momentum: float | None) -> None:
    ours, theirs = (
        nn.Sequential(sepgroupy.GroupBatchNorm2d(3, momentum=momentum), nn.ReLU(), layer()) for _ in range(2)
    )
    theirs.load_state_dict(ours.state_dict())
    sepgroupy.fuse(ours)
    x = 3 + torch.randn(4, 3, 8, 9, 7)
    for _ in range(2):
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    for name, value in theirs[0].state_dict().items():
        np.testing.assert_allclose(ours[0].state_dict()[name], value, rtol=1e-5, err_msg=name)


# ---- FLOPs -------------------------------------------------------------------------------------------------------

# Multiply-accumulates of a pair of channels and a pixel along the group axis of p4m, in the Fourier domain.
P4M_PAIR = 12
PIXELS = 6 * 7


@pytest.mark.parametrize(
    ("kind", "forward", "of_x", "of_filters"),
    [
        ("dense", P4M_PAIR * 3 * 4 * 9 * PIXELS, 1, 1),
        ("g", P4M_PAIR * 3 * 4 * 9 * PIXELS, 1, 1),
        ("gc", P4M_PAIR * 3 * 4 * PIXELS + 4 * 8 * 9 * PIXELS, None, None),
        ("lifting", P4M_PAIR * 3 * 4 * 3 * PIXELS, 2, 1),  # a 3×3 filter has three orbits; images, PyTorch's 8·9
    ],
)
def test_executed_operations_are_counted(kind: str, forward: int, of_x: int | None, of_filters: int | None) -> None:
    convolution, x = layer(kind), torch.randn(2, *input_axes(kind), 6, 7)
    counts = []
    for wants_x, wants_filters in ((False, False), (True, False), (False, True), (True, True)):
        x.requires_grad_(wants_x)
        convolution.requires_grad_(wants_filters)
        with FlopCounterMode(display=False) as counter:
            y = convolution(x)
        assert counter.get_total_flops() == 2 * 2 * forward
        if wants_x or wants_filters:
            with FlopCounterMode(display=False) as counter:
                y.sum().backward()
            counts.append(counter.get_total_flops() / (2 * 2))
    if of_x is not None and of_filters is not None:
        assert counts == [of_x * forward, of_filters * forward, (of_x + of_filters) * forward]
    else:  # of gc: products and depthwise step back; the filters' also make the products again
        products, depthwise = P4M_PAIR * 3 * 4 * PIXELS, 4 * 8 * 9 * PIXELS
        assert counts == [products + 2 * depthwise, 2 * products + 2 * depthwise, 3 * products + 2 * depthwise]


@pytest.mark.parametrize(("kind", "forward"), [("dense", 6 * 4 * 4 * 9 * PIXELS), ("gc", 6 * 4 * (4 + 9) * PIXELS)])
def test_executed_operations_of_blocks_are_counted(kind: str, forward: int) -> None:
    """Six outputs of four planes, which read four planes each."""
    convolution, x = blocks(kind, padding=1), torch.randn(2, 3, 4, 6, 7, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        convolution(x)
    assert counter.get_total_flops() == 2 * 2 * forward


@pytest.mark.parametrize("first", ["sepgroupy", "torch.utils.flop_counter"])
def test_operations_are_counted_whichever_is_imported_first(first: str) -> None:
    code = f"""
import sys, torch, {first}
assert ("torch.utils.flop_counter" in sys.modules) == ({first!r} != "sepgroupy")
import sepgroupy
from torch.utils import flop_counter
layer = sepgroupy.GroupConv2d(3, 4, 3, padding=1, group="p4m", backend="native")
with flop_counter.FlopCounterMode(display=False) as counter:
    layer(torch.randn(2, 3, 8, 6, 7))
assert counter.get_total_flops() == {2 * 2 * P4M_PAIR * 3 * 4 * 9 * PIXELS}
assert flop_counter.__loader__.get_source(flop_counter.__name__)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# ---- other devices, and memory -----------------------------------------------------------------------------------


def use_layers_on_the_cpu() -> None:
    """Compute every kernel forward and backward; run where the default device is another (see below)."""
    cpu = {"device": "cpu"}
    for kind in (*KINDS, "lifting"):
        if kind == "lifting":
            convolution: Any = LiftingConv2d(3, 4, 3, group="p4m", **cpu)
            x = torch.randn(2, 3, 9, 16, **cpu)
        else:
            convolution = GroupConv2d(3, 4, 3, group="p4m", kind=kind, backend="native", **cpu)
            x = torch.randn(2, 3, 8, 9, 16, **cpu)
        y = convolution(x.requires_grad_())
        y.square().sum().backward()
        expected = as_defined(convolution, x).float()
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        assert all(t.grad is not None and t.grad.is_cpu and t.grad.any() for t in (x, *convolution.parameters()))
        with torch.no_grad(), cached_filters(convolution):
            assert torch.equal(convolution(x), y)
    pool = sepgroupy.PerElement(nn.MaxPool2d(2))
    with torch.device("cpu"):
        net = sepgroupy.fuse(nn.Sequential(layer(), sepgroupy.GroupBatchNorm2d(4), nn.ReLU(), pool))
    y = net(torch.randn(2, 3, 8, 9, 16, device="cpu"))
    y.sum().backward()
    assert y.is_cpu


OTHER_DEFAULTS = {
    "in a context": "with torch.device('meta'): test_native.use_layers_on_the_cpu()",
    "before the import": "test_native.use_layers_on_the_cpu()",
}


@pytest.mark.parametrize("when", OTHER_DEFAULTS)
def test_kernels_work_where_the_default_device_is_another(when: str) -> None:
    """Their workspace was allocated there, and written to at address 0."""
    tests = str(Path(__file__).parent)
    imports = f"import sys, torch; sys.path.insert(0, {tests!r})\n"
    if when == "before the import":
        imports += "torch.set_default_device('meta')\n"
    code = f"{imports}import test_native\n{OTHER_DEFAULTS[when]}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_kernels_that_extend_far_are_computed_by_another_backend() -> None:
    x = torch.randn(1, 3, 8, 64, 64)
    far = layer(backend="auto", dilation=1000, padding=1000)
    assert not isinstance(select_backend(far.spec, x), Native)
    assert isinstance(select_backend(layer(backend="auto", dilation=31).spec, x), Native)
    assert far(x).shape == (1, 4, 8, 64, 64)
    far, x = layer(backend="auto", dilation=100, padding=100), torch.randn(1, 3, 8, 5, 6)
    torch.testing.assert_close(far(x).double(), as_defined(far, x, padding=100, dilation=100), rtol=1e-4, atol=1e-4)
    with pytest.raises(ArgumentError, match=r"backend \(='native'\) needs kernels that extend over up to 64 pixels"):
        layer(dilation=1000)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backward", [False, True])
def test_the_workspace_is_bounded(kind: str, backward: bool) -> None:
    """By a few values of what is read and written and a constant, however far a kernel extends."""
    for kernel, dilation in ((3, 1), (3, 31), (7, 10), (2, 63), (1, 1)):
        extent = dilation * (kernel - 1) + 1
        for stride in (1, 2, 3):
            for padding in (0, extent // 2, extent - 1):
                spec = ConvSpec.parse(D4, "dense", kernel, stride, padding, dilation)
                for batch, size in ((1, 64), (4096, 1), (4096, 4), (512, 7), (1, 256)):
                    if size + 2 * padding >= extent:
                        used, needed = workspace_bytes(spec, kind, batch, size, backward)
                        assert used < 2**24 + needed, (spec, batch, size, used / 2**20, needed / 2**20)


def workspace_bytes(spec: ConvSpec, kind: str, batch: int, size: int, backward: bool) -> tuple[int, int]:
    """Return the bytes of workspace of one thread, and of input, filters and output, for 16 channels."""
    kernel, channels = spec.kernel_size, 16
    weight = (channels, channels, 8, *(kernel if kind == "dense" else (1, 1)))
    depthwise = None if kind == "dense" else (channels, channels if kind == "g" else 1, 1, *kernel)
    x = (batch, 8, channels, size, size)
    shapes = (x, weight, depthwise)
    problem, _ = native_problem.checked_problem(spec, "forward", ("x", "weight", "depthwise"), shapes, 1, torch.float32)
    used = kernels().library.workspace_bytes(problem, int(backward))
    y = native_conv(spec).output_shape(x, weight)
    return used, 4 * sum(math.prod(shape) for shape in (x, y, weight))
