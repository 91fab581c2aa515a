from __future__ import annotations

import csv
import sys
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepgroupy import GroupConv2d, backends, build_model
from sepgroupy.models import model_names

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/ belongs to the repository, not to the library

from benchmarks import layers, machine, measure, models, pictures, scaling, summary
from benchmarks.__main__ import main
from benchmarks.baseline import BaselineConv, baseline

CASE = layers.Case("p4", "gc", 3, 1, channels=3, size=5, batch=2)
CPU = torch.device("cpu")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_quick_run_writes_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--rounds", "1", "--threads", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert main(arguments) == 0
    found = {suite: rows_of(tmp_path / f"{suite}.csv") for suite in ("layers", "models", "scaling")}
    assert [(row["kind"], row["kernel"], row["variant"]) for row in found["layers"]] == [
        *(("gc", "3", name) for name in ("baseline", "sepgroupy torch", "sepgroupy")),
        *(("dense", "1", name) for name in ("baseline", "ready bank", "sepgroupy torch", "sepgroupy")),
        *(("dense", "3", name) for name in ("baseline", "ready bank", "sepgroupy torch", "sepgroupy")),
        *(("g", "3", name) for name in ("baseline", "sepgroupy torch", "sepgroupy")),
        *(("gc", "4", name) for name in ("baseline", "sepgroupy torch", "sepgroupy")),
    ]
    assert [(row["model"], row["variant"]) for row in found["models"]] == [
        ("z2cnn", "sepgroupy"), ("gc-p4cnn", "baseline"), ("gc-p4cnn", "sepgroupy torch"), ("gc-p4cnn", "sepgroupy"),
    ]  # fmt: skip
    assert [row["sweep"] for row in found["scaling"]] == [s for s in scaling.SWEEPS for _ in range(5)]
    for row in (row for rows in found.values() for row in rows):
        assert float(row["evaluation_ms"]) > 0
        assert float(row["step_ms"]) > 0
        assert row["rounds"] == row["threads"] == "1"
        assert row["cpu"]
        assert row["torch"] == torch.__version__
        if row["variant"] == "baseline":
            assert row["evaluation_speedup"] == row["step_speedup"] == "1.0"
        elif "z2cnn" not in row.values():
            assert float(row["output_error"]) <= 1e-5
    assert {path.name for path in tmp_path.glob("*.png")} == {f"benchmark-{suite}.png" for suite in found}
    assert "| with the kernels | target | measured | met |" in capsys.readouterr().out


def test_a_row_that_disagrees_is_refused_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scaling, "forced", lambda layer, algorithm: scaling.MIDDLE.layer())
    monkeypatch.setattr(scaling, "SWEEPS", {"channels": [scaling.MIDDLE]})
    assert main(["--only", "scaling", "--rounds", "1", "--device", "cpu", "--out", str(tmp_path)]) == 1
    assert "REFUSED channels: p4m gc 3×3, 32 channels" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.csv"))


class Spoiled(nn.Module):
    """A layer whose output or whose gradient is wrong by a factor, or not a number."""

    def __init__(self, layer: GroupConv2d, output: float = 1.0, gradient: float = 1.0) -> None:
        super().__init__()
        self.layer, self.output, self.gradient = layer, output, gradient

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x) * self.gradient
        return y + (self.output * self.layer(x) - y).detach()


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        ({"output": 1 + 3e-5}, "outputs"),
        ({"output": float("nan")}, "outputs"),
        ({"gradient": 1 + 3e-5}, "gradients"),
        ({"gradient": float("nan")}, "outputs"),
    ],
)
def test_check_sees_wrong_outputs_and_gradients(spoil: dict[str, float], what: str) -> None:
    torch.manual_seed(0)
    layer, x = CASE.layer(), CASE.input(CPU)
    truth = measure.exact(measure.Variant("baseline", BaselineConv(layer)), x)
    right = measure.check(measure.Variant("right", Spoiled(layer), group_outermost=True), truth, x)
    assert max(error or 0.0 for error in right) < 3e-6
    with pytest.raises(measure.DisagreementError, match=f"variant wrong: its {what} differ"):
        measure.check(measure.Variant("wrong", Spoiled(layer, **spoil)), truth, x)


class Biased(torch.autograd.Function):
    """The identity with a gradient that is off by 1e-3."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 1.001 * grad


def test_check_sees_a_wrong_gradient_of_a_network() -> None:
    torch.manual_seed(0)
    model = build_model("gc-p4cnn", width=3)
    x, labels = models.Case("gc-p4cnn", 4).pictures(CPU)
    truth = measure.exact(measure.Variant("baseline", baseline(model)), x, labels)
    measure.check(measure.Variant("right", model), truth, x, labels)
    pool = model.pool.forward
    model.pool.forward = lambda maps: Biased.apply(pool(maps))
    with pytest.raises(measure.DisagreementError, match="gradients differ"):
        measure.check(measure.Variant("wrong", model), truth, x, labels)


@pytest.mark.parametrize("name", [n for n in model_names() if "p4" in n])
def test_baseline_is_the_model(name: str) -> None:
    torch.manual_seed(0)
    options = {"depth": 8, "widths": (3, 4, 5)} if "resnet" in name else {"width": 4}
    model = build_model(name, **options).double()
    x, labels = models.Case(name, 3).pictures(CPU)
    pair, results = (model, baseline(model)), []
    assert not any(isinstance(m, GroupConv2d) for m in pair[1].modules())
    for net in pair:
        y = net.train()(x.double())
        F.cross_entropy(y, labels).backward()
        gradients = [p.grad for p in net.parameters()]
        with torch.no_grad():  # with running statistics that have moved
            results.append([y.detach(), net.eval()(x.double()), *gradients])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    assert max(g.abs().max() for g in results[1][2:]) > 0.01


def test_kept_bytes_counts_storages_once_and_not_what_is_there_anyway() -> None:
    class Keeps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.exp()  # keeps y
            return (y[:2].square().sum() + y.square().sum()) * x.sum()  # y again, in part; and two sums of 4 bytes

    run = measure.Run(measure.Variant("keeps", Keeps()), torch.randn(3, 2, 4, 5, 5))
    assert run.kept_bytes() == 4 * 3 * 2 * 4 * 5 * 5 + 2 * 4
    linear = measure.Run(measure.Variant("linear", nn.Conv2d(2, 2, 3)), torch.randn(3, 2, 5, 5))
    assert linear.kept_bytes() == 0


def test_limits_are_the_products_and_the_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = machine.Rates(macs=1e9, bytes=1e9)
    pixels = 16 * 16 * 16  # of 16 pictures
    gc, dense = layers.Case("p4m", "gc", 3, 1, 56, 16, 16), layers.Case("p4m", "dense", 3, 1, 23, 16, 16)
    monkeypatch.setattr(layers.Case, "layer", partialmethod(layers.Case.layer, "torch"))
    found = layers.limit(gc, rates)
    assert found["algorithm"] == "fourier"
    assert found["evaluation_products_ms"] == pytest.approx(12 * 56**2 * pixels / 1e6, abs=1e-4)
    assert found["step_products_ms"] == pytest.approx(36 * 56**2 * pixels / 1e6, abs=1e-4)
    assert found["evaluation_moves_ms"] == pytest.approx(2 * 4 * 56 * 8 * pixels / 1e6, abs=1e-4)
    assert found["step_moves_ms"] == pytest.approx(5 * 4 * 56 * 8 * pixels / 1e6, abs=1e-4)
    found = layers.limit(dense, rates)
    assert found["evaluation_products_ms"] == pytest.approx(64 * 9 * 23**2 * pixels / 1e6, abs=1e-4)


@pytest.mark.skipif(not backends()["native"].startswith("C kernels"), reason="there are no kernels")
def test_limits_of_the_kernels() -> None:
    rates = machine.Rates(macs=1e9, bytes=1e9)
    gc = layers.limit(layers.Case("p4m", "gc", 3, 1, 56, 16, 16), rates)
    assert gc["step_products_ms"] == pytest.approx(4 * 12 * 56**2 * 16**3 / 1e6, abs=1e-4)
    dense = layers.limit(layers.Case("p4m", "dense", 3, 1, 23, 16, 16), rates)
    assert dense["evaluation_products_ms"] == pytest.approx(12 * 9 * 23**2 * 16**3 / 1e6, abs=1e-4)


def test_targets_read_the_rows_they_name() -> None:
    common = {"model": "gc-p4m-resnet44", "batch": "16", "threads": "2", "construction_ms": "30"}
    row = {**common, "variant": "baseline", "evaluation_ms": "90", "step_ms": "300", "kept_mib": "100"}
    ours = {**common, "variant": "sepgroupy", "evaluation_ms": "40", "step_ms": "200", "kept_mib": "50"}
    row |= {"evaluation_speedup": "1", "step_speedup": "1"}
    ours |= {"evaluation_speedup": "2.25", "step_speedup": "1.5"}  # of rounds, which times of all rounds need not give
    slow = {**ours, "step_speedup": "0.97", "threads": "1", "step_ms": "900"}
    alone = {**ours, "variant": "sepgroupy torch", "step_speedup": "1.25", "step_ms": "900"}
    found = [row, ours, alone, slow]
    against = {"model": "gc-p4cnn", "against": "p4cnn", "batch": "256", "threads": "2", "step_ms": "250"}
    pair = [
        {**against, "variant": name, "step_speedup": s} for name, s in (("p4cnn baseline", "1"), ("gc-p4cnn", "1.04"))
    ]
    table = summary.targets({"models": [{"precision": "float32", **each} for each in found], "across": pair})
    assert "| P4CNN's published step over gc-P4CNN's, batch 256 | >= 1 | 1.04 | yes |" in table
    assert "| gc-p4m-ResNet44, evaluation, batch 16 | >= 2 | 2.25 | yes |" in table
    assert "| gc-p4m-ResNet44, training step, batch 16 | >= 1.8 | 1.25 | no |" in table
    assert "| gc-p4m-ResNet44, training step, batch 16 | >= 3 | 1.50 | no |" in table
    assert "| gc-p4m-ResNet44, memory kept for backward | <= 0.6 | 0.50 | yes |" in table
    assert "| slowest of all rows against PyTorch alone | >= 1 | 1.00 | yes |" in table
    assert "| gc-P4CNN, training step, batch 256 | >= 3 |  |  |" in table
    assert [line[:10] for line in summary.slower({"models": [slow]})] == ["0.97 times"]


def test_bars_compare_times_within_rounds_as_the_tables_do() -> None:
    common = {"model": "p4cnn", "batch": "1", "threads": "2"}
    base = {"variant": "baseline", "evaluation_ms": "10", "step_ms": "", "evaluation_speedup": "1"}
    ours = {"variant": "sepgroupy", "evaluation_ms": "9", "step_ms": "", "evaluation_speedup": "0.8"}
    figure = pictures._relative([{**common, **row} for row in (base, ours)], layers=False)
    assert [bar.get_width() for bar in figure.axes[0].patches] == [pytest.approx(1.25)]
