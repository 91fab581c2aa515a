"""What a GPU needs of the library, tested without one: tensors stay on their device, and the host waits for none."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.kernels import program
from torch import Tensor, nn

from conftest import DIAGONAL, VARIANTS, build_layer
from host_reads import fake_cuda, without_reads, without_reads_on_cuda
from sepgroupy import build_model, cached_filters, convert, fuse
from sepgroupy.backends import ConvSpec, constants, dispatch, select_backend
from sepgroupy.data import ImageData
from sepgroupy.groups import C4, D4, as_group
from sepgroupy.models import model_names
from sepgroupy.nn import (
    GroupBatchNorm2d,
    GroupConv2d,
    GroupConv3d,
    GroupConvTranspose2d,
    GroupPool,
    LiftingConv2d,
    LiftingConv3d,
    PerElement,
)
from sepgroupy.paper import RunConfig
from sepgroupy.training import Classification, _loop, train
from stress.small import before_step, few_digits, interrupt, outcome, same, small_run, use_digits

SMALL: dict[str, dict[str, Any]] = {
    "resnet44": {"depth": 8}, "p4m-resnet44": {"depth": 8}, "g-p4m-resnet44": {"depth": 8},
    "gc-p4m-resnet44": {"depth": 8}, "p4m-unet": {"depth": 1, "width": 4}, "o-unet": {"depth": 1, "width": 2},
    "o-resnet8": {"widths": (2, 2, 2)},
}  # fmt: skip
"""Options of the networks whose many layers are alike."""


def images_for(name: str, batch: int = 2) -> Tensor:
    if name.startswith("o-"):
        return torch.randn(batch, 1, 8, 8, 8)
    return torch.randn(batch, 3, 32, 32) if "resnet" in name or "unet" in name else torch.randn(batch, 1, 28, 28)


# ---- forward passes: every layer, kind, backend and network ----------------------------------------------------------


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant[1] != "native"], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_every_layer_stays_on_its_device_and_reads_nothing(variant: tuple[str, str], memory_format: Any) -> None:
    kernel = 1 if variant[:2] == ("dense", "fourier") else 3
    with fake_cuda():
        layer = build_layer(variant, 2, 4, kernel, padding=kernel // 2, group="p4m")
        x = torch.randn(2, 2, 7, 7) if layer.kind == "lifting" else torch.randn(2, 8, 2, 7, 7).transpose(1, 2)
        if layer.kind == "lifting":
            x = x.contiguous(memory_format=memory_format)
        elif memory_format is torch.channels_last:
            x = x.transpose(1, 2).flatten(1, 2).contiguous(memory_format=memory_format).unflatten(1, (8, 2))
            x = x.transpose(1, 2)
        assert without_reads_on_cuda(layer, x).shape == (2, 4, 8, 7, 7)
        with torch.no_grad(), cached_filters(layer):
            without_reads_on_cuda(layer, x)


@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
def test_layers_of_volumes_transposed_and_pooling_layers(kind: str) -> None:
    with fake_cuda():
        lift, conv = LiftingConv3d(1, 2, 3, group="O"), GroupConv3d(2, 3, 3, group="O", kind=kind)
        assert without_reads_on_cuda(nn.Sequential(lift, conv), torch.randn(1, 1, 6, 6, 6)).shape == (1, 3, 24, 2, 2, 2)
        transposed = nn.Sequential(
            GroupConvTranspose2d(2, 3, 4, stride=2, group="p4", kind=kind), GroupBatchNorm2d(3), nn.ReLU(),
            PerElement(nn.MaxPool2d(2)), GroupPool(),
        )  # fmt: skip
        assert without_reads_on_cuda(transposed, torch.randn(2, 2, 4, 3, 3)).shape == (2, 3, 4, 4)


@pytest.mark.parametrize("name", model_names())
def test_every_network_in_training_inference_fused_and_with_cached_filters(name: str) -> None:
    with fake_cuda():
        net, x = build_model(name, **SMALL.get(name, {})), images_for(name)
        expected = without_reads_on_cuda(net, x).shape
        for module in (net.eval(), fuse(net)):
            with torch.no_grad(), cached_filters(module):
                assert without_reads_on_cuda(module, x).shape == expected
    without_reads(build_model(name, **SMALL.get(name, {})), images_for(name))  # real tensors have branches on values


class Plain(nn.Module):
    """A small network to convert."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 1),
        )  # fmt: skip
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def test_a_converted_network() -> None:
    net = convert(Plain(), "p4", in_size=16)
    with fake_cuda():
        for module in net.modules():
            for tensors in (module._parameters, module._buffers):
                for name, old in tensors.items():
                    if old is not None:
                        new = torch.empty(old.shape, dtype=old.dtype)
                        tensors[name] = nn.Parameter(new) if isinstance(old, nn.Parameter) else new
        assert without_reads_on_cuda(net, torch.randn(2, 3, 16, 16)).shape == (2, 5)


def test_export_on_the_device() -> None:
    with fake_cuda():
        net = nn.Sequential(LiftingConv2d(1, 2, 3, group="p4"), GroupConv2d(2, 2, 3, group="p4", kind="gc")).eval()
        x = torch.randn(2, 1, 9, 9)
    program = torch.export.export(net, (x,))
    used = [n.meta["val"] for n in program.graph.nodes if isinstance(n.meta.get("val"), Tensor)]
    assert used
    assert {value.device.type for value in used} == {"cuda"}


def test_constants_are_made_once_for_each_device_and_never_fake(lazy_device: str) -> None:
    spec = ConvSpec.parse(as_group("p4m"), "gc", 3)
    with fake_cuda():
        constants.fourier_matrices(spec, torch.device("cuda", 0), torch.float32)
    for device in (torch.device("cpu"), torch.device(lazy_device, 0)):
        first = constants.fourier_matrices(spec, device, torch.float32)
        again = constants.fourier_matrices(spec, device, torch.float32)
        assert all(a is b and a.device.type == device.type for a, b in zip(first, again, strict=True))


def test_gradients_stay_on_their_device(lazy_device: str) -> None:
    net = build_model("gc-p4cnn", width=2, backend="torch").double()
    other = copy.deepcopy(net).to(lazy_device)
    x = images_for("gc-p4cnn").double()
    for module, images in ((net, x), (other, x.to(lazy_device))):
        module(images).square().sum().backward()
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert theirs.grad.device.type == lazy_device
        torch.testing.assert_close(theirs.grad.cpu(), mine.grad)


# ---- training steps --------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> ImageData:
    digits = few_digits()
    use_digits(monkeypatch, digits)
    return digits


def steps_without_reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Refuse every read of a value in a step but those of reports; return (the step that reads, the step it reads)."""
    read: list[tuple[int, int]] = []
    current: list[_loop.Loop] = []
    start, do_step = _loop.start_reading, _loop.Loop._do_step

    def start_reading(values: Tensor) -> Any:
        of = current[0].step
        values = values.clone()

        def reader() -> list[float]:
            if (place := (current[0].step, of)) not in read:
                read.append(place)
            with torch._C.DisableTorchFunction():
                return start(values)()

        return reader

    def step(self: _loop.Loop, stop: Any) -> None:
        current[:] = [self]
        images = self._next_batch()  # from the host
        monkeypatch.setattr(self, "_next_batch", lambda: images)
        without_reads(do_step, self, stop)
        monkeypatch.delattr(self, "_next_batch")

    monkeypatch.setattr(_loop, "start_reading", start_reading)
    monkeypatch.setattr(_loop.Loop, "_do_step", step)
    return read


@pytest.mark.parametrize("settings", [{"clip": 1.0, "accumulate": 2}, {"ema": None, "label_smoothing": 0.1}])
def test_a_step_reads_the_report_of_the_step_before_and_nothing_else(
    settings: dict[str, Any], few: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SGD: Adam counts its steps in tensors on the host, whose reading does not wait for a device.
    config = small_run(tmp_path, epochs=2, optimizer="sgd", model="z2cnn", crop=0, hflip=False, **settings)
    read = steps_without_reads(monkeypatch)
    train(config)
    assert read == [(2, 1), (3, 2), (4, 3), (5, 4), (5, 5), (7, 6), (8, 7), (9, 8), (10, 9), (10, 10)]


def test_the_step_of_a_network_on_fake_cuda_reads_nothing() -> None:
    with fake_cuda():
        net, x = build_model("gc-p4m-resnet44", depth=8), images_for("gc-p4m-resnet44")
        labels = torch.zeros(2, dtype=torch.int64)
        objective = Classification(0.1)
        assert without_reads_on_cuda(lambda: objective.loss(net(x), labels)).shape == ()
        assert without_reads_on_cuda(lambda: objective.errors(net(x), labels)).shape == (2,)


# ---- compiled training -----------------------------------------------------------------------------------------------


@pytest.fixture
def light_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Let torch.compile trace as ever, without Inductor's C++ compiler; yield the graphs that it traces."""
    from torch._dynamo.backends.debugging import aot_eager

    graphs: list[Any] = []
    original = torch.compile

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    monkeypatch.setattr(torch, "compile", lambda *a, **k: original(*a, **{**k, "backend": backend, "fullgraph": True}))
    torch._dynamo.reset()
    yield graphs
    torch._dynamo.reset()


def test_compiled_training_resumes_and_leaves_the_same_keys(
    few: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, light_compiler: list[Any]
) -> None:
    # Few small steps: where a ReLU or a maximum is at its kink, rounding takes compiled and eager steps apart.
    compiled = {"epochs": 2, "model": "gc-p4cnn-small", "optimizer": "sgd", "lr": 1e-4, "compile": True}
    train(small_run(tmp_path / "whole", **compiled))
    assert len(light_compiler) == 2  # of whole batches and of the last one: no graph break, no recompilation
    train(small_run(tmp_path / "eager", **compiled | {"compile": False}))
    with monkeypatch.context() as patch:
        before_step(patch, interrupt, 7)
        with pytest.raises(KeyboardInterrupt):
            train(small_run(tmp_path / "parts", **compiled))
    train(small_run(tmp_path / "parts", **compiled))
    assert same(outcome(tmp_path / "parts"), outcome(tmp_path / "whole"))
    (state, _), (eager, _) = outcome(tmp_path / "whole"), outcome(tmp_path / "eager")
    assert state.keys() == eager.keys()
    for name, value in state.items():
        torch.testing.assert_close(value, eager[name], atol=1e-5, rtol=1e-3, msg=name)


# ---- the Fourier backend in compiled programs ------------------------------------------------------------------------


@pytest.mark.parametrize("group", [C4, D4, DIAGONAL], ids=lambda group: group.name.replace(" ", "-"))
@pytest.mark.parametrize(("kind", "kernel"), [("gc", 3), ("dense", 1)])
def test_written_out_transforms_are_the_layer(kind: str, kernel: int, group: Any, light_compiler: list[Any]) -> None:
    layer = GroupConv2d(3, 4, kernel, padding=kernel // 2, group=group, kind=kind, backend="fourier").double()
    nn.init.normal_(layer.bias)
    compiled = torch.compile(layer, dynamic=False)
    for _ in range(2):
        x = torch.randn(2, 3, group.order, 6, 5, dtype=torch.float64, requires_grad=True)
        found, expected = compiled(x), layer(x)
        torch.testing.assert_close(found, expected)
        (gradient,) = torch.autograd.grad(found.square().sum(), x)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected.square().sum(), x)[0])
    (graph,) = light_compiler
    bands = len(constants.band_sizes(layer.spec))
    assert sum(node.target is torch.bmm for node in graph.graph.nodes) == bands


def test_written_out_transforms_under_autocast(light_compiler: list[Any]) -> None:
    layer = GroupConv2d(3, 4, 3, group="p4m", kind="gc", backend="fourier")
    x = torch.randn(2, 3, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = torch.compile(layer, dynamic=False)(x), layer(x)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


def test_inductor_fuses_norm_relu_and_transform_into_one_kernel() -> None:
    loops, calls = program("fourier", training=False)
    assert loops <= 6
    on_maps = calls[: calls.index("convolution") + 1]
    fused = [call for call in on_maps if "batch_norm" in call or "stack" in call]
    assert len(fused) == 2  # before the products and after them
    assert all(word in fused[0] for word in ("batch_norm", "relu", "stack"))
    assert [call for call in on_maps if call == "bmm" or call in fused] == [fused[0], "bmm", "bmm", fused[1]]


def test_thresholds_of_gpus_are_their_own(lazy_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ConvSpec.parse(as_group("p4m"), "gc", 3)

    def chosen(channels: int) -> str:
        return select_backend(spec, torch.empty(1, channels, 8, 4, 4, device=lazy_device)).name

    assert (chosen(64), chosen(256)) == ("two_step", "fourier")
    for name in ("FOURIER_MIN_WORK", "NATIVE_MAX_THREADS_WITHOUT_OPENMP"):
        monkeypatch.setattr(dispatch, name, float("inf"))
    assert (chosen(64), chosen(256)) == ("two_step", "fourier")
    monkeypatch.setattr(dispatch, "FOURIER_MIN_SAVED_ON_GPU", 0)
    assert chosen(64) == "fourier"


def test_a_fused_network_elsewhere_than_on_a_cpu_calls_its_modules(lazy_device: str) -> None:
    net = fuse(nn.Sequential(LiftingConv2d(1, 2, 3, group="p4"), GroupBatchNorm2d(2), nn.ReLU())).eval()
    expected = net(x := torch.randn(1, 1, 6, 6)).detach()
    called: list[nn.Module] = []
    net = net.to(lazy_device)
    net[1].forward = lambda y: called.append(net[1]) or GroupBatchNorm2d.forward(net[1], y)
    with torch.no_grad():
        found = net(x.to(lazy_device)).cpu()
    assert called
    torch.testing.assert_close(found, expected)


def test_the_option_is_stored_with_the_run() -> None:
    config = RunConfig.for_task("rotmnist", compile=True)
    assert RunConfig.from_json(config.to_json()).compile
    assert not RunConfig.for_task("rotmnist").compile
