from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from sepgroupy.functional._filters import full_filter
from torch import nn

from sepgroupy import Folded, GroupConv2d, GroupConvTranspose2d, GroupPool, LiftingConv2d, assert_equivariant
from sepgroupy.compression import compress
from sepgroupy.errors import ArgumentError
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
    assert net.plan.kind == kind
    assert net.plan.geometry == dense.plan.geometry
    assert row.error < 1e-14
    x = torch.randn(2, 4, dense.plan.group.order, 9, 9, dtype=torch.float64)
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
        Folded(nn.BatchNorm2d(4)),
        nn.Sequential(GroupConv2d(4, 4, 1, group="p4"), shared),
        GroupConv2d(4, 4, 3, padding=1, group="p4", kind="g"),
        GroupConvTranspose2d(4, 2, 2, stride=2, group="p4"),
        GroupPool("max"),
    ).eval()
    before = copy.deepcopy(model.state_dict())
    net, rows = compress(model, "gc")
    assert [row.name for row in rows] == ["1", "5"]
    assert net[1] is net[3][1]
    assert [net[i].plan.kind for i in (0, 1, 4, 5)] == ["lifting", "gc", "g", "gc"]
    assert net[3][0].plan.kind == "dense"
    assert not net.training
    assert model[1].plan.kind == "dense"
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
