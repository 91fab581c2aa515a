"""Numbers, gradients, precision, compilation and memory on a CUDA device: ``pytest -m cuda``."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.baseline import baseline
from torch import Tensor, nn

from conftest import VARIANTS, build_layer, random_input
from sepgroupy import build_model, cached_filters, fuse
from sepgroupy.analysis import peak_memory
from sepgroupy.data import ImageData
from sepgroupy.errors import ArgumentError
from sepgroupy.models import model_names
from sepgroupy.nn import GroupBatchNorm2d, GroupConv2d
from sepgroupy.training import evaluate, load_model, train
from stress.small import before_step, few_digits, outcome, small_run, use_digits
from test_gpu_ready import SMALL, images_for

pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("default")]

DEVICE = "cuda"
LAYERS = [variant for variant in VARIANTS if variant[1] != "native"]


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    cudnn, matmul = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    yield
    torch.backends.cudnn.allow_tf32 = cudnn
    torch.set_float32_matmul_precision(matmul)


@contextmanager
def no_wait() -> Iterator[None]:
    """Make every wait of the host for the device an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def step_of(net: nn.Module, x: Tensor) -> None:
    net.zero_grad()
    net(x).square().mean().backward()


# ---- numbers and gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", LAYERS, ids=str)
def test_layers_and_their_gradients_are_those_of_a_cpu(variant: tuple[str, str]) -> None:
    kernel = 1 if variant[:2] == ("dense", "fourier") else 3
    layer = build_layer(variant, 3, 4, kernel, padding=kernel // 2, group="p4m").double()
    x = random_input(layer, 9, 9)
    gradients = []
    for module, images in ((layer, x), (copy.deepcopy(layer).to(DEVICE), x.to(DEVICE))):
        images.requires_grad_()
        y = module(images)
        y.square().sum().backward()
        gradients.append([t.cpu() for t in (y.detach(), images.grad, *(p.grad for p in module.parameters()))])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("name", model_names())
def test_networks_are_those_of_a_cpu(name: str) -> None:
    net = build_model(name, **SMALL.get(name, {})).eval()
    x = images_for(name)
    with torch.no_grad():
        expected, found = net(x), copy.deepcopy(net).to(DEVICE)(x.to(DEVICE)).cpu()
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


# ---- the host does not wait ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gc-p4cnn", "g-p4cnn", "p4cnn", "gc-p4m-resnet44", "p4m-unet"])
def test_the_host_never_waits(name: str) -> None:
    net, x = fuse(build_model(name, **SMALL.get(name, {})).to(DEVICE)), images_for(name).to(DEVICE)
    step_of(net, x)  # makes the constants
    with no_wait():
        step_of(net, x)
    with torch.no_grad(), cached_filters(net.eval()):
        net(x)
        with no_wait():
            net(x)


def test_cached_filters_see_an_edit_or_refuse_it() -> None:
    layer = GroupConv2d(2, 3, 3, group="p4", kind="gc", device=DEVICE)
    x = torch.randn(2, 2, 4, 6, 6, device=DEVICE)
    with torch.no_grad(), cached_filters(layer):
        before = layer(x)
        layer.pointwise_weight.mul_(2)
        torch.testing.assert_close(layer(x) - layer.bias.view(-1, 1, 1, 1), 2 * (before - layer.bias.view(-1, 1, 1, 1)))
        layer.pointwise_weight.data = layer.pointwise_weight.data / 2
        torch.testing.assert_close(layer(x), before)

    @torch.no_grad()
    def edit_without_trace() -> None:
        with cached_filters(layer):
            layer(x)
            layer.pointwise_weight.data.mul_(2)

    with pytest.raises(ArgumentError, match="of pointwise_weight"):
        edit_without_trace()


# ---- precision, memory formats, compilation, CUDA graphs -------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gc-p4cnn", "gc-p4m-resnet44"])
def test_automatic_mixed_precision(name: str, dtype: torch.dtype) -> None:
    net, x = build_model(name, **SMALL.get(name, {})).to(DEVICE), images_for(name, 8).to(DEVICE)
    scaler = torch.amp.GradScaler(DEVICE, enabled=dtype is torch.float16)
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    with torch.autocast(DEVICE, dtype):
        found = net(x)
        loss = found.float().square().mean()
    with torch.no_grad():
        expected = net(x)
        assert float((found - expected).norm() / expected.norm()) < 0.1
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in net.parameters())


@pytest.mark.parametrize("name", ["gc-p4cnn", "gc-p4m-resnet44", "z2cnn"])
def test_channels_last_changes_nothing(name: str) -> None:
    net, x = build_model(name, **SMALL.get(name, {})).to(DEVICE).eval(), images_for(name).to(DEVICE)
    with torch.no_grad():
        expected = net(x)
        found = net(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("backend", ["fourier", "two_step", "auto"])
@pytest.mark.parametrize("training", [True, False])
def test_compiled_layers(backend: str, training: bool) -> None:
    conv = GroupConv2d(8, 8, 3, padding=1, group="p4m", kind="gc", backend=backend)
    net = nn.Sequential(GroupBatchNorm2d(8), nn.ReLU(), conv).to(DEVICE).train(training)
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, dynamic=False)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            x = torch.randn(4, 8, 8, 9, 9, device=DEVICE)
            torch.testing.assert_close(compiled(x), net(x), atol=1e-4, rtol=1e-4)
            if training:
                step_of(compiled, x)
                step_of(net, x)
    for mine, other in zip(compiled.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["gc-p4cnn", "g-p4cnn", "gc-p4m-resnet44"])
def test_cuda_graphs_replay_a_training_step(name: str) -> None:
    net, static = build_model(name, **SMALL.get(name, {})).to(DEVICE), images_for(name).to(DEVICE)
    other = copy.deepcopy(net)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step_of(net, static)
    torch.cuda.current_stream().wait_stream(stream)
    net.load_state_dict(other.state_dict())
    net.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        net(static).square().mean().backward()
    net.load_state_dict(other.state_dict())  # capturing ran nothing; the statistics are those of before
    x = images_for(name).to(DEVICE)
    static.copy_(x)
    graph.replay()
    step_of(other, x)
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        scale = float(theirs.grad.abs().max())
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-3 * scale + 1e-6, rtol=0)


@pytest.mark.parametrize("name", ["gc-p4m-resnet44", "g-p4m-resnet44"])
def test_a_step_needs_no_more_memory_than_the_published_one(name: str) -> None:
    net, x = build_model(name).to(DEVICE), images_for(name, 8).to(DEVICE)
    published = baseline(net)
    assert peak_memory(net, x) <= peak_memory(published, x)


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> ImageData:
    digits = few_digits()
    use_digits(monkeypatch, digits)
    return digits


@pytest.mark.parametrize("settings", [{}, {"compile": True}, {"precision": "bf16-mixed"}])
def test_a_run_trains_and_resumes_without_waiting(
    settings: dict[str, Any], few: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_run(tmp_path / "whole", device=DEVICE, **settings)
    steps, epoch = count(), 5

    def refuse_waits() -> None:
        if (step := next(steps)) == 12:
            raise KeyboardInterrupt
        # The first step makes the constants, and compiles; the last batch of an epoch is another program.
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if step % epoch not in (0, epoch - 1) else "default")

    with monkeypatch.context() as patch:
        before_step(patch, refuse_waits)
        try:
            with pytest.raises(KeyboardInterrupt):
                train(config)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    result = train(config)
    assert all(value.isfinite().all() for value in load_model(tmp_path / "whole").state_dict().values())
    assert evaluate(tmp_path / "whole", DEVICE).error == result.test_error
    assert evaluate(tmp_path / "whole", "cpu").error == pytest.approx(result.test_error, abs=10)


def test_ddp_over_nccl_in_one_process(tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("nccl", store=store, rank=0, world_size=1)
    try:
        net, x = build_model("gc-p4cnn", width=4).to(DEVICE), images_for("gc-p4cnn").to(DEVICE)
        parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(net))
        step_of(net, x)
        step_of(parallel, x)
        for mine, other in zip(parallel.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=1e-3)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices_train_one_network(tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text("from sepgroupy.cli import main\nmain()\n")
    options = "--model gc-p4cnn-small --width 2 --samples 32 --batch-size 16 --epochs 2 --sync-batchnorm --device cuda"
    for devices in ("1", "2"):
        words = [sys.executable, "command.py", "train", "rotmnist", *options.split(), "--devices", devices]
        done = subprocess.run([*words, "--folder", devices], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    (one, _), (two, _) = outcome(tmp_path / "1"), outcome(tmp_path / "2")
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], atol=1e-2, rtol=1e-1, msg=name)
