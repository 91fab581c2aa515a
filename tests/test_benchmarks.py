from __future__ import annotations

import copy
import csv
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partialmethod
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from sepgroupy import GroupConv2d, available_backends, build_model, fuse
from sepgroupy.models import published_model_names

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/ belongs to the repository, not to the library

from benchmarks import (
    arguments,
    compare,
    escnn,
    gpu,
    hardware,
    layers,
    measure,
    plots,
    results,
    scaling,
    summary,
    volumes,
    worker,
)
from benchmarks.__main__ import main
from benchmarks.baseline import BaselineConv, baseline
from benchmarks.cases import LayerCase, NetworkCase

CASE = LayerCase("p4", "gc", 3, 1, channels=3, size=5, batch=2)
CPU = torch.device("cpu")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_quick_run_writes_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--rounds", "1", "--threads", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert main(arguments) == 0
    found = {suite: rows_of(tmp_path / f"{suite}.csv") for suite in ("layers", "models", "scaling")}
    three = ("baseline", "sepgroupy torch", "sepgroupy")
    four = ("baseline", "precomputed", "sepgroupy torch", "sepgroupy")
    assert [(row["kind"], row["kernel"], row["variant"]) for row in found["layers"]] == [
        (kind, kernel, name)
        for kind, kernel, names in (
            ("lifting", "7", three), ("lifting", "3", three), ("gc", "3", three), ("g", "3", three),
            ("dense", "3", four), ("dense", "1", four), ("dense", "2", four), ("dense", "2", three), ("gc", "2", three),
            ("gc", "4", three),
        )
        for name in names
    ]  # fmt: skip
    assert [(row["model"], row["variant"]) for row in found["models"]] == [
        ("z2cnn", "sepgroupy"), ("gc-p4cnn", "baseline"), ("gc-p4cnn", "sepgroupy torch"), ("gc-p4cnn", "sepgroupy"),
    ]  # fmt: skip
    assert [row["sweep"] for row in found["scaling"]] == [s for s in scaling.SWEEPS for _ in range(5)]
    for row in (row for rows in found.values() for row in rows):
        assert float(row["inference_ms"]) > 0
        assert float(row["step_ms"]) > 0
        assert row["rounds"] == row["threads"] == "1"
        assert row["cpu"]
        assert row["torch"] == torch.__version__
        if row["variant"] == "baseline":
            assert row["inference_speedup"] == row["step_speedup"] == "1.0"
        elif "z2cnn" not in row.values():
            assert float(row["output_error"]) <= 1e-5
    assert {path.name for path in tmp_path.glob("*.png")} == {f"benchmark-{suite}.png" for suite in found}
    assert "| with the kernels | target | measured | met |" in capsys.readouterr().out


def test_the_table_of_a_gpu_has_every_row_that_fits_into_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: compiled.append(module) or module)
    options = ["--only", "gpu", "--quick", "--rounds", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert main(options) == 0
    lines = rows_of(tmp_path / "gpu.csv")
    assert [(line["model"], line["variant"], line["memory_format"], line["mode"]) for line in lines] == [
        *(("z2cnn", "sepgroupy", layout, "eager") for layout in ("contiguous", "channels_last")),
        *(("gc-p4cnn", name, layout, "eager") for name in ("baseline", "sepgroupy") for layout in
          ("contiguous", "channels_last")),
        *((name, "sepgroupy", layout, "compiled") for layout in ("contiguous", "channels_last") for name in
          ("gc-p4cnn", "z2cnn")),
    ]  # fmt: skip
    assert len(compiled) == 4
    for line in lines:
        assert float(line["step_images_per_s"]) > 0
        assert float(line["paper_mib_2_images"]) == {"z2cnn": 0.84, "gc-p4cnn": 5.83}[line["model"]]
        assert float(line["peak_mib_2_images"]) > 0
        assert line["device"] == "cpu"
    monkeypatch.setattr(gpu, "SECONDS", -1.0)
    assert main(options) == 0
    assert "not measured, beyond -1 s: z2cnn sepgroupy batch 4, float32, contiguous, eager" in capsys.readouterr().out
    assert rows_of(tmp_path / "gpu.csv") == lines


def test_the_rows_of_a_gpu_are_the_whole_table() -> None:
    table = gpu.rows(torch.device("cuda"), quick=False)
    assert len(set(table)) == len(table)
    for name, batch in product(published_model_names(), (128, 512)):
        found = {(row.precision, row.memory_format) for row in table if (row.model, row.batch) == (name, batch)}
        assert found == set(product(("float32", "tf32", "bfloat16"), ("contiguous", "channels_last")))
    compiled = [row for row in table if row.mode == "compiled"]
    assert {row.model for row in compiled} == set(published_model_names())
    assert (compiled[0].model, compiled[0].precision) == ("gc-p4m-resnet44", "bfloat16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--device", "cuda"])
    assert "argument --device: cuda is not on this machine" in capsys.readouterr().err


@pytest.mark.skipif(not available_backends()["native"].startswith("C++ kernels"), reason="there are no kernels")
@pytest.mark.skipif(find_spec("escnn") is not None, reason="escnn is installed")
def test_a_library_that_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        escnn.main(["--quick"])
    assert "pip install escnn" in capsys.readouterr().err


def test_volumes_are_compared_with_ready_filters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert volumes.main(["--quick", "--rounds", "1", "--out", str(tmp_path)]) == 0
    found = rows_of(tmp_path / "volumes.csv")
    assert [(row["row"], row["variant"]) for row in found] == [
        (f"O {kind} 3x3x3 2ch 8x8x8 batch 1", name)
        for kind in ("dense", "gc")
        for name in ("precomputed filters", "sepgroupy")
    ]
    for row in found[1::2]:
        assert (row["backend"], float(row["saved_mib"])) == ("native", 0)  # the input alone
        assert float(row["output_error"]) <= 1e-5
        assert float(row["construction_ms"]) > 0
    assert "| O gc, 2 channels, 8³ |" in capsys.readouterr().out
    committed = rows_of(arguments.RESULTS / "volumes.csv")
    assert {row["row"] for row in committed} == {str(case) for case in volumes.cases(quick=False)}


def test_a_row_that_disagrees_is_refused_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scaling, "with_backend", lambda layer, case, backend: scaling.MIDDLE.layer())
    monkeypatch.setattr(scaling, "SWEEPS", {"channels": [scaling.MIDDLE]})
    assert main(["--only", "scaling", "--rounds", "1", "--device", "cpu", "--out", str(tmp_path)]) == 1
    assert "REFUSED channels: p4m gc 3x3 32ch" in capsys.readouterr().out
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
    reference = measure.compute_reference(measure.Variant("baseline", BaselineConv(layer)), x)
    right = measure.check(measure.Variant("right", Spoiled(layer), group_outermost=True), reference, x)
    assert max(error or 0.0 for error in right) < 3e-6
    with pytest.raises(measure.DisagreementError, match=f"variant wrong: its {what} differ"):
        measure.check(measure.Variant("wrong", Spoiled(layer, **spoil)), reference, x)


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
    x, labels = NetworkCase("gc-p4cnn", 4).images(CPU)
    reference = measure.compute_reference(measure.Variant("baseline", baseline(model)), x, labels)
    measure.check(measure.Variant("right", fuse(copy.deepcopy(model))), reference, x, labels)
    pool = model.pool.forward
    model.pool.forward = lambda x: Biased.apply(pool(x))
    with pytest.raises(measure.DisagreementError, match="gradients differ"):
        measure.check(measure.Variant("wrong", model), reference, x, labels)


@pytest.mark.parametrize("name", [n for n in published_model_names() if "p4" in n])
def test_baseline_is_the_model(name: str) -> None:
    torch.manual_seed(0)
    options = {"depth": 8, "widths": (3, 4, 5)} if "resnet" in name else {"width": 4}
    model = build_model(name, **options).double()
    x, labels = NetworkCase(name, 3).images(CPU)
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


def test_saved_activation_bytes_count_storages_once_and_not_those_that_exist_anyway() -> None:
    class Saves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.exp()  # saves y
            return (y[:2].square().sum() + y.square().sum()) * x.sum()  # y again, in part; and two sums of 4 bytes

    run = measure.Run(measure.Variant("saves", Saves()), torch.randn(3, 2, 4, 5, 5))
    assert run.saved_activation_bytes() == 4 * 3 * 2 * 4 * 5 * 5 + 2 * 4
    linear = measure.Run(measure.Variant("linear", nn.Conv2d(2, 2, 3)), torch.randn(3, 2, 5, 5))
    assert linear.saved_activation_bytes() == 0


def test_limits_are_the_products_and_the_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = hardware.Rates(macs=1e9, bytes=1e9)
    pixels = 16 * 16 * 16  # of 16 images
    gc, dense = LayerCase("p4m", "gc", 3, 1, 56, 16, 16), LayerCase("p4m", "dense", 3, 1, 23, 16, 16)
    monkeypatch.setattr(LayerCase, "layer", partialmethod(LayerCase.layer, "torch"))
    found = layers.limit(gc, rates)
    assert found["backend"] == "fourier"
    assert found["inference_products_ms"] == pytest.approx(12 * 56**2 * pixels / 1e6, abs=1e-4)
    assert found["step_products_ms"] == pytest.approx(36 * 56**2 * pixels / 1e6, abs=1e-4)
    assert found["inference_moves_ms"] == pytest.approx(2 * 4 * 56 * 8 * pixels / 1e6, abs=1e-4)
    assert found["step_moves_ms"] == pytest.approx(5 * 4 * 56 * 8 * pixels / 1e6, abs=1e-4)
    found = layers.limit(dense, rates)
    assert found["inference_products_ms"] == pytest.approx(64 * 9 * 23**2 * pixels / 1e6, abs=1e-4)


@pytest.mark.skipif(not available_backends()["native"].startswith("C++ kernels"), reason="there are no kernels")
def test_limits_of_the_kernels() -> None:
    rates = hardware.Rates(macs=1e9, bytes=1e9)
    gc = layers.limit(LayerCase("p4m", "gc", 3, 1, 56, 16, 16), rates)
    assert gc["step_products_ms"] == pytest.approx(4 * 12 * 56**2 * 16**3 / 1e6, abs=1e-4)
    dense = layers.limit(LayerCase("p4m", "dense", 3, 1, 23, 16, 16), rates)
    assert dense["inference_products_ms"] == pytest.approx(12 * 9 * 23**2 * 16**3 / 1e6, abs=1e-4)
    halving = layers.limit(LayerCase("p4m", "dense", 3, 1, 22, 16, 16, stride=2, in_channels=11), rates)
    assert halving["inference_products_ms"] == pytest.approx(12 * 9 * 11 * 22 * 16 * 8**2 / 1e6, abs=1e-4)
    assert halving["step_moves_ms"] == pytest.approx(4 * 16 * 8 * (3 * 11 * 16**2 + 2 * 22 * 8**2) / 1e6, abs=1e-4)


def test_limits_of_lifting() -> None:
    case = LayerCase("p4", "lifting", 3, 0, 10, 28, 16, in_channels=2)
    found = layers.limit(case, hardware.Rates(1e9, 1e9))
    multiplications = 6 * 3 if found["backend"] == "native" else 4 * 9  # of three orbits, by the kernels
    products = multiplications * 2 * 10 * 16 * 26**2 / 1e6
    assert found["inference_products_ms"] == pytest.approx(products, abs=1e-4)
    assert found["step_products_ms"] == pytest.approx(2 * products, abs=1e-4)  # images need no gradient
    images, feature_maps = 2 * 28**2, 4 * 10 * 26**2
    assert found["inference_moves_ms"] == pytest.approx(4 * 16 * (images + feature_maps) / 1e6, abs=1e-4)
    assert found["step_moves_ms"] == pytest.approx(4 * 16 * 2 * (images + feature_maps) / 1e6, abs=1e-4)


def test_targets_read_the_rows_they_name() -> None:
    common = {"row": "gc-p4m-resnet44 batch 16", "model": "gc-p4m-resnet44", "batch": "16", "threads": "2"}
    common |= {"construction_ms": "30"}
    row = {**common, "variant": "baseline", "inference_ms": "90", "step_ms": "300", "saved_mib": "100"}
    ours = {**common, "variant": "sepgroupy", "inference_ms": "40", "step_ms": "200", "saved_mib": "50"}
    row |= {"inference_speedup": "1", "step_speedup": "1"}
    ours |= {"inference_speedup": "2.25", "step_speedup": "1.5"}  # of rounds, which times of all rounds need not give
    slow = {**ours, "step_speedup": "0.97", "threads": "1", "step_ms": "900"}
    alone = {**ours, "variant": "sepgroupy torch", "step_speedup": "1.25", "step_ms": "900"}
    found = [row, ours, alone, slow]
    against = {"row": "", "model": "gc-p4cnn", "against": "p4cnn", "batch": "256", "threads": "2", "step_ms": "250"}
    pair = [
        {**against, "variant": name, "step_speedup": s} for name, s in (("p4cnn baseline", "1"), ("gc-p4cnn", "1.04"))
    ]
    plain = {**against, "model": "gc-p4m-resnet44", "against": "resnet44", "variant": "gc-p4m-resnet44"}
    pair.append({**plain, "step_speedup": "0.4"})
    converted = {"row": "p4m-gc-resnet18 65x65 batch 8", "model": "p4m-gc-resnet18", "variant": "p4m-gc-resnet18"}
    converted |= {"threads": "2", "inference_speedup": "0.4", "step_speedup": "0.25"}
    results = {"models": [{"precision": "float32", **each} for each in found], "cross_model": pair}
    table = summary.targets({**results, "converted": [converted]})
    assert "| p4m-gc-resnet18 65x65 batch 8, inference, times the plain network's | <= 3.0 | 2.50 | yes |" in table
    assert "| p4m-gc-resnet18 65x65 batch 8, step, times the plain network's | <= 3.0 | 4.00 | no |" in table
    assert "| P4CNN's baseline step over gc-P4CNN's, batch 256 | >= 1 | 1.04 | yes |" in table
    assert "| gc-p4m-ResNet44, inference, batch 16 | >= 4 | 2.25 | no |" in table
    assert "| gc-p4m-ResNet44, training step, times plain ResNet44's | <= 2.0 | 2.50 | no |" in table
    assert "| gc-p4m-ResNet44, training step, batch 16 | >= 3 | 1.50 | no |" in table
    assert "| gc-p4m-ResNet44, memory saved for backward | <= 0.6 | 0.50 | yes |" in table
    assert "| slowest of all rows against PyTorch alone | >= 1 | 1.00 | yes |" in table
    assert "| p4m-ResNet44, training step, times plain ResNet44's | <= 1.7 |  |  |" in table
    assert [line[:10] for line in summary.slower({"models": [slow]})] == ["0.97 times"]


def test_bars_compare_times_within_rounds_as_the_tables_do() -> None:
    common = {"row": "p4cnn batch 1", "threads": "2"}
    base = {"variant": "baseline", "inference_ms": "10", "step_ms": "", "inference_speedup": "1"}
    ours = {"variant": "sepgroupy", "inference_ms": "9", "step_ms": "", "inference_speedup": "0.8"}
    figure = plots._relative([{**common, **row} for row in (base, ours)], layers=False)
    assert [bar.get_width() for bar in figure.axes[0].patches] == [pytest.approx(1.25)]


def test_the_library_computes_inference_with_cached_filters() -> None:
    cached = []

    def watch(layer: nn.Module, _: Any) -> None:
        if isinstance(layer, GroupConv2d):
            cached.append((torch.is_grad_enabled(), layer.filter_cache is not None))

    with register_module_forward_pre_hook(watch):
        measure.measure_variants(layers.variants(CASE, CPU), CASE.input(CPU), rounds=1)
    assert {is_cached for with_gradients, is_cached in cached if not with_gradients} == {True}
    assert {is_cached for with_gradients, is_cached in cached if with_gradients} == {False}


def test_committed_results_have_the_names_of_the_rows() -> None:
    found = results.read(arguments.RESULTS)
    assert {"layers", "models", "cross_model", "scaling"} <= set(found)
    for lines in found.values():
        identities = [(line["row"], line["variant"], line["threads"], line.get("precision")) for line in lines]
        assert len(set(identities)) == len(identities)
    assert {line["row"] for line in found["layers"]} <= {str(case) for case in layers.cases(quick=False)}
    assert {line["row"] for line in found["scaling"]} == {
        f"{sweep}: {case}" for sweep, cases in scaling.SWEEPS.items() for case in cases
    }


def test_compare_writes_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", str(arguments.ROOT), "--quick", "--rounds", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    lines = rows_of(tmp_path / "compare.csv")
    assert [line["row"] for line in lines] == [
        *(f"{subject}, {name}" for subject in compare.subjects(quick=True) for name in subject.measures),
        "import sepgroupy",
    ]
    for line in lines:
        if line["row"].endswith(", saved"):
            assert (line["unit"], line["ratio"]) == ("MiB", "1.0")
            assert line["old"] == line["new"]
        else:
            assert line["unit"] == "ms"
            assert float(line["old"]) > 0
            assert float(line["new"]) > 0
            assert float(line["ratio"]) == pytest.approx(float(line["old"]) / float(line["new"]), rel=0.05)
        assert (line["rounds"], line["threads"]) == ("1", "1")
        assert line["cpu"] == hardware.cpu_name()
    printed = capsys.readouterr().out
    assert hardware.cpu_name() in printed
    assert "layer, inference (2 rows)" in printed


def test_compare_has_every_kind_of_layer_and_every_network() -> None:
    found = compare.subjects(quick=False)
    assert len({str(subject) for subject in found}) == len(found)
    cases = [s.case for s in found if s.name == "layer" and isinstance(s.case, LayerCase)]
    assert cases == layers.cases(quick=False)
    assert {case.kind for case in cases} == {"lifting", "dense", "g", "gc"}
    assert {(case.kernel, case.stride) for case in cases} >= {(1, 1), (1, 2), (3, 1), (3, 2)}
    networks = [(s.case.model, s.case.batch) for s in found if isinstance(s.case, NetworkCase) and s.name == "network"]
    assert {name for name, batch in networks if batch > 1} == set(published_model_names())
    assert {name for name, batch in networks if batch == 1} == {n for n in published_model_names() if "p4" in n}


class Answers:
    """A worker whose answers are given; it logs when it is asked for a time."""

    def __init__(self, name: str, log: list[str], seconds: list[float], outputs: list[float], saved: int) -> None:
        self.name, self.log, self.seconds, self.outputs, self.saved = name, log, iter(seconds), outputs, saved

    def ask(self, name: str, *_: Any) -> Any:
        if name == "prepare":
            return {"first": {"inference": 1.0, "saved": self.saved}, "outputs": self.outputs}
        self.log.append(self.name)
        return next(self.seconds)


def test_compare_takes_turns_and_compares_within_rounds() -> None:
    subject, log = compare.Subject("layer", CASE, ("inference", "saved")), list[str]()
    old: Any = Answers("old", log, [1.0, 4.0, 9.0], [1.0, -2.0], 2**21)
    new: Any = Answers("new", log, [1.0, 2.0, 3.0], [1.0, -2.0001], 2**20)
    inference, saved = compare.measure(subject, old, new, rounds=3)
    assert log == ["old", "new"] * 3
    assert (inference["old"], inference["new"], inference["ratio"]) == (4000.0, 2000.0, 2.0)
    assert (saved["old"], saved["new"], saved["ratio"], saved["unit"]) == (2.0, 1.0, 2.0, "MiB")
    # The ratio is the median of the rounds' ratios, not the ratio of medians.
    old, new = (Answers(name, log, times, [1.0], 0) for name, times in (("old", [1.0, 2.0, 9.0]), ("new", [4.0, 1, 3])))
    assert next(compare.measure(subject, old, new, rounds=3))["ratio"] == 2.0


@pytest.mark.parametrize("outputs", [[1.0, -2.001], [1.0, float("nan")]])
def test_compare_refuses_outputs_that_differ(outputs: list[float]) -> None:
    old, new = (Answers("", [], [], values, 0) for values in ([1.0, -2.0], outputs))
    with pytest.raises(measure.DisagreementError, match="outputs differ"):
        list(compare.measure(compare.Subject("layer", CASE, ("saved",)), old, new, rounds=1))  # type: ignore[arg-type]


def test_compare_reports_more_saved_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [compare._line("layer: a, saved", "MiB", [(1.0, 1.5)]), compare._line("layer: a, step", "ms", [(1.0, 1.0)])]
    process = nullcontext(SimpleNamespace(kernels="", environment={}))
    monkeypatch.setattr(compare, "Worker", lambda *_: process)
    monkeypatch.setattr(compare, "import_time", lambda *_: compare._line("import sepgroupy", "ms", [(1.0, 1.0)]))
    monkeypatch.setattr(compare, "measure", lambda *_: lines)
    monkeypatch.setattr(compare, "subjects", lambda quick: [compare.Subject("layer", CASE)])
    command = ["compare", str(arguments.ROOT), "--rounds", "1", "--out", str(tmp_path)]
    assert main(command) == 1
    assert "LARGER layer: a, saved: 1.0 MiB before, 1.5 MiB now" in capsys.readouterr().out


def test_compare_refuses_a_folder_without_the_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path)])
    assert f"OLD (={tmp_path}) must be a checkout" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
def test_subjects_of_the_worker_compute_the_same_layer(kind: str) -> None:
    case = asdict(replace(CASE, kind=kind, padding=1))
    x = worker.build("layer", case).x
    layer = worker.build("layer", case).module.eval()
    after_norm, function = (worker.build(name, case).module.eval() for name in ("norm-relu-layer", "function"))
    with torch.no_grad():
        torch.testing.assert_close(function(x), layer(x))
        torch.testing.assert_close(after_norm(x), layer(F.relu(x / (1 + 1e-5) ** 0.5)))


def test_the_earlier_layers_take_the_norm_as_an_argument() -> None:
    class Earlier(nn.Module):
        in_channels = 3

        def forward(self, x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
            return F.relu(norm(x))

    x = torch.randn(2, 3, 5, 5)
    module = worker.NormArgument(Earlier())
    torch.testing.assert_close(module(x), F.relu(F.batch_norm(x, None, None, training=True)))


def test_worker_refuses_an_unknown_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "APIS", {"nothing of this name": worker.APIS["fuse"]})
    with pytest.raises(RuntimeError, match="has none of nothing of this name"):
        worker.api()
