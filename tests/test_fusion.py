"""What is fused is the same as step by step, in value, gradients and statistics: norm, ReLU, pooling, shortcut."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from conftest import build_layer, pairs
from sepgroupy.errors import ArgumentError
from sepgroupy.functional import fold, unfold
from sepgroupy.functional._native import _maps
from sepgroupy.groups import C4
from sepgroupy.models import ResNet
from sepgroupy.nn._norm import norm_relu_pool

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


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (2, 2), (30, 141)])  # 141: more windows than are pooled at a time
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", NORMS.values(), ids=NORMS)
def test_pooled_as_by_three_modules(options: dict[str, Any], training: bool, size: tuple[int, int]) -> None:
    ours, theirs = a_norm(**options), a_norm(**options)
    theirs.load_state_dict(ours.state_dict())
    for step in range(2):
        for norm in (ours, theirs):
            norm.train(training or step == 0)
        x = torch.randn(5, 4, *size, dtype=torch.float64) * 3 + 1
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        y, y0 = norm_relu_pool(ours, leaves[0]), F.max_pool2d(F.relu(theirs(leaves[1])), 2)
        torch.testing.assert_close(y, y0, atol=1e-12, rtol=0)
        weight = torch.randn_like(y)
        gradients = [
            torch.autograd.grad((out * weight).sum(), (leaf, *norm.parameters()))
            for out, leaf, norm in zip((y, y0), leaves, (ours, theirs), strict=True)
        ]
        torch.testing.assert_close(*gradients, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_derivatives_of_pooling(training: bool) -> None:
    norm = a_norm().train(training)

    def call(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        copied = copy.deepcopy(norm)
        del copied.weight, copied.bias
        copied.weight, copied.bias = gamma, beta
        return norm_relu_pool(copied, x)

    inputs = (torch.randn(2, 4, 5, 4, dtype=torch.float64, requires_grad=True), norm.weight, norm.bias)
    assert gradcheck(call, inputs, fast_mode=True)
    assert gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_pooling_what_is_no_number(value: float) -> None:
    norm, x = a_norm().eval(), torch.randn(2, 4, 6, 18, dtype=torch.float64)
    for pixel in range(4):
        x[1, pixel, 2 + pixel // 2, 2 * pixel + pixel % 2] = value
    y = norm_relu_pool(norm, x.requires_grad_())
    torch.testing.assert_close(y, F.max_pool2d(F.relu(norm(x)), 2), equal_nan=True)


def test_equal_pixels_are_told_apart_as_pooling_does() -> None:
    norm, x = a_norm(affine=False).eval(), torch.ones(1, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(norm_relu_pool(norm, x).sum(), x)
    (theirs,) = torch.autograd.grad(F.max_pool2d(F.relu(norm(x)), 2).sum(), x)
    assert torch.equal(ours != 0, theirs != 0)


@pytest.mark.parametrize("pool", [True, False], ids=["pooled", "convolved"])
def test_a_watched_norm_is_called_by_all(pool: bool) -> None:
    norm, seen = a_norm(), []
    norm.register_forward_hook(lambda *_: seen.append(True))
    x = torch.randn(2, 4, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    layer = build_layer(("dense", "auto"), 4, 2, 3, group=C4, dtype=torch.float64)
    norm_relu_pool(norm, fold(x)) if pool else layer(x, norm)
    assert seen == [True]


@pytest.mark.parametrize(("way", "case"), WAYS)
@pytest.mark.parametrize("gradients", [True, False])
def test_a_shortcut_is_added(way: tuple[str, str], case: dict[str, Any], gradients: bool) -> None:
    layer, norm = build_layer(way, 4, 6, group=C4, dtype=torch.float64, **case), a_norm().eval()
    x = torch.randn(3, 4, 4, 5, 5, dtype=torch.float64)
    with torch.set_grad_enabled(gradients):
        alone = layer(x, norm)
        shortcut = torch.randn_like(alone).requires_grad_()
        y = layer(x, norm, shortcut)
        torch.testing.assert_close(y, alone + shortcut)
        if gradients:
            y.backward(weight := torch.randn_like(y))
            torch.testing.assert_close(shortcut.grad, weight)
        for wrong in (shortcut[:1], shortcut[..., :1], shortcut.mean()):
            with pytest.raises(ArgumentError, match="shortcut has shape"):
                layer(x, norm, wrong)


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


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("lifted", [False, True])
@pytest.mark.parametrize(("way", "case"), WAYS)
def test_statistics_taken_as_a_map_is_written(
    way: tuple[str, str], case: dict[str, Any], lifted: bool, edited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    invoke = _maps.invoke
    monkeypatch.setattr(_maps, "invoke", lambda name, *rest: (called.append(name), invoke(name, *rest)))
    kind, x = ("lifting", torch.randn(3, 2, 6, 6)) if lifted else ("gc", torch.randn(3, 2, 4, 6, 6))
    first = build_layer((kind, "auto"), 2, 4, 3, padding=1, group=C4, dtype=torch.float64)
    second = build_layer(way, 4, 6, group=C4, dtype=torch.float64, **case)
    y = first(x.double().requires_grad_(), moments=True)
    if edited:
        y.detach().mul_(2).add_(1)
    ours, theirs = a_norm(), a_norm()
    theirs.load_state_dict(ours.state_dict())
    results = []
    for z, norm in ((second(y, ours), ours), (expected(second, theirs, y), theirs)):
        wanted = (*first.parameters(), *second.parameters(), *norm.parameters())
        results.append([z, *torch.autograd.grad(z.cos().sum(), wanted, retain_graph=True)])
    torch.testing.assert_close(*results, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), atol=1e-12, rtol=0)
    assert called in ([], ["statistics"] if edited else [])  # no pass but for a map that has changed


@pytest.mark.parametrize("norm", ["batch", "layer", None])
@pytest.mark.parametrize(("way", "case"), WAYS)
def test_a_fork_adds_the_gradient_of_its_branch(way: tuple[str, str], case: dict[str, Any], norm: str | None) -> None:
    layer = build_layer(way, 4, 6, group=C4, dtype=torch.float64, **case)
    module = {"batch": a_norm(), "layer": nn.GroupNorm(2, 4).double(), None: None}[norm]
    x = torch.randn(3, 4, 4, 5, 5, dtype=torch.float64, requires_grad=True)

    def loss(y: Tensor | None, again: Tensor) -> Tensor:
        return again.sin().sum() + (0 if y is None else y.cos().sum())

    forks = (layer.fork(x, module), (layer(x, module), x))
    wanted = [x, *layer.parameters(), *([] if module is None else module.parameters())]
    found, theirs = ([*fork, *torch.autograd.grad(loss(*fork), wanted, retain_graph=True)] for fork in forks)
    torch.testing.assert_close(found, theirs, atol=1e-10, rtol=1e-10)
    found, theirs = (torch.autograd.grad(loss(None, again), x) for _, again in forks)
    torch.testing.assert_close(found, theirs)


@pytest.mark.parametrize("watched", [False, True])
def test_a_hook_may_edit_what_a_norm_will_read(watched: bool) -> None:
    networks = [ResNet("gc", 8, (4, 4, 4), "p4", backend=algorithm).double() for algorithm in ("auto", "torch")]
    networks[1].load_state_dict(networks[0].state_dict())
    x, results, edited = torch.randn(2, 3, 8, 8, dtype=torch.float64), [], []

    def edit(_module: nn.Module, _inputs: Any, y: Tensor) -> None:
        edited.append(y.data.exp_())  # which leaves no trace

    for network in networks:
        for block in (network.layer1[0], network.layer2[0]) if watched else ():
            block.conv1.register_forward_hook(edit)
            block.conv2.register_forward_hook(edit)
        y = network(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(network.parameters()))])
    torch.testing.assert_close(*results, atol=1e-8, rtol=1e-8)
    assert len(edited) == (8 if watched else 0)
