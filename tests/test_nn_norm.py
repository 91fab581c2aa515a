"""A batch norm handed to a layer is the same as one applied before it, in value, gradients and statistics."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from conftest import build_layer, pairs
from sepgroupy.functional import fold, unfold
from sepgroupy.groups import C4

pytestmark = pytest.mark.usefixtures("as_if_large")

CASES: dict[str, dict[str, Any]] = {
    "1x1-stride": {"kernel_size": 1, "stride": 2},
    "3x3": {"kernel_size": 3, "padding": 1},
    "2x2-stride": {"kernel_size": 2, "stride": 2, "bias": False},
    "groups": {"kernel_size": 3, "groups": 2},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
}
NORMS: dict[str, dict[str, Any]] = {
    "usual": {},
    "momentum": {"momentum": 0.3, "eps": 1e-2},
    "cumulative": {"momentum": None},
    "still": {"momentum": 0.0},
    "no-affine": {"affine": False},
    "no-statistics": {"track_running_stats": False},
}
WAYS = [
    pair
    for pair in pairs(CASES)
    if pair.values[0] in (("dense", "auto"), ("g", "auto"), ("gc", "auto"), ("gc", "full"))
]


def a_norm(**options: Any) -> Any:
    norm: Any = nn.BatchNorm2d(4, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    return norm


def expected(layer: Any, norm: Any, x: Tensor) -> Tensor:
    return layer(unfold(F.relu(norm(fold(x))), x.shape[2]))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize(("way", "case"), WAYS)
def test_the_same_as_a_norm_before(
    way: tuple[str, str], case: dict[str, Any], options: dict[str, Any], training: bool
) -> None:
    ours, theirs = a_norm(**options), a_norm(**options)
    theirs.load_state_dict(ours.state_dict())
    layer = build_layer(way, 4, 6, group=C4, dtype=torch.float64, **case)
    for step in range(2):  # first in training mode, so that the running statistics take part
        for norm in (ours, theirs):
            norm.train(training or step == 0)
        x = torch.randn(3, 4, 4, 5, 5, dtype=torch.float64) * 3 + 1
        leaves = [(x.clone().requires_grad_(), norm) for norm in (ours, theirs)]
        y, y0 = layer(leaves[0][0], norm=ours), expected(layer, theirs, leaves[1][0])
        torch.testing.assert_close(y, y0, atol=1e-10, rtol=0)
        weight = torch.randn_like(y)
        gradients = [
            torch.autograd.grad((out * weight).sum(), (leaf, *norm.parameters(), *layer.parameters()))
            for out, (leaf, norm) in zip((y, y0), leaves, strict=True)
        ]
        torch.testing.assert_close(*gradients, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("way", "case"), WAYS)
def test_first_and_second_derivatives(way: tuple[str, str], case: dict[str, Any], training: bool) -> None:
    norm = a_norm().train(training)
    layer = build_layer(way, 4, 2, group=C4, dtype=torch.float64, **case)
    names = [name for name, _ in layer.named_parameters()]

    def call(x: Tensor, gamma: Tensor, beta: Tensor, *parameters: Tensor) -> Tensor:
        copied = copy.deepcopy(norm)
        del copied.weight, copied.bias
        copied.weight, copied.bias = gamma, beta
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x, copied))

    x = torch.randn(2, 4, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    inputs = (x, norm.weight, norm.bias, *layer.parameters())
    assert gradcheck(call, inputs, fast_mode=True)
    assert gradgradcheck(call, inputs, fast_mode=True)


def test_a_watched_norm_is_called() -> None:
    layer, norm, seen = build_layer(("gc", "auto"), 4, 2, 3, group=C4, dtype=torch.float64), a_norm(), []
    norm.register_forward_hook(lambda *_: seen.append(True))
    layer(torch.randn(2, 4, 4, 5, 5, dtype=torch.float64), norm)
    assert seen == [True]


def test_any_other_module_serves_too() -> None:
    layer = build_layer(("gc", "auto"), 4, 2, 3, group=C4, dtype=torch.float64)
    norm = nn.GroupNorm(2, 4).double()
    x = torch.randn(2, 4, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x, norm), expected(layer, norm, x))


def test_the_input_is_left_as_it_is() -> None:
    layer, norm = build_layer(("gc", "auto"), 4, 2, 3, group=C4, dtype=torch.float64), a_norm()
    x = unfold(torch.randn(8, 4, 5, 5, dtype=torch.float64), 4)
    before = x.clone()
    layer(x, norm).sum().backward()
    assert torch.equal(x, before)
