"""Filters kept from one call to the next never outlive the parameters that they were made of."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from conftest import Build, assert_as_defined, random_input, use
from sepgroupy.groups import C4

pytestmark = pytest.mark.usefixtures("as_if_large")


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


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_output_follows_the_parameters_without_gradients(build: Build, change: Any) -> None:
    layer = build(2, 3, 3, group=C4, dtype=torch.float64).eval()
    x = random_input(layer, 5, 5)
    for mode in (torch.no_grad, torch.inference_mode):
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


def test_what_is_kept_between_calls_is_not_written_to_files(build: Build) -> None:
    layer = build(2, 3, 3, group=C4, dtype=torch.float64)
    before = len(pickle.dumps(layer))
    use(layer, random_input(layer, 5, 5), "no_grad")
    assert len(pickle.dumps(layer)) == before


def test_weight_norm_and_other_parametrizations(build: Build) -> None:
    layer = build(2, 3, 3, group=C4, dtype=torch.float64)
    x = random_input(layer, 5, 5)
    name = next(name for name, _ in layer.named_parameters() if "weight" in name)
    torch.nn.utils.parametrizations.weight_norm(layer, name)
    original = dict(layer.named_parameters())[f"parametrizations.{name}.original0"]
    for _ in range(2):
        with torch.no_grad():
            original.mul_(2)
            assert_as_defined(layer, x)
    layer.double()
    layer(x).sum().backward()
    assert original.grad is not None
