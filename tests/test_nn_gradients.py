"""First and second derivatives of every kind of layer, with every backend, against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from conftest import COUNTERPARTS, GROUPS, LayerVariant, build_layer, pairs, random_input
from sepgroupy.functional import transform
from sepgroupy.groups import C4, D4

pytestmark = pytest.mark.usefixtures("as_if_large")

CASES: dict[str, dict[str, Any]] = {
    "1x1-stride": {"kernel_size": 1, "stride": 2},
    "2x2-padding": {"kernel_size": 2, "padding": 1},
    "3x3": {"kernel_size": 3, "padding": 1},
    "3x3-stride": {"kernel_size": 3, "stride": 2, "padding": 1},
    "groups": {"kernel_size": 2, "groups": 2},
    "circular": {"kernel_size": 2, "padding": 1, "padding_mode": "circular"},
    "signals-stride": {"dimension": 1, "kernel_size": 3, "stride": 2, "padding": 1},
    "volumes": {"dimension": 3, "kernel_size": (1, 3, 3), "padding": (0, 1, 1)},
    "volumes-stride": {"dimension": 3, "kernel_size": 2, "stride": 2, "padding": 1},
}
FEW: dict[str, dict[str, Any]] = {
    "1x1": {"kernel_size": 1},
    "3x3": {"kernel_size": 3, "padding": 1},
    "signals": {"dimension": 1, "kernel_size": 3, "padding": 1},
    "volumes": {"dimension": 3, "kernel_size": 3, "padding": 1},
}


def as_function(layer: Any, x: Tensor) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """Return the layer as a function of input and parameters, and where to evaluate it."""
    names = [name for name, _ in layer.named_parameters()]

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    return call, (x.requires_grad_(), *layer.parameters())


@pytest.mark.parametrize(("variant", "case"), pairs(CASES, rules=False))
def test_first_and_second_derivatives(variant: LayerVariant, case: dict[str, Any]) -> None:
    channels, group = case.get("groups", 1), GROUPS[variant.dimension][0]
    if variant.dimension == 2:
        group = C4 if case["kernel_size"] == 2 else D4
    layer = build_layer(variant, channels, 2, group=group, dtype=torch.float64, **case)
    call, inputs = as_function(layer, random_input(layer, 3, 3, batch=2))
    assert gradcheck(call, inputs, fast_mode=True)
    assert gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize(("variant", "case"), pairs(FEW, every_backend=False, rules=False))
def test_gradients_of_the_parameters_do_not_depend_on_how_the_image_is_rotated(
    variant: LayerVariant, case: dict[str, Any]
) -> None:
    group = COUNTERPARTS[variant.dimension][D4]
    layer = build_layer(variant, 2, 3, group=group, dtype=torch.float64, **case)
    x = random_input(layer, 5, 5)
    gradients = [
        torch.autograd.grad(
            layer(transform(x, group, t, group_axis=variant.kind != "lifting")).square().sum(),
            tuple(layer.parameters()),
        )
        for t in range(group.order)
    ]
    for rotated in gradients[1:]:
        torch.testing.assert_close(rotated, gradients[0], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("variant", "case"), pairs(FEW, every_backend=False, rules=False))
def test_a_frozen_tensor_gets_no_gradient_and_the_others_the_same(variant: LayerVariant, case: dict[str, Any]) -> None:
    layer = build_layer(variant, 2, 2, group=COUNTERPARTS[variant.dimension][C4], dtype=torch.float64, **case)
    x = random_input(layer, 3, 3)
    leaves = {"x": x, **dict(layer.named_parameters())}

    def gradients(frozen: str) -> dict[str, Tensor | None]:
        for name, leaf in leaves.items():
            leaf.grad = None
            leaf.requires_grad_(name != frozen)
        layer(x).square().sum().backward()
        return {name: leaf.grad for name, leaf in leaves.items()}

    expected = gradients("")
    for frozen in leaves:
        found = gradients(frozen)
        assert found.pop(frozen) is None
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-12, rtol=0)


@pytest.mark.parametrize(("variant", "case"), pairs(FEW, every_backend=False, rules=False))
def test_the_output_may_be_changed_in_place(variant: LayerVariant, case: dict[str, Any]) -> None:
    layer = build_layer(variant, 2, 2, group=COUNTERPARTS[variant.dimension][C4], dtype=torch.float64, **case)
    x = random_input(layer, 3, 3).requires_grad_()
    (apart,) = torch.autograd.grad((layer(x) + 1).relu().square().sum(), x)
    y = layer(x)
    y += 1
    (in_place,) = torch.autograd.grad(y.relu_().square().sum(), x)
    torch.testing.assert_close(in_place, apart)


@pytest.mark.parametrize(("variant", "case"), pairs(FEW, every_backend=False))
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_an_ensemble_by_vmap(variant: LayerVariant, case: dict[str, Any]) -> None:
    layers = [build_layer(variant, 2, 2, group=COUNTERPARTS[variant.dimension][C4], **case) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(layers)
    x = random_input(layers[0], 4, 4, dtype=torch.float32)

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layers[0], (parameters, buffers), (x,)).square().sum()

    together = torch.func.vmap(torch.func.grad(loss))(parameters, buffers)
    for index, layer in enumerate(layers):
        layer(x).square().sum().backward()
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(together[name][index], parameter.grad, rtol=1e-4, atol=1e-4)
