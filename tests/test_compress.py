from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sepgroupy import GroupConv2d, GroupConvTranspose2d, GroupPool, LiftingConv2d, PerElement, assert_equivariant
from sepgroupy.compression import compress
from sepgroupy.errors import ArgumentError
from sepgroupy.functional import full_filter
from sepgroupy.models import build_model

GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": {"kernel_size": 4, "stride": 2, "padding": 1, "bias": False},
    "same": {"kernel_size": 3, "padding": "same", "padding_mode": "circular", "dilation": 2},
    "blocks": {"groups": 2},
}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("case", GEOMETRIES)
@pytest.mark.parametrize("group", ["p4", "p4m"])
@pytest.mark.parametrize("kind", ["g", "gc"])
def test_is_lossless_on_filters_of_its_kind(kind: str, group: str, case: str) -> None:
    options = {"kernel_size": 3} | GEOMETRIES[case]
    thin = GroupConv2d(4, 6, **options, group=group, kind=kind, dtype=torch.float64)
    dense = GroupConv2d(4, 6, **options, group=group, dtype=torch.float64)
    dense.load_state_dict(
        {"weight": full_filter(thin.depthwise_weight, thin.pointwise_weight).detach()}
        | ({"bias": torch.randn(6)} if dense.bias is not None else {})
    )
    net, (row,) = compress(dense, kind)
    assert isinstance(net, GroupConv2d)
    assert net.kind == kind
    assert replace(net.spec, kind="dense") == dense.spec
    assert row.error < 1e-14
    x = torch.randn(2, 4, dense.group.order, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(net(x), dense(x))
    assert (row.before, row.after) == (parameters(dense), parameters(thin))


@pytest.mark.parametrize("kind", ["g", "gc"])
def test_no_other_filter_of_the_kind_is_nearer(kind: str) -> None:
    dense = GroupConv2d(3, 2, 3, group="p4", dtype=torch.float64)
    weight = dense.get_parameter("weight").detach()
    net, (row,) = compress(dense, kind)
    near = full_filter(net.get_parameter("depthwise_weight"), net.get_parameter("pointwise_weight")).detach()
    matrices = weight.reshape(2, 3, 4, 9) if kind == "g" else weight.reshape(2, 1, 12, 9)
    # The squared error is the sum of all squared singular values but the first (Eckart & Young).
    values = np.linalg.svd(matrices.numpy(), compute_uv=False)
    assert float((near - weight).square().sum()) == pytest.approx((values[..., 1:] ** 2).sum())
    assert row.error == pytest.approx(((values[..., 1:] ** 2).sum() / (values**2).sum()) ** 0.5)
    with torch.no_grad():
        norms = [float(net.get_parameter(f"{name}_weight").norm()) for name in ("depthwise", "pointwise")]
    assert norms[0] == pytest.approx(norms[1])


def test_exchanges_what_is_dense_wherever_it_stands_and_nothing_else() -> None:
    shared = GroupConv2d(4, 4, 3, padding=1, group="p4")
    model = nn.Sequential(
        LiftingConv2d(1, 4, 3, padding=1, group="p4"),
        shared,
        PerElement(nn.BatchNorm2d(4)),
        nn.Sequential(GroupConv2d(4, 4, 1, group="p4"), shared),
        GroupConv2d(4, 4, 3, padding=1, group="p4", kind="g"),
        GroupConvTranspose2d(4, 2, 2, stride=2, group="p4"),
        GroupPool("max"),
    ).eval()
    before = copy.deepcopy(model.state_dict())
    net, rows = compress(model, "gc")
    assert [row.name for row in rows] == ["1", "5"]
    assert net[1] is net[3][1]
    assert [net[i].kind for i in (0, 1, 4, 5)] == ["lifting", "gc", "g", "gc"]
    assert net[3][0].kind == "dense"
    assert not net.training
    assert model[1].kind == "dense"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert net[1].bias is not model[1].bias
    assert_equivariant(net, "p4", torch.randn(1, 1, 8, 8))


def test_transposed_convolutions_are_nearest_too() -> None:
    thin = GroupConvTranspose2d(4, 2, 3, stride=2, padding=1, group="p4", kind="gc", dtype=torch.float64)
    dense = GroupConvTranspose2d(4, 2, 3, stride=2, padding=1, group="p4", dtype=torch.float64)
    with torch.no_grad():
        dense.weight.copy_(full_filter(thin.depthwise_weight, thin.pointwise_weight))
    net, (row,) = compress(dense, "gc")
    assert row.error < 1e-14
    x = torch.randn(1, 4, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(net(x), dense(x))


@pytest.mark.parametrize("kind", ["g", "gc"])
def test_the_paper_s_network_becomes_the_paper_s_other_network(kind: str) -> None:
    dense, thin = build_model("p4cnn"), build_model(f"{kind}-p4cnn-small")
    net, rows = compress(dense, kind)
    thin.load_state_dict(net.state_dict())
    assert parameters(net) == {"g": 8910, "gc": 3420}[kind]
    assert sum(row.before - row.after for row in rows) == parameters(dense) - parameters(net)
    x = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(thin.eval()(x), net.eval()(x))
    net.train()(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_frozen_filters_stay_frozen() -> None:
    net, _ = compress(GroupConv2d(2, 2, 3, group="p4").requires_grad_(False))
    assert not any(p.requires_grad for p in net.parameters())


REPARAMETRIZATIONS: dict[str, Any] = {
    "weight_norm": torch.nn.utils.weight_norm,
    "spectral_norm": torch.nn.utils.spectral_norm,
    "prune": lambda m, name: prune.l1_unstructured(m, name, 0.4),
    "new weight_norm": torch.nn.utils.parametrizations.weight_norm,
    "new spectral_norm": torch.nn.utils.parametrizations.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize("how", REPARAMETRIZATIONS.values(), ids=REPARAMETRIZATIONS)
@pytest.mark.parametrize("kind", ["g", "gc"])
def test_filters_that_are_recomputed_are_those_of_the_next_call(kind: str, how: Any) -> None:
    def build() -> nn.Module:
        layers = [GroupConv2d(3, 4, 3, group="p4"), GroupConvTranspose2d(4, 2, 2, stride=2, group="p4")]
        for layer in layers:
            how(layer, "weight")
        how(layers[1], "bias") if how is REPARAMETRIZATIONS["prune"] else None
        return nn.Sequential(*layers).double()

    model, other = build(), build()
    x = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64)
    model(x)
    model.load_state_dict(other.state_dict())
    other.eval()(x)  # computes its weights
    expected = [compress(_with_plain_filters(layer), kind) for layer in other.children()]
    net, rows = compress(model, kind)
    assert net.training
    assert [row.error for row in rows] == pytest.approx([row.error for (_, (row,)) in expected])
    y = x
    for layer, _ in expected:
        y = layer(y)
    torch.testing.assert_close(net(x), y)
    assert all("_orig" not in key and "original" not in key for key in net.state_dict())
    model.eval()
    torch.testing.assert_close(model(x), other(x))


def _with_plain_filters(layer: Any) -> nn.Module:
    options = {"group": "p4", "stride": layer.spec.stride, "dtype": torch.float64}
    kind = GroupConv2d if isinstance(layer, GroupConv2d) else GroupConvTranspose2d
    plain_layer = kind(layer.in_channels, layer.out_channels, layer.spec.kernel_size, **options)
    with torch.no_grad():
        plain_layer.weight.copy_(layer.weight)
        plain_layer.bias.copy_(layer.bias)
    return plain_layer


class Scaled(GroupConv2d):
    def forward(self, *args: Any, **options: Any) -> torch.Tensor:
        return 2 * super().forward(*args, **options)


class Renamed(GroupConv2d):
    """A layer with a signature of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, group="p4")


def test_what_a_layer_computes_beside_its_filters_is_refused() -> None:
    hooked = GroupConv2d(2, 2, 3, group="p4")
    hooked.register_forward_hook(lambda module, args, y: y + 1)
    for layer in (Scaled(2, 2, 3, group="p4"), hooked):
        with pytest.raises(ArgumentError, match=r"^1 \(\w+\) computes something else than its weights say"):
            compress(nn.Sequential(nn.ReLU(), layer))
    net, _ = compress(Renamed(2))
    assert type(net) is GroupConv2d


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (GroupConv2d(2, 2, 3, group="p4"), "dense", "kind"),
        (GroupConv2d(2, 2, 3, group="p4", kind="gc"), "g", "no dense group convolution"),
        (nn.Conv2d(2, 2, 3), "g", "no dense group convolution"),
    ],
)
def test_refuses_what_it_cannot_do(model: nn.Module, kind: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        compress(model, kind)


def test_refuses_filters_that_are_not_finite() -> None:
    layer = GroupConv2d(2, 2, 3, group="p4")
    layer.get_parameter("weight").data[0, 0, 0] = torch.inf
    with pytest.raises(ArgumentError, match=r"0 that are not finite"):
        compress(nn.Sequential(layer))
