"""Whatever users do to a module has the effect that it has on ``nn.Conv2d`` and ``nn.BatchNorm2d``."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

import sepgroupy
from sepgroupy import (
    GroupBatchNorm2d,
    GroupConv2d,
    GroupConvTranspose2d,
    LiftingConv2d,
    available_backends,
    build_model,
    cached_filters,
    fuse,
)
from sepgroupy.errors import ArgumentError

pytestmark = [  # PyTorch warns of itself
    pytest.mark.filterwarnings("ignore:.torch.jit"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

KINDS = ("dense", "g", "gc")
NETWORKS = ("gc-p4cnn", "g-p4cnn", "p4cnn", "z2cnn", "gc-p4m-resnet44", "p4m-unet")
BACKENDS = [name for name, summary in available_backends().items() if not summary.startswith("unavailable")]


def images_for(name: str, batch: int = 2) -> Tensor:
    return torch.randn(batch, 1, 28, 28) if "cnn" in name else torch.randn(batch, 3, 32, 32)


def plainly(model: nn.Module) -> nn.Module:
    return model


@pytest.fixture(params=[plainly, fuse], ids=["unfused", "fused"])
def as_used(request: pytest.FixtureRequest) -> Callable[[nn.Module], nn.Module]:
    return request.param


def group_layers() -> Iterator[nn.Module]:
    for kind in KINDS:
        yield GroupConv2d(8, 8, 3, padding=1, group="p4m", kind=kind)
    yield GroupConvTranspose2d(8, 8, 2, 2, group="p4m", kind="gc")


def group_maps(layer: Any, *size: int, batch: int = 2, dtype: torch.dtype | None = None) -> Tensor:
    elements = () if isinstance(layer, LiftingConv2d) else (layer.group.order,)
    return torch.randn(batch, layer.in_channels, *elements, *size, dtype=dtype)


# ---- derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode_gives_the_directional_derivative(kind: str, grad: bool, backend: str) -> None:
    try:
        layer = GroupConv2d(2, 3, 3, padding=1, group="p4m", kind=kind, backend=backend, dtype=torch.float64)
    except ArgumentError:
        pytest.skip("not supported")
    x, v = group_maps(layer, 5, 5, dtype=torch.float64), group_maps(layer, 5, 5, dtype=torch.float64)
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, v))).tangent
    with torch.no_grad():  # the layer is affine: the derivative is a difference
        expected = layer(x + v) - layer(x)
    torch.testing.assert_close(tangent, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("kind", KINDS)
def test_vmap_and_jvp_of_parameters(kind: str, backend: str) -> None:
    try:
        layer = GroupConv2d(2, 3, 3, padding=1, group="p4m", kind=kind, backend=backend, dtype=torch.float64)
    except ArgumentError:
        pytest.skip("not supported")
    xs = torch.randn(3, 2, 2, 8, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(layer)(xs), torch.stack([layer(x) for x in xs]), atol=1e-10, rtol=0)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    directions = {name: torch.randn_like(p) for name, p in parameters.items()}

    def call(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layer, values, (xs[0],))

    _, tangent = torch.func.jvp(call, (parameters,), (directions,))
    step = 1e-6
    shifted = [call({n: p + s * step * directions[n] for n, p in parameters.items()}) for s in (1, -1)]
    torch.testing.assert_close(tangent, (shifted[0] - shifted[1]) / (2 * step), atol=1e-6, rtol=1e-5)


# ---- modes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_inference_mode_in_training_and_evaluation(name: str, as_used: Any) -> None:
    net, x = build_model(name), images_for(name)
    expected = copy.deepcopy(net)
    with torch.no_grad():
        outputs = [expected.train(mode)(x) for mode in (True, False)]
    net = as_used(net)
    with torch.inference_mode():
        found = [net.train(mode)(x) for mode in (True, False)]
    for a, b in zip(found, outputs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    for (key, a), b in zip(net.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4, msg=key)


def test_a_norm_without_running_statistics_under_inference_mode(as_used: Any) -> None:
    norm = GroupBatchNorm2d(4, track_running_stats=False)
    net = as_used(nn.Sequential(norm, nn.ReLU(), GroupConv2d(4, 4, 3, group="p4")).eval())
    x = torch.randn(2, 4, 4, 9, 9)
    with torch.inference_mode():
        y = net(x)
    torch.testing.assert_close(y, net(x).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gc-p4cnn", "g-p4cnn", "p4cnn", "p4m-unet"])
def test_channels_last_models_and_images(name: str, as_used: Any) -> None:
    net, x = build_model(name).eval(), images_for(name)
    expected = net(x)
    last = as_used(copy.deepcopy(net).to(memory_format=torch.channels_last))
    torch.testing.assert_close(last(x.to(memory_format=torch.channels_last)), expected, atol=1e-4, rtol=1e-4)
    last.train()(x.to(memory_format=torch.channels_last)).sum().backward()
    assert all(p.grad is not None for p in last.parameters())


def test_channels_last_converts_dtype_too() -> None:
    layer = GroupConv2d(2, 2, 3, group="p4").to(torch.float64, memory_format=torch.channels_last)
    assert {p.dtype for p in layer.parameters()} == {torch.float64}


# ---- devices -------------------------------------------------------------------------------------


def test_parameters_of_another_device_bring_their_constants(lazy_device: str) -> None:
    layer, x = GroupConv2d(2, 3, 3, group="p4", kind="gc"), torch.randn(1, 2, 4, 7, 7)
    expected = layer(x)
    elsewhere = {name: p.detach().to(lazy_device) for name, p in layer.named_parameters()}
    found = torch.func.functional_call(layer, elsewhere, (x.to(lazy_device),))
    torch.testing.assert_close(found.cpu(), expected.detach(), atol=1e-5, rtol=1e-5)
    skeleton = GroupConv2d(2, 3, 3, group="p4", kind="gc", device="meta")
    skeleton.load_state_dict(elsewhere, assign=True)
    torch.testing.assert_close(skeleton(x.to(lazy_device)).cpu().detach(), expected.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "lazy"])
def test_a_momentum_encoder_is_seen_by_cached_filters(device: str, lazy_device: str) -> None:
    key, query = (GroupConv2d(2, 3, 3, group="p4").eval().to(device) for _ in range(2))
    x = torch.randn(1, 2, 4, 7, 7).to(device)
    with torch.no_grad(), cached_filters(key):
        key(x)
        for _ in range(50):
            for k, q in zip(key.parameters(), query.parameters(), strict=True):
                k.data = k.data * 0.5 + q.data * 0.5
        torch.testing.assert_close(key(x).cpu(), query(x).cpu(), atol=1e-5, rtol=1e-5)


def test_a_replica_for_data_parallel_uses_its_own_parameters() -> None:
    net, x = fuse(build_model("gc-p4cnn").eval()), images_for("gc-p4cnn")
    before = net(x)
    replica = net._replicate_for_data_parallel()
    replica._modules = {name: copy.deepcopy(child) for name, child in net._modules.items()}
    with torch.no_grad():
        for p in replica.parameters():
            p.mul_(1.5)
    assert not torch.allclose(replica(x), before)
    torch.testing.assert_close(net(x), before)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["gc-p4cnn", "g-p4cnn", "p4m-unet"])
def test_fake_tensors_pass_and_leave_nothing_behind(name: str, device: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        with torch.device(device):
            net = build_model(name)
        assert net(images_for(name).to(device)).device.type == device
    assert build_model(name)(images_for(name)).isfinite().all()


def test_import_with_another_default_device() -> None:
    code = """
import torch
torch.set_default_device("meta")
import sepgroupy
layer = sepgroupy.GroupConv2d(2, 2, 3, group="p4", device="cpu")
x = torch.randn(1, 2, 4, 9, 9, device="cpu")
y = layer(x)
layer(x).sum().backward()
assert y.device.type == "cpu" and y.isfinite().all()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# ---- wrappers, hooks and copies ------------------------------------------------------------------


def test_checkpointed_compiled_and_nested_convolutions(as_used: Any) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

    net, x = build_model("gc-p4m-resnet44").eval(), images_for("gc-p4m-resnet44")
    expected = net(x).detach()

    def checkpoint(model: Any) -> None:
        apply_activation_checkpointing(model, check_fn=lambda m: isinstance(m, GroupConv2d))

    def compiled(model: Any) -> None:
        model.layer1[0].conv1 = torch.compile(model.layer1[0].conv1, backend="eager")

    def nested(model: Any) -> None:
        model.layer1[0].conv1 = nn.Sequential(model.layer1[0].conv1)
        model.layer2[0] = nn.Sequential(model.layer2[0])

    for change in (checkpoint, compiled, nested):
        model = as_used(copy.deepcopy(net))
        model(x)
        change(model)  # after the first call: what is fused must follow
        y = model(x)
        torch.testing.assert_close(y.detach(), expected, atol=1e-4, rtol=1e-4)
        y.sum().backward()


def test_global_hooks_see_every_module(as_used: Any) -> None:
    net, seen = as_used(build_model("gc-p4m-resnet44")), []
    net(images_for("gc-p4m-resnet44"))
    with torch.nn.modules.module.register_module_forward_hook(lambda m, i, o: seen.append(m)):
        net(images_for("gc-p4m-resnet44"))
    for kind in (nn.BatchNorm2d, GroupConv2d, LiftingConv2d):
        assert {m for m in net.modules() if isinstance(m, kind)} == {m for m in seen if isinstance(m, kind)}


def test_edits_between_layers_are_seen() -> None:
    # A feature map edited through .data or numpy, then normalized in training.
    first, norm, second = GroupConv2d(4, 4, 3, group="p4"), GroupBatchNorm2d(4), GroupConv2d(4, 4, 3, group="p4")
    rest, x = fuse(nn.Sequential(norm, nn.ReLU(), second)), torch.randn(2, 4, 4, 12, 12)
    for edit in (lambda y: y.data.mul_(3), lambda y: y.detach().numpy().__imul__(3)):
        y = first(x)
        edit(y)
        expected = second(torch.relu(copy.deepcopy(norm)(y)))
        torch.testing.assert_close(rest(y), expected, atol=1e-5, rtol=1e-5)


def test_pickled_saved_and_copied_models(as_used: Any) -> None:
    net, x = as_used(build_model("gc-p4cnn").eval()), images_for("gc-p4cnn")
    expected = net(x)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    copies = [pickle.loads(pickle.dumps(net)), copy.deepcopy(net), torch.load(buffer, weights_only=False)]
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.1)
    for model in copies:
        assert type(model).__name__ == "RotMNISTNet"
        torch.testing.assert_close(model(x), expected)


# ---- compilers, exporters and tracers ------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        *group_layers(),
        LiftingConv2d(8, 8, 3, padding=1, group="p4m"),
        GroupConv2d(8, 8, 3, padding=1, group="p4m", kind="gc", backend="fourier"),  # has constants of size 2, as x
    ],
    ids=str,
)
def test_ten_image_sizes_are_one_compilation(layer: Any) -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(layer, dynamic=True, fullgraph=True, backend=counter)
    for index in range(10):
        x = group_maps(layer, 11 + index, 11 + index, batch=2 + index % 3)
        y = compiled(x)
        torch.testing.assert_close(y, layer(x), atol=1e-4, rtol=1e-4)
        y.sum().backward()
    assert counter.frame_count == 1


def test_a_compiled_layer_uses_the_kernels() -> None:
    if "native" not in BACKENDS:
        pytest.skip("no kernels")
    targets: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    layer = GroupConv2d(4, 4, 3, group="p4m", kind="gc")
    torch.compile(layer, backend=backend, fullgraph=True)(group_maps(layer, 9, 9))
    assert any("group_conv" in target for target in targets)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_layer_takes_any_size_and_standard_operations(kind: str, strict: bool) -> None:
    from torch.export import Dim, export

    layer = GroupConv2d(4, 4, 3, padding=1, group="p4m", kind=kind).eval()
    dynamic = {"x": {0: Dim("batch"), 3: Dim("rows"), 4: Dim("columns")}}
    program = export(layer, (group_maps(layer, 16, 16),), dynamic_shapes=dynamic, strict=strict)
    x = group_maps(layer, 200, 201, batch=3)
    torch.testing.assert_close(program.module()(x), layer(x), atol=1e-3, rtol=1e-3)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not any("sepgroupy" in name for name in called)


@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize("group", ["p4m", sepgroupy.as_group("p4")], ids=str)
def test_functions_compile(group: Any, fullgraph: bool) -> None:
    from torch._dynamo.testing import CompileCounter

    from sepgroupy import functional

    torch._dynamo.reset()
    counter, order = CompileCounter(), sepgroupy.as_group(group).order
    x, weight = torch.randn(2, 3, order, 9, 9), torch.randn(4, 3, order, 3, 3)

    def call(x: Tensor, weight: Tensor) -> Tensor:
        return functional.group_conv2d(x, weight, padding=1, group=group)

    compiled = torch.compile(call, fullgraph=fullgraph, backend=counter)
    for _ in range(3):
        torch.testing.assert_close(compiled(x, weight), call(x, weight), atol=1e-4, rtol=1e-4)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["gc-p4cnn", "gc-p4m-resnet44", "p4m-unet"])
def test_torch_fx_takes_layers_as_leaves(name: str) -> None:
    net, x = build_model(name).eval(), images_for(name)
    traced = torch.fx.symbolic_trace(net)
    torch.testing.assert_close(traced(x), net(x))
    called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert {n for n, m in net.named_modules() if isinstance(m, (GroupConv2d, GroupBatchNorm2d))} <= called


def test_torchvision_extracts_group_feature_maps() -> None:
    feature_extraction = pytest.importorskip("torchvision.models.feature_extraction")
    net, x = build_model("gc-p4m-resnet44").eval(), images_for("gc-p4m-resnet44")
    features = feature_extraction.create_feature_extractor(net, ["layer2.6.conv2"])(x)
    assert features["layer2.6.conv2"].shape == (2, 56, 8, 16, 16)
    seen: list[Tensor] = []
    net.layer2[6].conv2.register_forward_hook(lambda m, i, o: seen.append(o))  # type: ignore[index, operator, union-attr]
    net(x)
    torch.testing.assert_close(seen[0], features["layer2.6.conv2"])


def test_tracing_with_torch_jit() -> None:
    net, x = build_model("gc-p4cnn").eval(), images_for("gc-p4cnn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(net, x)
    other = images_for("gc-p4cnn", batch=3)
    torch.testing.assert_close(traced(other), net(other), atol=1e-5, rtol=1e-5)


# ---- names and attributes ------------------------------------------------------------------------


def test_a_star_import_brings_no_name_that_hides_torchs() -> None:
    names: dict[str, Any] = {}
    exec("from torch import nn\nfrom sepgroupy import *", names)
    assert names["nn"] is nn
    assert all(not hasattr(names[n], "__path__") for n in sepgroupy.__all__)


def test_the_package_is_a_command() -> None:
    found = subprocess.run([sys.executable, "-m", "sepgroupy", "--version"], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("sepgroupy ")


def test_layers_have_the_attributes_of_torchs() -> None:
    options: dict[str, Any] = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2, "padding_mode": "reflect"}
    ours, torchs = GroupConv2d(4, 6, 3, group="p4", kind="g", **options), nn.Conv2d(4, 6, 3, **options)
    for name in ("in_channels", "out_channels", "kernel_size", *options):
        assert getattr(ours, name) == getattr(torchs, name), name
    assert (ours.group, ours.kind) == (sepgroupy.as_group("p4"), "g")


def test_a_backend_is_an_option_of_every_network() -> None:
    for name in sepgroupy.model_names():
        if "z2" not in name and name != "resnet44":
            build_model(name, backend="torch")
    assert "p4m-unet" in sepgroupy.model_names()


# ---- what torch refuses --------------------------------------------------------------------------


def test_one_value_per_channel_is_refused_in_training_as_torch_does(as_used: Any) -> None:
    net = as_used(nn.Sequential(GroupBatchNorm2d(4), nn.ReLU(), GroupConv2d(4, 4, 1, group="p1")))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net(torch.randn(1, 4, 1, 1, 1))


def test_filters_are_expanded_once_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = GroupConv2d(4, 4, 3, group="p4", backend="expanded"), torch.randn(1, 4, 4, 9, 9)
    backend = next(b for b in sepgroupy.backends.registered_backends() if b.name == "expanded")
    expand, calls = type(backend).expand_filters, []
    monkeypatch.setattr(type(backend), "expand_filters", lambda *a: (calls.append(1), expand(*a))[1])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), cached_filters(layer):
        first = layer(x)
        torch.testing.assert_close(layer(x), first)
    assert len(calls) == 1
