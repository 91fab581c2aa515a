"""What a layer keeps, and what it does not: state dict, copies, devices, dtypes, and filters kept between calls."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import oracle
from conftest import WAYS, Build, build_layer, random_input, ways_of
from sepgroupy.groups import C4, D4, PointGroup
from sepgroupy.nn import GroupConv2d, LiftingConv2d

pytestmark = pytest.mark.usefixtures("as_if_large")


def shapes(kind: str, order: int, kernel: tuple[int, int], inner: int) -> dict[str, tuple[int, ...]]:
    """Give the published parameters of a layer with six output channels."""
    every: dict[str, dict[str, tuple[int, ...]]] = {
        "lifting": {"weight": (6, inner, 1, *kernel)},
        "dense": {"weight": (6, inner, order, *kernel)},
        "g": {"depthwise_weight": (6, inner, *kernel), "pointwise_weight": (6, inner, order, 1, 1)},
        "gc": {"depthwise_weight": (6, 1, 1, *kernel), "pointwise_weight": (6, inner, order, 1, 1)},
    }
    return every[kind]


@pytest.mark.parametrize(("kernel", "groups"), [(3, 1), (4, 2), (1, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_state_is_the_published_parameters_alone(
    plane_group: PointGroup, kernel: int, groups: int, bias: bool
) -> None:
    for way in ways_of(kernel_size=kernel, groups=groups):
        layer = build_layer(way, 4, 6, kernel, groups=groups, bias=bias, group=plane_group)
        expected = shapes(way[0], plane_group.order, (kernel, kernel), 4 // groups)
        expected |= {"bias": (6,)} if bias else {}
        for mode in (True, False, True):
            with torch.no_grad():
                layer.train(mode)(random_input(layer, 5, 5, dtype=torch.float32))
            assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == expected
            assert {name: tuple(value.shape) for name, value in layer.named_parameters()} == expected


def test_a_state_moves_between_algorithms() -> None:
    for kind in ("dense", "g", "gc"):
        layers = [
            build_layer(way, 3, 2, 1, group=D4, dtype=torch.float64) for way in ways_of(kernel_size=1) if way[0] == kind
        ]
        x = random_input(layers[0], 4, 4)
        for layer in layers[1:]:
            layer.load_state_dict(layers[0].state_dict(), strict=True)
            torch.testing.assert_close(layer(x), layers[0](x), atol=1e-12, rtol=0)


def test_a_state_survives_a_file(build: Build) -> None:
    layer, other = build(2, 3, 3, group=D4), build(2, 3, 3, group=D4)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = random_input(layer, 5, 5, dtype=torch.float32)
    assert torch.equal(other(x), layer(x))


def reopened(layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), reopened],
    ids=["copy", "pickle", "file"],
)
@pytest.mark.parametrize("used", ["not", "no_grad", "inference_mode", "grad"])
def test_copies_compute_the_same_and_stand_alone(build: Build, duplicate: Any, used: str) -> None:
    layer = build(2, 3, 3, group=C4, dtype=torch.float64)
    x = random_input(layer, 5, 5)
    use(layer, x, used)
    other = duplicate(layer)
    torch.testing.assert_close(other(x), layer(x), atol=0, rtol=0)
    before = layer(x)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
        assert torch.equal(layer(x), before)
        assert_as_defined(other, x)


def use(layer: Any, x: Tensor, used: str) -> None:
    """Call a layer before the test proper, so that it may keep whatever it keeps."""
    if used == "grad":
        layer(x).sum().backward()
        layer.zero_grad()
    elif used == "no_grad":
        with torch.no_grad():
            layer(x)
    elif used == "inference_mode":
        with torch.inference_mode():
            layer(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_change_of_dtype_and_back_leaves_no_rounding_in_the_constants(build: Build, dtype: torch.dtype) -> None:
    layer = build(2, 3, 3, group=D4)
    x = random_input(layer, 5, 5, dtype=dtype)
    assert layer.to(dtype)(x).dtype == dtype
    assert_as_defined(layer.double(), x.double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close(build: Build, dtype: torch.dtype) -> None:
    layer = build(2, 3, 3, group=C4, dtype=dtype)
    x = random_input(layer, 5, 5, dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype
    assert (y.double() - layer.double()(x.double())).abs().max() < 0.05


def test_dtype_and_device_are_passed_down(build: Build) -> None:
    layer = build(2, 3, 3, group=C4, dtype=torch.float16, device="meta")
    assert all(p.dtype == torch.float16 and p.is_meta for p in layer.parameters())


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_skip_init(way: tuple[str, str]) -> None:
    kind, algorithm = way
    options = {} if kind == "lifting" else {"kind": kind, "algorithm": algorithm}
    layer = torch.nn.utils.skip_init(
        LiftingConv2d if kind == "lifting" else GroupConv2d, 2, 3, 1, group=D4, dtype=torch.float64, **options
    )
    assert not any(parameter.is_meta for parameter in layer.parameters())
    layer.reset_parameters()
    assert_as_defined(layer, random_input(layer, 4, 4))


def test_to_meta_and_back(build: Build) -> None:
    layer = build(2, 3, 3, group=D4, dtype=torch.float64)
    state = copy.deepcopy(layer.state_dict())
    x = random_input(layer, 5, 5)
    before = layer(x)
    layer.to("meta").to_empty(device="cpu").load_state_dict(state)
    assert torch.equal(layer(x), before)
    layer.to("meta").load_state_dict(state, assign=True)
    assert torch.equal(layer(x), before)


def test_shapes_on_the_meta_device(build: Build) -> None:
    layer = build(2, 3, 3, padding=1, group=D4, device="meta")
    assert layer(random_input(layer, 5, 6, dtype=torch.float32).to("meta")).shape == (2, 3, 8, 5, 6)


def step(layer: Any) -> None:
    optimiser = torch.optim.SGD(layer.parameters(), 0.1)
    with torch.enable_grad():
        sum(p.sum() for p in layer.parameters()).backward()
    optimiser.step()


def replace(layer: Any) -> None:
    for name, parameter in list(layer.named_parameters()):
        setattr(layer, name, nn.Parameter(parameter.detach() * 2))


def change_data(layer: Any) -> None:
    for parameter in layer.parameters():
        parameter.data.mul_(2)


def set_data(layer: Any) -> None:
    for parameter in layer.parameters():
        parameter.data = parameter.data * 2


def change_in_place(layer: Any) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(2)


def change_one_entry(layer: Any) -> None:
    with torch.no_grad():
        next(layer.parameters()).view(-1)[0] += 1


def change_through_numpy(layer: Any) -> None:
    for parameter in layer.parameters():
        parameter.detach().numpy()[...] *= 2


def load(layer: Any) -> None:
    layer.load_state_dict({name: value * 2 for name, value in layer.state_dict().items()})


def load_by_assignment(layer: Any) -> None:
    layer.load_state_dict({name: value * 2 for name, value in layer.state_dict().items()}, assign=True)


def reset(layer: Any) -> None:
    layer.reset_parameters()


CHANGES = [
    step,
    replace,
    change_data,
    set_data,
    change_in_place,
    change_one_entry,
    change_through_numpy,
    load,
    load_by_assignment,
    reset,
]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_output_follows_the_parameters_without_gradients(build: Build, change: Any, mode: Any) -> None:
    layer = build(2, 3, 3, group=C4, dtype=torch.float64).eval()
    x = random_input(layer, 5, 5)
    for _ in range(2):
        with mode():
            before = layer(x)
        change(layer)
        with mode():
            after = layer(x)
        assert not torch.equal(before, after)
        assert_as_defined(layer, x)


@pytest.mark.parametrize("before", ["no_grad", "inference_mode"])
def test_gradients_after_an_evaluation(build: Build, before: str) -> None:
    layer = build(2, 3, 3, group=C4, dtype=torch.float64)
    fresh = copy.deepcopy(layer)
    x = random_input(layer, 5, 5)
    use(layer, x, before)
    for _ in range(2):  # twice, since what is kept must not belong to a graph that is gone
        for module in (layer, fresh):
            module.zero_grad()
            module(x).square().sum().backward()
    for parameter, other in zip(layer.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)


def test_another_input_size_without_gradients(build: Build) -> None:
    layer = build(2, 3, 3, group=C4, dtype=torch.float64)
    for size in (5, 8, 4, 5):
        assert_as_defined(layer, random_input(layer, size, size + 1))


def test_a_layer_made_in_inference_mode(build: Build) -> None:
    with torch.inference_mode():
        layer = build(2, 3, 3, group=C4, dtype=torch.float64)
        x = random_input(layer, 5, 5)
        for _ in range(2):
            assert_as_defined(layer, x)


def test_weight_norm_and_other_parametrizations(build: Build) -> None:
    layer = build(2, 3, 3, group=C4, dtype=torch.float64)
    x = random_input(layer, 5, 5)
    name = next(name for name, _ in layer.named_parameters() if "weight" in name)
    torch.nn.utils.parametrizations.weight_norm(layer, name)
    original = dict(layer.named_parameters())[f"parametrizations.{name}.original0"]
    for _ in range(2):
        with torch.no_grad():
            original.mul_(2)
            parameters = {n: getattr(layer, n).numpy() for n in PUBLISHED if getattr(layer, n, None) is not None}
            np.testing.assert_allclose(layer(x).numpy(), oracle.layer(x.numpy(), parameters, C4), atol=1e-10)
    layer.double()
    layer(x).sum().backward()
    assert original.grad is not None


def test_repr_says_what_the_layer_is() -> None:
    text = repr(GroupConv2d(4, 6, 3, 2, 1, 2, 2, False, "circular", group="p4m", kind="gc"))
    for part in ("GroupConv2d(4, 6", "(3, 3)", "stride=(2, 2)", "padding=(1, 1)", "dilation=(2, 2)", "groups=2"):
        assert part in text
    for part in ("circular", "bias=False", "p4m", "gc"):
        assert part in text


PUBLISHED = ("weight", "depthwise_weight", "pointwise_weight", "bias")


def assert_as_defined(layer: Any, x: Tensor) -> None:
    parameters = {name: value.detach().numpy() for name, value in layer.named_parameters()}
    with torch.no_grad():
        y = layer(x).numpy()
    np.testing.assert_allclose(y, oracle.layer(x.numpy(), parameters, layer.plan.group), atol=1e-10, rtol=0)
