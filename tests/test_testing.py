"""The public equivariance checker: its numbers are those of the definition, for every kind of output."""

from __future__ import annotations

import re
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import oracle
from sepgroupy.errors import ArgumentError
from sepgroupy.groups import C4, D4, PointGroup
from sepgroupy.nn import GroupConv2d, GroupPool, LiftingConv2d
from sepgroupy.testing import TOLERANCES, assert_equivariant, equivariance_error


def planar_to_group(group: PointGroup) -> nn.Module:
    return LiftingConv2d(2, 3, 3, group=group)


def group_to_group(group: PointGroup) -> nn.Module:
    return GroupConv2d(2, 3, 3, group=group, kind="gc")


def planar_to_planar(group: PointGroup) -> nn.Module:
    return nn.Sequential(LiftingConv2d(2, 3, 3, group=group), GroupPool())


def group_to_planar(group: PointGroup) -> nn.Module:
    return nn.Sequential(GroupConv2d(2, 3, 3, group=group), GroupPool("mean"))


def planar_to_invariant(group: PointGroup) -> nn.Module:
    return nn.Sequential(planar_to_planar(group), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))


MAKERS = [planar_to_group, group_to_group, planar_to_planar, group_to_planar, planar_to_invariant]


def image(make: Any, group: PointGroup, size: int = 7) -> torch.Tensor:
    group_axis = (group.order,) if make in (group_to_group, group_to_planar) else ()
    return torch.randn(2, 2, *group_axis, size, size)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equivariant_nets_pass(plane_group: PointGroup, make: Any, dtype: torch.dtype) -> None:
    x = image(make, plane_group).to(dtype)
    net = make(plane_group).to(dtype)
    errors = equivariance_error(net, plane_group, x)
    assert errors.shape == (plane_group.order,)
    assert errors.dtype == torch.float64
    assert errors.max() < {torch.float32: 1e-5, torch.float64: 1e-13}[dtype]
    assert errors[0] == 0
    assert_equivariant(net, plane_group, x)


@pytest.mark.parametrize("make", MAKERS)
def test_the_numbers_are_those_of_the_definition(make: Any) -> None:
    # Networks of p4 compared with p4m: rotations hold, reflections do not; the numbers are checked for all elements.
    x = image(make, D4).double()
    net = make(D4).double()
    weight = torch.randn(7, 7, dtype=torch.float64)

    def broken(x: torch.Tensor) -> torch.Tensor:
        return net(x * weight)

    errors = equivariance_error(broken, "p4m", x)
    with torch.no_grad():
        y = broken(x).numpy()
        for t in range(8):
            target = act(y, t) if y.ndim > 3 else y
            difference = np.abs(broken(torch.from_numpy(act(x.numpy(), t))).numpy() - target).max()
            assert errors[t] == pytest.approx(difference / np.abs(y).max(), abs=1e-12)
    assert errors[1:].min() > 0.01


def act(a: oracle.Array, element: int) -> oracle.Array:
    return oracle.move_feature_map(a, D4, element) if a.ndim == 5 else oracle.move(a, D4.arrays[element])


def test_an_ordinary_convolution_is_caught() -> None:
    x = torch.randn(1, 2, 7, 7)
    errors = equivariance_error(nn.Conv2d(2, 2, 3), "p4", x)
    assert errors[0] == 0
    assert errors[1:].min() > 0.1
    with pytest.raises(AssertionError):
        assert_equivariant(nn.Conv2d(2, 2, 3), "p4", x)


def test_a_group_convolution_with_its_group_axis_in_another_order_is_caught() -> None:
    layer = LiftingConv2d(2, 3, 3, group="p4")
    assert equivariance_error(lambda x: layer(x).flip(2), "p4", torch.randn(1, 2, 7, 7))[1] > 0.1


def test_a_net_of_a_smaller_group_fails_for_the_rest_alone() -> None:
    net = planar_to_planar(C4)
    x = torch.randn(1, 2, 7, 7)
    errors = equivariance_error(net, D4, x)
    assert errors[:4].max() < 1e-5
    assert errors[4:].min() > 0.01
    assert_equivariant(net, C4, x)
    worst = int(errors.argmax())
    with pytest.raises(AssertionError) as caught:
        assert_equivariant(net, D4, x)
    for part in ("p4m", f"element {worst}", str(D4.elements[worst]), f"{errors[worst]:.1e}"):
        assert part in str(caught.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_infinity_never_pass(value: float) -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, value)

    x = torch.randn(1, 1, 5, 5)
    assert (equivariance_error(broken, "p4", x) == torch.inf).all()
    with pytest.raises(AssertionError):
        assert_equivariant(broken, "p4", x, tolerance=1e9)


def test_nan_for_one_element_is_found() -> None:
    x = torch.randn(1, 1, 5, 5)

    def sometimes(y: torch.Tensor) -> torch.Tensor:
        return y if torch.equal(y, x) else y * torch.nan

    assert equivariance_error(sometimes, "p2", x).tolist() == [0, torch.inf]


def test_a_shape_that_changes_with_the_rotation_is_infinite() -> None:
    pool = nn.MaxPool2d((1, 2))
    x = torch.randn(1, 1, 6, 6)
    assert equivariance_error(lambda y: pool(y)[..., :4, :], "p4", x)[1:].tolist()[::2] == [torch.inf, torch.inf]
    with pytest.raises(AssertionError, match="inf"):
        assert_equivariant(lambda y: pool(y)[..., :4, :], "p4", x)


def test_a_net_that_answers_zero_is_equivariant() -> None:
    assert (equivariance_error(torch.zeros_like, "p4m", torch.randn(1, 1, 5, 5)) == 0).all()


def test_tolerance_follows_the_dtype_or_the_caller() -> None:
    x = torch.randn(1, 1, 5, 5)
    scale = x.abs().max()

    def nearly(y: torch.Tensor) -> torch.Tensor:
        return y if torch.equal(y, x.to(y.dtype)) else y + 1e-6 * scale

    assert_equivariant(nearly, "p4", x)
    with pytest.raises(AssertionError, match=r"1\.0e-10"):
        assert_equivariant(nearly, "p4", x.double())
    assert_equivariant(nearly, "p4", x.double(), tolerance=1e-5)
    with pytest.raises(AssertionError):
        assert_equivariant(nearly, "p4", x, tolerance=1e-7)
    with pytest.raises(AssertionError):
        assert_equivariant(nearly, "p4", x, tolerance=0)


def test_tolerances_of_all_floating_types() -> None:
    assert TOLERANCES[torch.float64] <= 1e-10
    assert (
        TOLERANCES[torch.float64] < TOLERANCES[torch.float32] < TOLERANCES[torch.float16] < TOLERANCES[torch.bfloat16]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_judged_by_its_own_rounding(dtype: torch.dtype) -> None:
    assert_equivariant(planar_to_planar(D4).to(dtype), D4, torch.randn(1, 2, 7, 7).to(dtype))


Named = namedtuple("Named", "logits features")


@dataclass
class Plain:
    logits: Tensor
    note: str = "text"


@dataclass(frozen=True)
class Frozen:
    logits: Tensor
    inner: Plain


@dataclass
class ModelOutput(OrderedDict):  # type: ignore[type-arg]  # as transformers defines it, both at once
    logits: Tensor | None = None
    hidden: Tensor | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if (value := getattr(self, field.name)) is not None:
                self[field.name] = value


NESTED: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "dict": (lambda y, z: {"out": y, "aux": z}, "output['aux']"),
    "ordered dict": (lambda y, z: OrderedDict(out=y, aux=z), "output['aux']"),
    "read-only mapping": (lambda y, z: MappingProxyType({"out": y, 1: z}), "output[1]"),
    "tuple": (lambda y, z: (y, z), "output[1]"),
    "list": (lambda y, z: [z, y], "output[0]"),
    "named tuple": (lambda y, z: Named(y, z), "output.features"),
    "dataclass": (lambda y, z: Plain(z), "output.logits"),
    "frozen dataclass": (lambda y, z: Frozen(y, Plain(z)), "output.inner.logits"),
    "model output": (lambda y, z: ModelOutput(y, z), "output['hidden']"),
    "nested": (lambda y, z: {"a": [y, (y, {"b": z})]}, "output['a'][1][1]['b']"),
    "other leaves": (lambda y, z: {"a": None, "b": "text", "c": z, "d": ()}, "output['c']"),
    "numpy": (lambda y, z: (y, z.numpy()), "output[1]"),
    "numbers": (lambda y, z: (y, float(z[0, 0, 0, 0])), "output[1]"),
}


@pytest.mark.parametrize(("nest", "name"), NESTED.values(), ids=NESTED)
def test_every_tensor_of_an_output_is_compared(nest: Callable[[Tensor, Tensor], Any], name: str) -> None:
    good, bad = planar_to_planar(D4).double(), nn.Conv2d(2, 2, 3).double()
    x = torch.randn(2, 2, 7, 7).double()
    assert_equivariant(lambda x: nest(good(x), good(x).sum((0, 1, 2, 3), keepdim=True)), "p4m", x)
    errors = equivariance_error(lambda x: nest(good(x), bad(x)), "p4m", x)
    if name == "output[1]" and isinstance(nest(x, x)[1], float):
        assert errors[1:].min() > 1e-3
    else:
        torch.testing.assert_close(errors, equivariance_error(bad, "p4m", x))
    with pytest.raises(AssertionError, match=re.escape(f"changes {name} by")):
        assert_equivariant(lambda x: nest(good(x), bad(x)), "p4m", x)


def test_an_output_that_some_elements_lack_is_infinite() -> None:
    x = torch.randn(1, 2, 5, 5)

    def sometimes(y: Tensor) -> dict[str, Tensor]:
        return {"a": y} if torch.equal(x, y) else {"a": y, "b": y}

    assert equivariance_error(sometimes, "p2", x).tolist() == [0, torch.inf]
    with pytest.raises(AssertionError, match=re.escape("output['b'] by inf")):
        assert_equivariant(sometimes, "p2", x)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, "returns a NoneType without any tensor"),
        ({}, "returns a dict without any tensor"),
        ({"a": object()}, r"returns a object as output\['a'\]"),
        ({1, 2}, "returns a set as output"),
        (torch.zeros(1, 1, 1, 4, 5, 5), r"returns a tensor of shape \(1, 1, 1, 4, 5, 5\) as output"),
        (torch.zeros(1, 2, 3, 5, 5), "whose group axis is not the group's"),
    ],
)
def test_what_cannot_be_compared_is_told_what_is_needed(output: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        equivariance_error(lambda x: output, "p4", torch.zeros(1, 1, 5, 5))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integer_images_and_labels(dtype: torch.dtype) -> None:
    net = planar_to_planar(D4)
    x = torch.randint(0, 2, (2, 2, 7, 7)).to(dtype)
    assert_equivariant(lambda x: net(x.float()), "p4m", x)  # with the tolerance of float32
    assert_equivariant(lambda x: net(x.float()).argmax(1, keepdim=True), "p4m", x)
    assert_equivariant(lambda x: x, "p4m", x)
    shifted = torch.randint(0, 2, (2, 2, 7, 7)).to(dtype)
    with pytest.raises(AssertionError, match=r"more than 0\.0e\+00"):
        assert_equivariant(lambda x: x ^ shifted, "p4m", x)


def test_the_less_precise_dtype_decides_on_the_tolerance() -> None:
    net, x = planar_to_planar(D4), torch.randn(2, 2, 7, 7).double()
    assert equivariance_error(lambda x: net(x.float()), "p4m", x).max() < 1e-5
    assert_equivariant(lambda x: net(x.float()), "p4m", x)
    assert_equivariant(lambda x: x.sum((2, 3)) * (1 + 1j), "p4m", x)
    assert_equivariant(lambda x: net(x.float()).double(), "p4m", x, tolerance=1e-4)


def test_a_module_that_overwrites_its_input_or_its_last_output() -> None:
    x, memory = torch.randn(1, 2, 6, 6).double(), torch.empty(1, 2, 6, 6).double()
    weight = torch.randn(6, 6).double()
    assert_equivariant(nn.ReLU(inplace=True), "p4", x)
    assert (x < 0).any()
    with pytest.raises(AssertionError):
        assert_equivariant(lambda x: memory.copy_(x * weight), "p4", x)


def test_empty_outputs_are_equivariant() -> None:
    assert_equivariant(lambda x: x[:0], "p4", torch.randn(1, 2, 6, 6))


def test_what_is_no_tensor_is_refused() -> None:
    with pytest.raises(ArgumentError, match="x is a list"):
        equivariance_error(lambda x: x, "p4", [1])  # type: ignore[arg-type]


def test_nothing_is_left_behind() -> None:
    net, x = planar_to_group(D4), torch.randn(1, 2, 7, 7, requires_grad=True)
    before = x.detach().clone()
    errors = equivariance_error(net, D4, x)
    assert not errors.requires_grad
    assert torch.equal(x, before)
    assert net.training


@pytest.mark.parametrize("shape", [(5, 5), (1, 5, 5), (1, 1, 4, 5, 5, 5)])
def test_an_input_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"x has shape \("):
        equivariance_error(lambda x: x, "p4", torch.zeros(shape))


def test_a_group_axis_of_another_order_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"\(1, 1, 3, 5, 5\).*4.*p4"):
        equivariance_error(lambda x: x, "p4", torch.zeros(1, 1, 3, 5, 5))


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(ArgumentError, match="p5"):
        assert_equivariant(lambda x: x, "p5", torch.zeros(1, 1, 3, 3))
