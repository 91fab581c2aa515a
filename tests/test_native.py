"""What is particular to the compiled kernels. That they compute what layers are defined to is tested with all ways."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from conftest import DIAGONAL
from sepgroupy.errors import ArgumentError
from sepgroupy.functional._geometry import Geometry
from sepgroupy.functional._native import Inputs, _call, _library, _maps, _operator, convolve, kernels
from sepgroupy.groups import C1, C4, D2, D4, PointGroup
from sepgroupy.nn import GroupConv2d
from stress import native as stress

pytestmark = pytest.mark.skipif(not kernels(), reason=kernels().summary)
ROOT = Path(__file__).parents[1]
GEOMETRY = Geometry.parse(D4, 3, padding=1)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Restore the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def layer(kind: str = "dense", algorithm: str = "native") -> GroupConv2d:
    return GroupConv2d(3, 4, 3, padding=1, group=D4, kind=kind, algorithm=algorithm)


# ---- what is refused before any pointer is used ------------------------------------------------------------------


class Untouched:
    """Stands for the library in a test that must not reach it."""

    def __getattr__(self, name: str) -> Any:
        pytest.fail(f"{name} was reached")


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> _call.Call:
    monkeypatch.setattr(_library, "kernels", lambda: _library.Kernels(Untouched(), ""))
    return _call.Call(D4, GEOMETRY)


KINDS = ("dense", "g", "gc")


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
        "shortcut": torch.randn(2, 8, 4, 5, 6),
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
    "shortcut": [(), (4, 5, 6), (2, 8, 4, 5, 5), (2, 8, 3, 5, 6), (1, 8, 4, 5, 6)],
}


@pytest.mark.parametrize(("name", "shape"), [(name, shape) for name, shapes in SHAPES.items() for shape in shapes])
def test_other_shapes_are_refused(name: str, shape: tuple[int, ...], untouched: _call.Call) -> None:
    given = tensors("gc" if name == "depthwise" and shape != (4, 1, 1, 3, 3) else "dense")  # where the other is refused
    with pytest.raises(ArgumentError, match=f"({name}|gamma|weight) .*has shape|x has shape"):
        untouched.forward(Inputs(**given | {name: torch.randn(shape)}))


@pytest.mark.parametrize("missing", ["mean", "var"])
def test_half_a_norm_is_refused(missing: str, untouched: _call.Call) -> None:
    with pytest.raises(ArgumentError, match=f"{missing} has shape None"):
        untouched.forward(Inputs(**tensors() | {missing: None}))


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "dtype": lambda t: t.double(),
    "half": lambda t: t.half(),
    "integer": lambda t: t.long(),
    "complex": lambda t: t.to(torch.complex64),
    "device": lambda t: t.to("meta"),
    "layout": lambda t: t.to_sparse(),
    "strides": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda t: t[:1].expand(t.shape),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.quint8),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["x", "weight", "depthwise", "bias", "gamma", "beta", "mean", "var", "shortcut"])
@pytest.mark.filterwarnings("ignore:.*quantiz.*")
def test_other_kinds_of_tensors_are_refused(name: str, change: str, untouched: _call.Call) -> None:
    given = tensors("gc")
    with pytest.raises(ArgumentError, match="contiguous CPU tensors of one type, float32 or float64"):
        untouched.forward(Inputs(**given | {name: CHANGES[change](given[name])}))


@pytest.mark.parametrize("shape", [(), (2, 8, 4, 5, 5), (2, 8, 3, 5, 6), (1, 8, 4, 5, 6), (2, 8, 4, 30)])
def test_other_gradients_are_refused(shape: tuple[int, ...], untouched: _call.Call) -> None:
    x, weight, *_ = tensors().values()
    with pytest.raises(ArgumentError, match="the output's gradient has shape"):
        untouched.backward(torch.randn(shape), Inputs(x, weight))


@pytest.mark.parametrize("shape", [(), (2, 8, 3, 5, 5), (2, 8, 4, 5, 6), (1, 8, 3, 5, 6)])
def test_other_additions_to_a_gradient_are_refused(shape: tuple[int, ...], untouched: _call.Call) -> None:
    x, weight, *_ = tensors().values()
    with pytest.raises(ArgumentError, match="more has shape"):
        untouched.backward(torch.randn(2, 8, 4, 5, 6), Inputs(x, weight), more=torch.randn(shape))


@pytest.mark.parametrize(("planes", "stride"), [(6, 1), (1, 2)])
def test_what_cannot_be_lifted_is_refused(planes: int, stride: int, untouched: _call.Call) -> None:
    call = _call.Call(D4, Geometry.parse(D4, 3, stride, 1), lifting=True)
    x, weight = torch.randn(2, 1, planes, 5, 5), torch.randn(4, planes, 1, 3, 3)
    with pytest.raises(ArgumentError, match="the kernels lift with stride 1 and 49 terms at most"):
        call.forward(Inputs(x, weight))
    with pytest.raises(ArgumentError, match="the kernels lift with stride 1 and 49 terms at most"):
        call.backward_of_lifting(torch.randn(2, 8, 4, *call.geometry.output_size(5, 5)), x, weight)


def test_pictures_smaller_than_the_kernel_are_refused(untouched: _call.Call) -> None:
    with pytest.raises(ArgumentError, match="smaller than the extent of kernel_size"):
        _call.Call(D4, Geometry.parse(D4, 7)).forward(Inputs(torch.randn(1, 8, 3, 6, 9), torch.randn(4, 3, 8, 7, 7)))


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, 5).half(), torch.zeros(2, 3, 0, 5), torch.zeros(2, 3, 4, 5).mT]
)
def test_statistics_of_other_tensors_are_refused(x: Tensor, untouched: _call.Call) -> None:
    with pytest.raises(ArgumentError, match="no maps that the kernels read"):
        _maps.statistics(x)


@pytest.mark.parametrize(
    "change",
    [
        {"stride": [0, 0]}, {"stride": [-1, -1]}, {"stride": [4, 4]}, {"stride": [1, 2]}, {"padding": [-1, -1]},
        {"dilation": [0, 0]}, {"dilation": [-1, -1]}, {"elements": [1, 0, 0, 1]}, {"elements": [2, 0, 0, 1]},
        {"weight": torch.zeros(4, 3, 8, 9, 9)},
    ],
    ids=lambda change: "-".join(change),
)  # fmt: skip
def test_the_operator_refuses_what_no_layer_asks_for(change: dict[str, Any], untouched: _call.Call) -> None:
    with pytest.raises(ArgumentError):
        torch.ops.sepgroupy.group_conv(*(operator_arguments() | change).values())


def operator_arguments(kind: str = "dense", norm: bool = False) -> dict[str, Any]:
    """Name arguments of the operator, for p4m."""
    given = tensors(kind)
    if not norm:
        given |= dict.fromkeys(("gamma", "beta", "mean", "var"))
    elements = D4.arrays.flatten().tolist()
    options = {"eps": 1e-5, "batch": False, "elements": elements, "stride": [1, 1], "padding": [1, 1]}
    return given | options | {"dilation": [1, 1]}


# ---- the definition, at sizes that are awkward for vectors, tiles and threads ------------------------------------


def test_random_problems() -> None:
    counts = stress.check(120, seed=3)
    assert counts["empty"] > 3
    what = ("with norm", "with shortcut", "lifted", "gc of long rows", "on shuffled p4m", "1 threads", "2 threads")
    assert min(counts[name] for name in (*KINDS, *what)) > 3


@pytest.mark.parametrize("group", [C1, D2, C4, D4, DIAGONAL, stress.SHUFFLED], ids=lambda group: group.name)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_every_width_beside_that_of_vectors(group: PointGroup, kind: str, stride: int) -> None:
    for width in (1, 2, 4, 7, 8, 9, 15, 16, 17, 32, 33):
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-11)):
            geometry = Geometry.parse(group, 3, stride, 1)
            size = (1 + 18 // width, width)
            problem = stress.Problem(group, geometry, 2, 3, 5, size, dtype, kind, True, True, 1)
            assert problem.check() < tolerance, problem


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_seven_by_seven(kind: str, stride: int) -> None:
    geometry = Geometry.parse(D4, 7, stride, 3)
    for size in ((1, 1), (5, 9), (16, 16), (70, 31)):
        assert stress.Problem(D4, geometry, 2, 2, 3, size, torch.float64, kind, True, True, 2).check() < 1e-11


def test_the_general_transform_is_tested_beside_the_fast_ones() -> None:
    general = (C1, D2, DIAGONAL, stress.BOTH_DIAGONALS, stress.SHUFFLED)
    assert {_call._transform(group)[0] for group in general} == {_call.GENERAL}
    assert (_call._transform(C4)[0], _call._transform(D4)[0]) == (_call.CYCLIC4, _call.DIHEDRAL4)


WORK = {
    "one large image": (1, 3, (130, 90)),
    "many small images": (60, 3, (5, 5)),
    "some large images": (5, 3, (64, 50)),
    "rest of a tile": (7, 40, (9, 9)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("work", WORK)
def test_the_number_of_threads_changes_nothing_but_rounding(work: str, kind: str) -> None:
    batch, channels, size = WORK[work]
    problem = stress.Problem(D4, GEOMETRY, batch, channels, 4, size, torch.float32, kind, True, True, 1)
    call, inputs = _call.Call(D4, GEOMETRY), problem._inputs()
    x = inputs.x
    grad = torch.randn(batch, 8, 4, *size)
    lifting, planes, filters = _call.Call(D4, GEOMETRY, lifting=True), x[:, :1, :3], torch.randn(4, 3, 1, 3, 3)
    planes, maps = planes.contiguous(), x.flatten(0, 1)

    def results(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        found = (
            *call.forward(inputs, moments=True),
            *call.backward(grad, inputs, batch=True),
            *lifting.forward(Inputs(planes, filters), moments=True),
        )
        lifted_back = lifting.backward_of_lifting(grad, planes, filters)
        return [*(t for t in found if t is not None), *_maps.statistics(maps), *lifted_back]

    expected = results(1)
    for threads in (1, 2, 3):
        found = results(threads)
        for ours, again, theirs in zip(found, results(threads), expected, strict=True):
            assert torch.equal(ours, again)  # bitwise
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_fewer_threads_may_come_than_were_asked_for() -> None:
    command = [sys.executable, "-m", "tests.stress.native", "--problems", "25", "--library", str(_library.FOLDER)]
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


@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
@pytest.mark.parametrize("shape", [(0, 3, 8, 5, 6), (2, 3, 8, 1, 1), (1, 3, 8, 1, 17), (1, 3, 8, 1, 0)])
def test_empty_and_one_pixel_maps(kind: str, shape: tuple[int, ...]) -> None:
    if 0 in shape[-2:]:
        with pytest.raises(ArgumentError, match="x is 1×0 pixels"):
            layer(kind)(torch.zeros(shape))
        return
    convolution, reference = layer(kind), layer(kind, "dense")
    reference.load_state_dict(convolution.state_dict())
    x, norm = torch.randn(shape, requires_grad=True), nn.BatchNorm2d(3).eval()
    y, expected = convolution(x, norm), reference(x, norm)
    torch.testing.assert_close(y, expected)
    leaves = [x, *norm.parameters()]
    ours = torch.autograd.grad(y.square().sum(), [*leaves, *convolution.parameters()])
    theirs = torch.autograd.grad(expected.square().sum(), [*leaves, *reference.parameters()])
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("algorithm", ["native", "auto"])
def test_a_batch_of_nothing_leaves_the_statistics_alone(algorithm: str) -> None:
    norm = nn.BatchNorm2d(3)
    before = {name: value.clone() for name, value in norm.state_dict().items()} | {
        "num_batches_tracked": torch.tensor(1)
    }
    x = torch.zeros(0, 3, 8, 5, 6, requires_grad=True)
    convolution = layer(algorithm=algorithm)
    convolution(x, norm).sum().backward()
    torch.testing.assert_close(norm.state_dict(), before)
    assert all(p.grad is not None and not p.grad.any() for p in (*convolution.parameters(), *norm.parameters()))


@pytest.mark.parametrize(("inputs", "size"), [(0, (5, 6)), (3, (0, 6))])
def test_sums_over_nothing_are_the_bias(inputs: int, size: tuple[int, int]) -> None:
    call = _call.Call(D4, Geometry.parse(D4, 1))
    given = Inputs(torch.zeros(2, 8, inputs, *size), torch.zeros(4, inputs, 8, 1, 1))
    if 0 in size:
        with pytest.raises(ArgumentError, match="pixels"):
            call.forward(given._replace(bias=torch.ones(4)))
    else:
        y, *moments = call.forward(given._replace(bias=torch.arange(4.0)), moments=True)
        assert moments == [None, None]
        assert torch.equal(y, torch.arange(4.0).view(-1, 1, 1).expand(2, 8, 4, *size))
        assert not call.forward(given)[0].any()
        _, dweight, *_ = call.backward(y, given)
        assert dweight is not None
        assert dweight.shape == (4, 0, 8, 1, 1)


# ---- NaN ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "gc"])
@pytest.mark.parametrize("column", [0, 5, 10])  # in a vector, and in what is left of a row
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_reaches_what_it_reaches_by_definition(kind: str, column: int, value: float) -> None:
    x = torch.randn(3, 3, 8, 9, 11)
    x[1, 2, 3, 4, column] = value
    convolution, reference, norm = layer(kind), layer(kind, "dense"), nn.BatchNorm2d(3).eval()
    reference.load_state_dict(convolution.state_dict())
    y, expected = convolution(x, norm), reference(x, norm)
    if kind == "gc":  # the transform mixes the elements before the weights can
        assert torch.equal(y.isfinite().all(2), expected.isfinite().all(2))
    reached = ~expected.isfinite()
    assert reached.any() == (value != -math.inf)  # which the ReLU makes zero
    assert (~y.isfinite())[reached].all()
    alone = torch.ones_like(reached)
    alone[1, :, :, 3:6, max(0, column - 1) : column + 2] = False
    torch.testing.assert_close(y[alone], expected[alone])


@pytest.mark.parametrize("column", [0, 10])
def test_gradients_at_what_is_no_number(column: int) -> None:
    x = torch.randn(2, 3, 8, 5, 11)
    x[0, 1, 2, 3, column] = math.nan
    norm, results, state = nn.BatchNorm2d(3).eval(), [], layer().state_dict()
    for algorithm in ("native", "dense"):
        convolution, leaf = layer(algorithm=algorithm), x.clone().requires_grad_()
        convolution.load_state_dict(state)
        convolution(leaf, norm).backward(torch.ones(2, 4, 8, 5, 11))
        assert leaf.grad is not None
        results.append(leaf.grad)
    torch.testing.assert_close(*results)


# ---- derivatives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [None, False, True])  # no norm, one of fixed statistics, one of the batch's own
@pytest.mark.parametrize("group", [C4, D4, DIAGONAL], ids=lambda group: group.name)
def test_derivatives(kind: str, batch: bool | None, group: PointGroup) -> None:
    geometry = Geometry.parse(group, 3, 1 if kind == "g" else 2, 1)  # at stride 1 blocks of a g filter stay in factors
    x = torch.randn(2, group.order, 2, 4, 5).double()
    weight, depthwise = (None if t is None else t.double() for t in filters_of(kind, 2, 2, group.order))
    affine = (torch.rand(2).double() + 0.5, torch.randn(2).double())
    given = [x, weight, *([depthwise] if depthwise is not None else []), torch.randn(2).double()]
    given += [] if batch is None else affine
    given += [torch.randn(2, group.order, 2, *geometry.output_size(4, 5)).double()]  # a shortcut
    call = _call.Call(group, geometry)

    def function(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        rest = iter(leaves)
        x, weight, depthwise, bias = next(rest), next(rest), None if kind == "dense" else next(rest), next(rest)
        if batch is None:
            y, again = convolve(Inputs(x, weight, depthwise, bias, shortcut=next(rest)), 0.0, False, call, fork=True)
            return y, again.sin()
        maps = x.detach().movedim(2, 0).flatten(1)
        mean, var = (maps.mean(1), maps.var(1, correction=0)) if batch else (x.new_ones(2) * 0.1, x.new_ones(2))
        inputs = Inputs(x, weight, depthwise, bias, next(rest), next(rest), mean, var, next(rest))
        y, again = convolve(inputs, 1e-5, bool(batch), call, fork=True)
        return y, again.sin()

    leaves = [t.requires_grad_() for t in given]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


# ---- as an operator ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck looks at it
def test_the_operators_are_what_torch_expects(kind: str, norm: bool) -> None:
    arguments = operator_arguments(kind, norm)
    for name in ("x", "weight", "depthwise", "bias", "gamma", "beta", "shortcut"):
        if arguments[name] is not None:
            arguments[name].requires_grad_()
    torch.library.opcheck(_operator.group_conv, tuple(arguments.values()))
    plain = [a.detach() if isinstance(a, Tensor) else a for name, a in arguments.items() if name != "shortcut"]
    torch.library.opcheck(_operator.group_conv_backward, (torch.randn(2, 8, 4, 5, 6), *plain))


@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
def test_a_compiler_sees_one_operator(kind: str) -> None:
    convolution, x = layer(kind), torch.randn(2, 3, 8, 6, 6, requires_grad=True)
    norm = nn.BatchNorm2d(3)
    compiled = torch.compile(convolution, fullgraph=True, backend="aot_eager")
    results = []
    for function in (convolution, compiled):
        y = function(x, norm)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *convolution.parameters(), *norm.parameters()])])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("algorithm", "times"), [("native", 1), ("auto", 0)])
def test_only_a_forced_layer_exports_the_operator(algorithm: str, times: int) -> None:
    convolution, x = layer(algorithm=algorithm), torch.randn(2, 3, 8, 40, 40)
    program = torch.export.export(convolution, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert program.graph_module.code.count("torch.ops.sepgroupy.group_conv") == times
    torch.testing.assert_close(program.module()(x[:1]), convolution(x[:1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    convolution, x = layer(), torch.randn(2, 3, 8, 6, 6)
    expected = convolution(x)
    with torch.autocast("cpu", dtype):
        y = convolution(x)
    assert y.dtype is dtype
    assert torch.equal(y, expected.to(dtype))
    short = convolution.to(dtype)
    exact = {name: value.float() for name, value in short.state_dict().items()}
    expected = torch.func.functional_call(layer(), exact, (x.to(dtype).float(),))
    assert torch.equal(short(x.to(dtype)), expected.to(dtype))


def test_functions_of_tensors_are_transformed_by_the_definition() -> None:
    convolution, x = layer(), torch.randn(2, 3, 8, 6, 6)
    mapped = torch.vmap(lambda one: convolution(one.unsqueeze(0)).squeeze(0))(x)
    torch.testing.assert_close(mapped, convolution(x))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_those_of_batch_norm(momentum: float | None) -> None:
    x, ours, theirs = 3 + torch.randn(4, 3, 8, 9, 7), nn.BatchNorm2d(3, momentum=momentum), nn.BatchNorm2d(3)
    theirs.momentum = momentum
    native, dense = layer(), layer(algorithm="dense")
    dense.load_state_dict(native.state_dict())
    for _ in range(2):
        torch.testing.assert_close(native(x, ours), dense(x, theirs), rtol=1e-4, atol=1e-5)
    for name, value in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[name], value, rtol=1e-5, err_msg=name)
