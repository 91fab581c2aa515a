from __future__ import annotations

import copy
from math import gamma
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sepgroupy import GroupConv2d, GroupConvTranspose2d, LiftingConv2d, build_model
from sepgroupy.analysis import LayerRedundancy, draw_redundancy, plot_redundancy, redundancy, reinitialized_copy
from sepgroupy.errors import ArgumentError
from sepgroupy.functional import full_filter


def one(layer: nn.Module) -> LayerRedundancy:
    (row,) = redundancy(layer)
    return row


def dense(weight: torch.Tensor, group: str = "p4") -> GroupConv2d:
    layer = GroupConv2d(weight.shape[1], weight.shape[0], tuple(weight.shape[3:]), group=group)
    layer.weight = nn.Parameter(weight)
    return layer


@pytest.mark.parametrize("group", ["p4", "p4m"])
def test_is_one_for_filters_that_are_separable(group: str) -> None:
    order = {"p4": 4, "p4m": 8}[group]
    pointwise = torch.randn(5, 3, order, 1, 1)
    g = one(dense(full_filter(torch.randn(5, 3, 3, 3), pointwise), group))
    assert g.g is not None
    assert g.gc is not None
    assert g.g.shape == (5, 3)
    torch.testing.assert_close(g.g, torch.ones(5, 3, dtype=torch.float64))
    assert g.gc.shape == (5,)
    assert g.gc.max() < 0.9  # three kernels serve each output channel
    gc = one(dense(full_filter(torch.randn(5, 1, 1, 3, 3), pointwise), group))
    torch.testing.assert_close(gc.g, torch.ones(5, 3, dtype=torch.float64))
    torch.testing.assert_close(gc.gc, torch.ones(5, dtype=torch.float64))


def test_is_the_share_of_the_largest_eigenvalue_of_the_covariance() -> None:
    weight = torch.randn(2, 3, 4, 3, 3, dtype=torch.float64)
    row = one(dense(weight))
    assert row.g is not None
    assert row.gc is not None
    for o in range(2):
        eigenvalues = np.linalg.eigvalsh(np.cov(weight[o].reshape(12, 9).numpy().T))
        assert float(row.gc[o]) == pytest.approx(eigenvalues[-1] / eigenvalues.sum())
        for i in range(3):
            eigenvalues = np.linalg.eigvalsh(np.cov(weight[o, i].reshape(4, 9).numpy().T))
            assert float(row.g[o, i]) == pytest.approx(eigenvalues[-1] / eigenvalues.sum())


def test_is_centred_and_one_for_equal_kernels() -> None:
    scaled = torch.randn(4, 1, 1) * torch.randn(3, 3) + torch.randn(3, 3)  # on a line that misses the origin
    equal = torch.randn(3, 3).expand(4, 3, 3) * 1e4
    row = one(dense(torch.stack([scaled, equal, torch.zeros(4, 3, 3)])[None].double()))
    torch.testing.assert_close(row.g, torch.ones(1, 3, dtype=torch.float64))


def test_random_filters_have_the_share_that_theory_gives_them() -> None:
    # Three points in 9 dimensions, centred, have the two eigenvalues of a 2×2 Wishart matrix with 9 degrees of freedom.
    # Its density, (λ₁λ₂)³·(λ₁-λ₂)·exp(-(λ₁+λ₂)/2), makes t = 4u(1-u) of the share u have the density 4t³ on (0, 1),
    # and E[u] = ½ + ½·E[√(1-t)] = ½ + ½·4·B(4, 3/2).
    expected = 0.5 + 0.5 * 4 * gamma(4) * gamma(1.5) / gamma(5.5)
    planar = nn.Conv2d(3, 4000, 3)
    nn.init.normal_(planar.weight)
    row = one(planar)
    assert row.g is None
    assert row.gc is not None
    assert float(row.gc.mean()) == pytest.approx(expected, abs=4 * float(row.gc.std()) / 4000**0.5)


def test_random_filters_on_a_group_have_the_share_that_theory_gives_them() -> None:
    # Four points in 9 dimensions: eigenvalues of a 3×3 Wishart matrix with 9 degrees of freedom, whose shares u have
    # a density proportional to Π u^((9-3-1)/2)·Π|uᵢ-uⱼ| on the simplex.
    a, b = np.meshgrid(*2 * [(np.arange(600) + 0.5) / 600], indexing="ij")
    c = 1 - a - b
    density = np.where(c > 0, (a * b * np.abs(c)) ** 2.5 * np.abs((a - b) * (b - c) * (c - a)), 0)
    expected = (density * np.maximum(np.maximum(a, b), c)).sum() / density.sum()
    row = one(dense(torch.randn(60, 60, 4, 3, 3)))
    assert row.g is not None
    assert row.gc is not None
    assert float(row.g.mean()) == pytest.approx(expected, abs=4 * float(row.g.std()) / 60)
    # Of many points in 9 dimensions the largest eigenvalue is about (1 + √(9/n))² (Marchenko & Pastur).
    assert float(row.gc.mean()) == pytest.approx((1 + (9 / 240) ** 0.5) ** 2 / 9, rel=0.1)


def test_redundancy_is_left_out_where_it_is_trivial_or_undefined() -> None:
    assert one(LiftingConv2d(3, 2, 3, group="p4")).g is None
    assert one(GroupConv2d(2, 2, 3, group="pm")).g is None
    net = nn.Sequential(
        LiftingConv2d(2, 2, 3, group="p4"),  # two points
        GroupConv2d(2, 2, 1, group="p4"),  # one dimension
        nn.Conv2d(8, 8, 3, groups=8),  # one point
        GroupConv2d(2, 2, 3, group="p4", kind="g"),  # separable
        nn.Linear(3, 3),
    )
    assert redundancy(net) == []


def test_names_layers_and_reads_transposed_ones() -> None:
    rows = redundancy(build_model("p4cnn"))
    assert [row.name for row in rows] == [f"conv{i}" for i in range(2, 8)]
    assert [row.name for row in redundancy(build_model("z2cnn"))] == [f"conv{i}" for i in range(2, 8)]
    transposed = one(GroupConvTranspose2d(3, 5, 3, group="p4"))
    assert transposed.g is not None
    assert transposed.g.shape == (3, 5)


def test_refuses_filters_that_are_not_finite() -> None:
    layer = dense(torch.full((1, 1, 4, 3, 3), torch.nan))
    with pytest.raises(ArgumentError, match="not finite"):
        redundancy(nn.Sequential(layer))


def test_reinitialized_copy_draws_new_parameters_and_does_not_change_the_model() -> None:
    torch.manual_seed(7)
    model = build_model("p4cnn")
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    fresh, again, other = reinitialized_copy(model), reinitialized_copy(model), reinitialized_copy(model, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name in ("conv2.weight", "fc.weight"):
        first, second, third = (net.state_dict()[name] for net in (fresh, again, other))
        assert torch.equal(first, second)
        assert not torch.equal(first, third)
        assert not torch.equal(first, before[name])
    assert float(fresh.state_dict()["conv2.weight"].std()) == pytest.approx(
        float(before["conv2.weight"].std()), rel=0.1
    )


def test_the_plot_shows_the_redundancy_for_g_and_gc_of_each_layer(tmp_path: Path) -> None:
    model = build_model("p4cnn", width=3)
    rows, chance = redundancy(model), redundancy(reinitialized_copy(model))
    figure = draw_redundancy(rows, chance)
    assert len(figure.axes) == 2
    assert figure.get_supylabel() == "variance explained by PC1 (%)"
    for axes in figure.axes:
        assert [text.get_text() for text in axes.get_xticklabels()] == [row.name for row in rows]
        assert axes.get_ylim()[1] >= 100
    plot_redundancy(tmp_path / "plot.png", rows, chance)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    plain = redundancy(build_model("z2cnn", width=3))
    assert len(draw_redundancy(plain, plain).axes) == 1
    with pytest.raises(ArgumentError, match="dense filters"):
        draw_redundancy([], [])


class Negated:
    """Recompute a weight in a pre-hook, as users do: not by a factor, which would leave the redundancy unchanged."""

    def __call__(self, module: nn.Module, args: object) -> None:
        module.weight = module.free**3  # type: ignore[operator]


def with_prehook(layer: nn.Module) -> nn.Module:
    layer.free = nn.Parameter(layer._parameters.pop("weight").detach())  # type: ignore[union-attr]
    layer.weight = layer.free.detach()
    layer.register_forward_pre_hook(Negated())
    return layer


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize(
    "how",
    [
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
        lambda m: torch.nn.utils.prune.l1_unstructured(m, "weight", 0.5),
        torch.nn.utils.parametrizations.weight_norm,
        with_prehook,
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        lambda: GroupConv2d(2, 3, 3, group="p4"),
        lambda: GroupConvTranspose2d(2, 3, 3, group="p4"),
        lambda: nn.Conv2d(3, 3, 3),
        lambda: nn.ConvTranspose2d(3, 3, 3, padding=1),
    ],
)
def test_filters_that_are_recomputed_are_those_of_the_next_call(make, how) -> None:  # type: ignore[no-untyped-def]
    layer, other = how(make()), how(make())
    shape = (1, 2, 4, 5, 5) if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) else (1, 3, 5, 5)
    layer(torch.randn(shape))
    layer.load_state_dict(other.state_dict())
    other.eval()(torch.randn(shape))
    plain = make()
    with torch.no_grad():
        plain.weight.copy_(other.weight)
    found, expected = one(layer), one(plain)
    torch.testing.assert_close(found.gc, expected.gc, rtol=1e-4, atol=1e-6)
    assert layer.training


def test_an_untrained_copy_of_a_reparametrized_layer_is_untrained() -> None:
    layer = torch.nn.utils.parametrizations.weight_norm(GroupConv2d(2, 3, 3, group="p4"))
    fresh = reinitialized_copy(layer, seed=3)
    assert (fresh.weight - layer.weight).abs().min() > 0
    assert torch.equal(fresh.weight, reinitialized_copy(GroupConv2d(2, 3, 3, group="p4"), seed=3).weight)
