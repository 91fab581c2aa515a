"""Whatever users do to a module has the effect that it has on those of ``torch.nn``, in 1-D, 2-D and 3-D."""

from __future__ import annotations

import copy
import inspect
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
from sepgroupy.groups import D4, PointGroup, as_group
from sepgroupy.models import ResNet
from sepgroupy.nn import GROUP_BATCH_NORMS, GROUP_CONVS, GroupBatchNorm, GroupConvolution

pytestmark = [  # PyTorch warns of itself
    pytest.mark.filterwarnings("ignore:.torch.jit"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

KINDS = ("dense", "g", "gc")
REFLECTION, C4V = as_group("reflection", 1), as_group("C4v", 3)
GROUPS = pytest.mark.parametrize("group", [REFLECTION, D4, C4V], ids=lambda group: f"{group.dimension}-D")
NETWORKS = ("gc-p4cnn", "g-p4cnn", "p4cnn", "z2cnn", "gc-p4m-resnet44", "p4m-unet")
OTHER_NETWORKS = ("signals", "volumes", "o-unet")
BACKENDS = [name for name, summary in available_backends().items() if not summary.startswith("unavailable")]
CASES = [
    *((D4, kind, backend) for backend in ("auto", *BACKENDS) for kind in KINDS),
    *((group, kind, "auto") for group in (REFLECTION, C4V) for kind in KINDS),
]
"""Groups of images with every backend; of signals and volumes."""


def network(name: str) -> nn.Module:
    if name in ("signals", "volumes"):
        group = {"signals": REFLECTION, "volumes": C4V}[name]
        return ResNet("gc", 8, (2, 2, 2), group=group, dimension=group.dimension)
    return build_model(name, **({"width": 1, "depth": 1, "group": C4V} if name == "o-unet" else {}))


def images_for(name: str, batch: int = 2) -> Tensor:
    other = {"signals": (3, 8), "volumes": (3, 4, 8, 4), "o-unet": (1, 4, 4, 4)}
    if name in other:
        return torch.randn(batch, *other[name])
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
    """Draw an input, with one axis more of three slices if it is of volumes, of the last size if it is of signals."""
    elements = () if layer.kind == "lifting" else (layer.group.order,)
    return torch.randn(batch, layer.in_channels, *elements, *(3, *size)[-layer.dimension :], dtype=dtype)


# ---- derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(("group", "kind", "backend"), CASES)
def test_forward_mode_gives_the_directional_derivative(group: PointGroup, kind: str, backend: str, grad: bool) -> None:
    options: dict[str, Any] = {"group": group, "kind": kind, "backend": backend, "dtype": torch.float64}
    try:
        layer = GROUP_CONVS[group.dimension](2, 3, 3, padding=1, **options)
    except ArgumentError:
        pytest.skip("not supported")
    x, v = group_maps(layer, 5, 5, dtype=torch.float64), group_maps(layer, 5, 5, dtype=torch.float64)
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, v))).tangent
    with torch.no_grad():  # the layer is affine: the derivative is a difference
        expected = layer(x + v) - layer(x)
    torch.testing.assert_close(tangent, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("group", "kind", "backend"), CASES)
def test_vmap_and_jvp_of_parameters(group: PointGroup, kind: str, backend: str) -> None:
    options: dict[str, Any] = {"group": group, "kind": kind, "backend": backend, "dtype": torch.float64}
    try:
        layer = GROUP_CONVS[group.dimension](2, 3, 3, padding=1, **options)
    except ArgumentError:
        pytest.skip("not supported")
    xs = torch.stack([group_maps(layer, 5, 5, dtype=torch.float64) for _ in range(3)])
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


@pytest.mark.parametrize("name", [*NETWORKS, *OTHER_NETWORKS])
def test_inference_mode_in_training_and_evaluation(name: str, as_used: Any) -> None:
    net, x = network(name), images_for(name)
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


@GROUPS
def test_a_norm_without_running_statistics_under_inference_mode(group: PointGroup, as_used: Any) -> None:
    norm = GROUP_BATCH_NORMS[group.dimension](4, track_running_stats=False)
    layer = GROUP_CONVS[group.dimension](4, 4, 3, group=group)
    net, x = as_used(nn.Sequential(norm, nn.ReLU(), layer).eval()), group_maps(layer, 9, 9)
    with torch.inference_mode():
        y = net(x)
    torch.testing.assert_close(y, net(x).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gc-p4cnn", "g-p4cnn", "p4cnn", "p4m-unet", *OTHER_NETWORKS])
def test_channels_last_models_and_images(name: str, as_used: Any) -> None:
    net, x = network(name).eval(), images_for(name)
    expected = net(x)
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim, torch.preserve_format)  # none of signals
    other = as_used(copy.deepcopy(net).to(memory_format=last))
    torch.testing.assert_close(other(x.to(memory_format=last)), expected, atol=1e-4, rtol=1e-4)
    other.train()(x.to(memory_format=last)).sum().backward()
    assert all(p.grad is not None for p in other.parameters())


@GROUPS
@pytest.mark.parametrize("last", [torch.channels_last, torch.channels_last_3d])
def test_channels_last_converts_dtype_too(group: PointGroup, last: torch.memory_format) -> None:
    for kind in KINDS:
        layer = GROUP_CONVS[group.dimension](2, 2, 3, group=group, kind=kind).to(torch.float64, memory_format=last)
        assert {p.dtype for p in layer.parameters()} == {torch.float64}


# ---- devices -------------------------------------------------------------------------------------


@GROUPS
def test_parameters_of_another_device_bring_their_constants(group: PointGroup, lazy_device: str) -> None:
    layer = GROUP_CONVS[group.dimension](2, 3, 3, group=group, kind="gc")
    x = group_maps(layer, 7, 7)
    expected = layer(x)
    elsewhere = {name: p.detach().to(lazy_device) for name, p in layer.named_parameters()}
    found = torch.func.functional_call(layer, elsewhere, (x.to(lazy_device),))
    torch.testing.assert_close(found.cpu(), expected.detach(), atol=1e-5, rtol=1e-5)
    skeleton = GROUP_CONVS[group.dimension](2, 3, 3, group=group, kind="gc", device="meta")
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


@pytest.mark.parametrize("name", ["gc-p4cnn", *OTHER_NETWORKS])
def test_a_replica_for_data_parallel_uses_its_own_parameters(name: str) -> None:
    net, x = fuse(network(name).eval()), images_for(name)
    before = net(x)
    replica = net._replicate_for_data_parallel()
    replica._modules = {name: copy.deepcopy(child) for name, child in net._modules.items()}
    with torch.no_grad():
        for p in replica.parameters():
            p.mul_(1.5)
    assert not torch.allclose(replica(x), before)
    torch.testing.assert_close(net(x), before)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["gc-p4cnn", "g-p4cnn", "p4m-unet", "signals", "volumes"])
def test_fake_tensors_pass_and_leave_nothing_behind(name: str, device: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        with torch.device(device):
            net = network(name)
        assert net(images_for(name).to(device)).device.type == device
    assert network(name)(images_for(name)).isfinite().all()


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


@pytest.mark.parametrize("name", ["gc-p4cnn", *OTHER_NETWORKS])
def test_pickled_saved_and_copied_models(name: str, as_used: Any) -> None:
    net, x = network(name).eval(), images_for(name)
    kind, net = type(net), as_used(net)
    expected = net(x)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    copies = [pickle.loads(pickle.dumps(net)), copy.deepcopy(net), torch.load(buffer, weights_only=False)]
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.1)
    for model in copies:
        assert type(model).__name__ == kind.__name__
        torch.testing.assert_close(model(x), expected)


# ---- compilers, exporters and tracers ------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        *group_layers(),
        LiftingConv2d(8, 8, 3, padding=1, group="p4m"),
        *(GROUP_CONVS[group.dimension](8, 8, 3, padding=1, group=group, kind="gc") for group in (REFLECTION, C4V)),
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
        few = (
            2 if layer.dimension == 2 else 5
        )  # another number than that of group elements, or Dynamo takes them as one
        x = group_maps(layer, 11 + index, 11 + index, batch=few + index % 3)
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
@pytest.mark.parametrize(
    ("group", "kind"), [*((D4, kind) for kind in KINDS), (REFLECTION, "g"), (C4V, "dense"), (C4V, "gc")]
)
def test_an_exported_layer_takes_any_size_and_standard_operations(group: PointGroup, kind: str, strict: bool) -> None:
    from torch.export import Dim, export

    layer = GROUP_CONVS[group.dimension](4, 4, 3, padding=1, group=group, kind=kind).eval()
    dynamic = {"x": {0: Dim("batch"), **{3 + axis: Dim(f"size{axis}") for axis in range(group.dimension)}}}
    program = export(layer, (group_maps(layer, 16, 16),), dynamic_shapes=dynamic, strict=strict)
    x = torch.randn(3, 4, group.order, *{1: (201,), 2: (200, 201), 3: (5, 20, 21)}[group.dimension])
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


@pytest.mark.parametrize("name", ["gc-p4cnn", "gc-p4m-resnet44", "p4m-unet", *OTHER_NETWORKS])
def test_torch_fx_takes_layers_as_leaves(name: str) -> None:
    net, x = network(name).eval(), images_for(name)
    traced = torch.fx.symbolic_trace(net)
    torch.testing.assert_close(traced(x), net(x))
    called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert {n for n, m in net.named_modules() if isinstance(m, (GroupConvolution, GroupBatchNorm))} <= called


def test_torchvision_extracts_group_feature_maps() -> None:
    feature_extraction = pytest.importorskip("torchvision.models.feature_extraction")
    net, x = build_model("gc-p4m-resnet44").eval(), images_for("gc-p4m-resnet44")
    features = feature_extraction.create_feature_extractor(net, ["layer2.6.conv2"])(x)
    assert features["layer2.6.conv2"].shape == (2, 56, 8, 16, 16)
    seen: list[Tensor] = []
    net.layer2[6].conv2.register_forward_hook(lambda m, i, o: seen.append(o))  # type: ignore[index, operator, union-attr]
    net(x)
    torch.testing.assert_close(seen[0], features["layer2.6.conv2"])


@pytest.mark.parametrize("name", ["gc-p4cnn", *OTHER_NETWORKS])
def test_tracing_with_torch_jit(name: str) -> None:
    net, x = network(name).eval(), images_for(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(net, x)
    other = images_for(name, batch=3)
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


@GROUPS
@pytest.mark.parametrize("transposed", [False, True])
def test_layers_have_the_attributes_and_arguments_of_torchs(group: PointGroup, transposed: bool) -> None:
    options: dict[str, Any] = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}
    options |= {"output_padding": 0} if transposed else {"padding_mode": "reflect"}
    name = f"Conv{'Transpose' if transposed else ''}{group.dimension}d"
    made, torchs = getattr(sepgroupy, f"Group{name}"), getattr(nn, name)(4, 6, 3, **options)
    ours = made(4, 6, 3, group=group, kind="g", **options)
    values = options if not transposed else options | {"output_padding": (0,) * group.dimension}
    for attribute in ("in_channels", "out_channels", "kernel_size", *values):
        assert getattr(ours, attribute) == getattr(torchs, attribute), attribute
    assert (ours.group, ours.kind) == (group, "g")
    missing = {*inspect.signature(type(torchs)).parameters} - {*inspect.signature(made).parameters}
    assert missing == ({"padding_mode"} if transposed else set())  # which can only be "zeros" there


def test_a_backend_is_an_option_of_every_network() -> None:
    for name in sepgroupy.model_names():
        if "z2" not in name and name != "resnet44":
            build_model(name, backend="torch")
    assert "p4m-unet" in sepgroupy.model_names()


# ---- what torch refuses --------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_one_value_per_channel_is_refused_in_training_as_torch_does(dimension: int, as_used: Any) -> None:
    layer = GROUP_CONVS[dimension](4, 4, 1, group="C1")
    net = as_used(nn.Sequential(GROUP_BATCH_NORMS[dimension](4), nn.ReLU(), layer))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net(torch.randn(1, 4, 1, *(1,) * dimension))


def test_filters_are_expanded_once_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = GroupConv2d(4, 4, 3, group="p4", backend="expanded"), torch.randn(1, 4, 4, 9, 9)
    backend = next(b for b in sepgroupy.backends.registered_backends() if b.name == "expanded")
    expand, calls = type(backend).expand_filters, []
    monkeypatch.setattr(type(backend), "expand_filters", lambda *a: (calls.append(1), expand(*a))[1])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), cached_filters(layer):
        first = layer(x)
        torch.testing.assert_close(layer(x), first)
    assert len(calls) == 1
