"""The published classes: their paths, names, arguments, parameters and numbers."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import oracle
from sepgroupy import gconv
from sepgroupy.errors import ArgumentError
from sepgroupy.gconv.pooling import GroupCosetMaxPool, GroupMaxPool2d
from sepgroupy.groups import C4, D4
from sepgroupy.nn import GroupConv2d, LiftingConv2d

MODULES = {"": "splitgconv2d", "g": "g_splitgconv2d", "gc": "gc_splitgconv2d"}
GROUPS = {"P4ConvZ2": C4, "P4ConvP4": C4, "P4MConvZ2": D4, "P4MConvP4M": D4}
CLASSES = [(prefix, name) for prefix in MODULES for name in GROUPS]
NAMES = [prefix + name for prefix, name in CLASSES]


def published(prefix: str, name: str) -> Any:
    return getattr(importlib.import_module(f"sepgroupy.gconv.{MODULES[prefix]}"), prefix + name)


def random_image(name: str) -> torch.Tensor:
    group_axis = () if name.endswith("Z2") else (GROUPS[name].order,)
    return torch.randn(2, 2, *group_axis, 6, 6)


def parameters(prefix: str, name: str, kernel: int) -> dict[str, tuple[int, ...]]:
    order = GROUPS[name].order
    if name.endswith("Z2"):
        return {"weight": (3, 2, 1, kernel, kernel), "bias": (3,)}
    every: dict[str, dict[str, tuple[int, ...]]] = {
        "": {"weight": (3, 2, order, kernel, kernel)},
        "g": {"depthwise_weight": (3, 2, kernel, kernel), "pointwise_weight": (3, 2, order, 1, 1)},
        "gc": {"depthwise_weight": (3, 1, 1, kernel, kernel), "pointwise_weight": (3, 2, order, 1, 1)},
    }
    return every[prefix] | {"bias": (3,)}


@pytest.mark.parametrize(("prefix", "name"), CLASSES, ids=NAMES)
def test_arguments_in_their_order(prefix: str, name: str) -> None:
    cls = published(prefix, name)
    assert cls.__name__ == prefix + name
    expected = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "bias"]
    assert list(inspect.signature(cls).parameters)[:6] == expected
    layer = cls(2, 3, 3, 2, 1, False)
    assert layer.bias is None
    assert layer(random_image(name)).shape == (2, 3, GROUPS[name].order, 3, 3)
    assert cls(2, 3, 3).bias is not None
    assert cls(2, 3, 3)(random_image(name)).shape[-2:] == (4, 4)


@pytest.mark.parametrize("kernel", [1, 3, 4])
@pytest.mark.parametrize(("prefix", "name"), CLASSES, ids=NAMES)
def test_parameters_and_results_are_those_of_the_definition(prefix: str, name: str, kernel: int) -> None:
    x = random_image(name).double()
    state: dict[str, torch.Tensor] = {}
    for separable in (None, True, False) if prefix else (None,):
        options = {} if separable is None else {"separable": separable}
        layer = published(prefix, name)(2, 3, kernel, 2, kernel // 2, **options).double()
        state = state or {n: torch.randn(shape).double() for n, shape in parameters(prefix, name, kernel).items()}
        assert {n: tuple(value.shape) for n, value in layer.state_dict().items()} == parameters(prefix, name, kernel)
        layer.load_state_dict(state)
        arrays = {n: value.numpy() for n, value in state.items()}
        expected = oracle.layer(x.numpy(), arrays, GROUPS[name], 2, kernel // 2)
        for mode in (True, False):
            with torch.no_grad():
                np.testing.assert_allclose(layer.train(mode)(x).numpy(), expected, atol=1e-10)


@pytest.mark.parametrize(("prefix", "name"), CLASSES, ids=NAMES)
def test_they_are_the_layers_of_nn(prefix: str, name: str) -> None:
    layer = published(prefix, name)(2, 3, 3, padding=1)
    group = GROUPS[name]
    if name.endswith("Z2"):
        assert isinstance(layer, LiftingConv2d)
        other: Any = LiftingConv2d(2, 3, 3, padding=1, group=group)
    else:
        assert isinstance(layer, GroupConv2d)
        other = GroupConv2d(2, 3, 3, padding=1, group=group, kind=prefix or "dense")
    other.load_state_dict(layer.state_dict())
    x = random_image(name)
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize(("prefix", "name"), CLASSES, ids=NAMES)
def test_they_can_be_copied_and_pickled(prefix: str, name: str) -> None:
    layer, x = published(prefix, name)(2, 3, 3), random_image(name)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is type(layer)
        assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("name", GROUPS)
def test_a_dense_class_has_no_separable(name: str) -> None:
    with pytest.raises(TypeError, match="separable"):
        published("", name)(2, 3, 3, separable=True)


def test_bad_arguments_are_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match=r"kernel_size \(=\(3, 5\)\)"):
        published("gc", "P4ConvP4")(2, 3, (3, 5))


@pytest.mark.parametrize(("prefix", "name"), CLASSES, ids=NAMES)
def test_attributes_of_the_published_classes(prefix: str, name: str) -> None:
    layer = published(prefix, name)(2, 3, 5, 2, 1)
    assert (layer.in_channels, layer.out_channels) == (2, 3)
    assert layer.kernel_size == layer.ksize == (5, 5)
    assert (layer.stride, layer.padding) == ((2, 2), (1, 1))
    order = GROUPS[name].order
    assert (layer.input_stabilizer_size, layer.output_stabilizer_size) == (1 if name.endswith("Z2") else order, order)
    for separable in (None, True, False) if prefix else (None, False):
        assert published(prefix, name)(2, 3, 3, separable=separable).separable is separable
    assert copy.deepcopy(layer).ksize == (5, 5)


def test_every_name_is_in_the_package() -> None:
    for prefix, name in CLASSES:
        assert getattr(gconv, prefix + name) is published(prefix, name)
    assert gconv.GroupMaxPool2d is GroupMaxPool2d
    assert gconv.GroupCosetMaxPool is GroupCosetMaxPool
    assert sorted(gconv.__all__) == sorted([p + n for p, n in CLASSES] + ["GroupCosetMaxPool", "GroupMaxPool2d"])


@pytest.mark.parametrize(
    "arguments",
    [(2,), (2, 2), (3, 1), (3, 2, 1), (2, 1, 0, 2), (3, 2, 1, 1, False, True), (2, 2, 0, 1, True), (3, 2, 1, 1, True)],
    ids=str,
)
def test_spatial_max_pool(arguments: Any) -> None:
    x = torch.randn(2, 3, 4, 6, 7)
    plain = nn.MaxPool2d(*arguments)
    every = [plain(x[:, :, g]) for g in range(4)]
    if plain.return_indices:
        values, indices = GroupMaxPool2d(*arguments)(x)
        assert torch.equal(values, torch.stack([value for value, _ in every], 2))
        assert torch.equal(indices, torch.stack([index for _, index in every], 2))
    else:
        assert torch.equal(GroupMaxPool2d(*arguments)(x), torch.stack(every, 2))
    named = inspect.signature(GroupMaxPool2d).parameters
    assert list(named) == ["kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode"]


def test_coset_max_pool() -> None:
    x = torch.randn(2, 3, 8, 5, 6)
    assert torch.equal(GroupCosetMaxPool()(x), torch.from_numpy(x.numpy().max(2)))


def test_the_poolings_have_no_state() -> None:
    assert not GroupMaxPool2d(2).state_dict()
    assert not GroupCosetMaxPool().state_dict()
