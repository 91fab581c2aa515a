"""Transposed group convolutions against their definition, the adjoint of the convolution, and their symmetry."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from conftest import DIAGONAL, PLANE_GROUPS, as_defined, assert_compiled_once
from sepgroupy.backends import available_backends
from sepgroupy.errors import ArgumentError
from sepgroupy.groups import C4, D1, D4, PointGroup
from sepgroupy.nn import GroupConv2d, GroupConvTranspose2d, GroupPool, LiftingConv2d, PerElement
from sepgroupy.testing import assert_equivariant

HAS_KERNELS = not available_backends()["native"].startswith("unavailable")
KINDS = ("dense", "g", "gc")
CASES: dict[str, dict[str, Any]] = {
    "1x1": {"kernel_size": 1},
    "1x1 with holes": {"kernel_size": 1, "stride": 2},
    "2x2": {"kernel_size": 2, "stride": 2},
    "3x3": {"kernel_size": 3, "padding": 1},
    "3x3 upwards": {"kernel_size": 3, "stride": 2, "padding": 1},
    "4x4": {"kernel_size": 4, "stride": 2, "padding": 1},
    "5x5": {"kernel_size": 5, "stride": 3, "padding": 2},
    "dilated": {"kernel_size": 3, "stride": 2, "dilation": 2, "padding": 1},
    "in blocks": {"kernel_size": 3, "stride": 2, "groups": 2},
}


BACKENDS = ("auto", "torch", "expanded", "reference", "native", "two_step")  # native with its kernels, two_step for gc
GROUPS = [*(pytest.param("gc", group, id=f"gc-{group.name}") for group in PLANE_GROUPS), ("dense", D4), ("g", D4)]
"""Every kind and every group once; the definition is tested for all of their combinations."""


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_backend_computes_the_definition(kind: str, case: dict[str, Any]) -> None:
    geometry = {name: value for name, value in case.items() if name != "kernel_size"}
    for group in PLANE_GROUPS:
        left_out = {"two_step"} if kind != "gc" else set()
        left_out |= set() if HAS_KERNELS and "groups" not in case else {"native"}
        backends = [name for name in BACKENDS if name not in left_out]
        options: dict[str, Any] = {"group": group, "kind": kind, "dtype": torch.float64, **case}
        layers = [GroupConvTranspose2d(4, 6, backend=backend, **options) for backend in backends]
        nn.init.normal_(layers[0].bias)  # type: ignore[arg-type]
        x = torch.randn(2, 4, group.order, 3, 4, dtype=torch.float64)
        expected = as_defined(layers[0], x, **geometry)
        for layer in layers:
            layer.load_state_dict(layers[0].state_dict())
            y = layer(x).detach().numpy()
            np.testing.assert_allclose(y, expected, atol=1e-10, rtol=0, err_msg=repr(layer))


@pytest.mark.parametrize("kind", KINDS)
def test_other_backends_refuse_transposed_layers(kind: str) -> None:
    for backend in ("fourier", *(["two_step"] if kind != "gc" else [])):
        with pytest.raises(ArgumentError, match=rf"backend \(='{backend}'\) needs"):
            GroupConvTranspose2d(4, 6, 3, group="p4", kind=kind, backend=backend)
    with pytest.raises(ArgumentError, match=r"backend \(='native'\) needs groups=1 where it is transposed"):
        GroupConvTranspose2d(4, 6, 3, groups=2, group="p4", kind=kind, backend="native")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize(("kind", "group"), GROUPS)
def test_it_is_the_adjoint_of_the_group_convolution(kind: str, group: PointGroup, case: dict[str, Any]) -> None:
    options: dict[str, Any] = {"group": group, "kind": kind, "bias": False, "dtype": torch.float64, **case}
    layer, conv = GroupConvTranspose2d(4, 6, **options), GroupConv2d(6, 4, **options)
    conv.load_state_dict(layer.state_dict(), strict=True)  # names and shapes are the convolution's
    x = torch.randn(2, 4, group.order, 3, 5, dtype=torch.float64)
    up = layer(x)
    y = torch.randn_like(up)
    assert conv(y).shape == x.shape
    torch.testing.assert_close((conv(y) * x).sum(), (y * up).sum(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize(("kind", "group"), GROUPS)
def test_it_is_equivariant_at_every_size(kind: str, group: PointGroup, case: dict[str, Any]) -> None:
    layer = GroupConvTranspose2d(4, 6, group=group, kind=kind, dtype=torch.float64, **case)
    for size in (2 if case.get("padding") else 1, 4, 5):
        assert_equivariant(layer, group, torch.randn(2, 4, group.order, size, size, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_a_point_spreads_each_filter_as_it_is(kind: str) -> None:
    """A single 1 at element g leaves the filter transformed by g: by hand, for rotations by 90°."""
    layer: Any = GroupConvTranspose2d(1, 1, 3, group=C4, kind=kind, bias=False)
    if kind == "dense":
        w = layer.weight[0, 0]
    else:
        w = (layer.pointwise_weight * layer.depthwise_weight.reshape(1, 1, 1, 3, 3))[0, 0]
    for g in range(4):
        x = torch.zeros(1, 1, 4, 1, 1)
        x[0, 0, g] = 1
        expected = torch.stack([torch.rot90(w[(h - g) % 4], g) for h in range(4)])
        torch.testing.assert_close(layer(x)[0, 0], expected)


def test_the_bias_is_added_to_every_value() -> None:
    layer: Any = GroupConvTranspose2d(2, 6, 3, stride=2, groups=2, group=D4, kind="gc")
    x = torch.randn(1, 2, 8, 3, 3)
    without = layer(x)
    with torch.no_grad():
        layer.bias.copy_(torch.arange(6.0))
    torch.testing.assert_close(layer(x), without + torch.arange(6.0).reshape(6, 1, 1, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_function(kind: str) -> None:
    layer = GroupConvTranspose2d(2, 2, 3, 2, 1, group=C4, kind=kind, dtype=torch.float64)
    parameters = tuple(layer.parameters())
    x = torch.randn(1, 2, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def call(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *parameters))


@pytest.mark.parametrize(("kind", "stride"), [(kind, stride) for kind in KINDS for stride in (1, 2)])
def test_a_new_layer_keeps_the_mean_square(kind: str, stride: int) -> None:
    layer = GroupConvTranspose2d(64, 64, 4, stride, group=C4, kind=kind)
    with torch.no_grad():
        y = layer(torch.randn(4, 64, 4, 24, 24))[..., 6:-6, 6:-6]
    assert 1.4 < y.square().mean() < 2.7  # a ReLU then halves it


def test_output_padding_is_for_sides_that_stay() -> None:
    options: dict[str, Any] = {"kernel_size": 3, "stride": 2, "dtype": torch.float64}
    for group, added in ((D1, (0, 1)), (DIAGONAL, 1)):  # rows reflected; the diagonal maps last sides to last sides
        layer = GroupConvTranspose2d(2, 3, output_padding=added, group=group, **options)
        x = torch.randn(1, 2, 2, 4, 4, dtype=torch.float64)
        assert layer(x).shape[-2:] == ((9, 10) if group is D1 else (10, 10))
        defined = as_defined(layer, x, stride=2, output_padding=added)
        np.testing.assert_allclose(layer(x).detach().numpy(), defined, atol=1e-10, rtol=0)
        assert_equivariant(layer, group, x)


BAD: list[tuple[str, dict[str, Any]]] = [
    ("in_channels (=0)", {"in_channels": 0}),
    ("out_channels (=6) must be divisible by groups (=4)", {"groups": 4}),
    ("kernel_size (=(3, 5)) must be the same on axes Y and X", {"kernel_size": (3, 5)}),
    ("stride (=0)", {"stride": 0}),
    ("padding (='same')", {"padding": "same"}),
    ("padding (=-1)", {"padding": -1}),
    ("kind (='c') must be one of dense, g, gc", {"kind": "c"}),
    ("group (='p6') is unknown", {"group": "p6"}),
    ("output_padding (=1) must be smaller than stride", {"output_padding": 1}),
    ("output_padding (=1) lengthens one side", {"output_padding": 1, "stride": 2}),
    ("output_padding (=(1, 0)) lengthens", {"output_padding": (1, 0), "stride": 2, "group": "pm"}),
    ("output_padding (=(0, 1)) must be the same", {"output_padding": (0, 1), "stride": 2, "group": DIAGONAL}),
    ("output_padding (=-1)", {"output_padding": -1}),
]


@pytest.mark.parametrize(("message", "bad"), BAD, ids=lambda value: str(value))
def test_a_bad_argument_is_refused(message: str, bad: dict[str, Any]) -> None:
    good: dict[str, Any] = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "group": "p4m"}
    with pytest.raises(ArgumentError, match=re.escape(message)):
        GroupConvTranspose2d(**(good | bad))


@pytest.mark.parametrize("shape", [(2, 4, 5, 5), (2, 3, 8, 5, 5), (2, 4, 4, 5, 5)])
def test_an_input_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"x has shape {shape}; this layer reads (B, 4, 8, Y, X)")):
        GroupConvTranspose2d(4, 6, 3, group="p4m")(torch.zeros(shape))


def test_a_feature_map_that_padding_would_use_up_is_refused() -> None:
    with pytest.raises(ArgumentError, match="x is 1×1 pixels"):
        GroupConvTranspose2d(1, 1, 3, padding=2, group="p4")(torch.zeros(1, 1, 4, 1, 1))


@pytest.mark.parametrize(
    "upsample",
    [
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Upsample(size=11, mode="bilinear", align_corners=True),
        nn.Upsample(scale_factor=3, mode="bicubic"),
    ],
    ids=str,
)
def test_concatenation_and_resizing_need_no_layer_of_their_own(upsample: nn.Module) -> None:
    plane_group = D4

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift = LiftingConv2d(2, 3, 3, padding=1, group=plane_group)
            self.resize = PerElement(upsample)
            self.conv = GroupConv2d(6, 2, 3, group=plane_group, kind="gc")
            self.pool = GroupPool("mean")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.lift(x)
            return self.pool(self.conv(self.resize(torch.cat([x, x.relu()], 1))))

    assert_equivariant(Net().double(), plane_group, torch.randn(1, 2, 6, 6, dtype=torch.float64))


# ---- by the compiled kernels -------------------------------------------------------------------------------------

needs_kernels = pytest.mark.skipif(not HAS_KERNELS, reason="there are no compiled kernels")


@needs_kernels
@pytest.mark.parametrize("frozen", ["nothing", "filters", "input"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernels_gradients_are_those_of_the_filter_bank(kind: str, frozen: str) -> None:
    options: dict[str, Any] = {"stride": 2, "padding": 1, "kind": kind, "dtype": torch.float64}
    options |= {"group": "vflip", "output_padding": (0, 1)}
    native, expanded = (GroupConvTranspose2d(4, 6, 3, backend=name, **options) for name in ("native", "expanded"))
    native.load_state_dict(expanded.state_dict())
    x = torch.randn(2, 4, 2, 5, 3, dtype=torch.float64)
    found = []
    for layer in (native, expanded):
        images = x.clone().requires_grad_(frozen != "input")
        leaves = [images] if frozen == "filters" else [*layer.parameters()]
        leaves += [images] if frozen == "nothing" else []
        layer.requires_grad_(frozen != "filters")
        y = layer(images)
        first = torch.autograd.grad(y.sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        plain = torch.autograd.grad(layer(images).sin().sum(), leaves)
        with torch.no_grad():
            found.append([y.detach(), layer(images), *first, *plain, *second])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@needs_kernels
@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_rounded_once(kind: str, parameters: torch.dtype) -> None:
    """Under autocast, or with parameters in bfloat16: the kernels compute in float32."""
    layer = GroupConvTranspose2d(4, 6, 2, 2, group="p4", kind=kind)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter.bfloat16())
    exact = GroupConvTranspose2d(4, 6, 2, 2, group="p4", kind=kind, dtype=torch.float64, backend="reference")
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(2, 4, 4, 5, 5).bfloat16()
    expected = exact(x.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=parameters is torch.float32):
        layer = layer.to(parameters)
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                y = layer(x)
            assert y.dtype is torch.bfloat16
            torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck looks at it
def test_a_compiler_sees_one_operator_for_all_sizes(kind: str) -> None:
    layer = GroupConvTranspose2d(4, 6, 3, 2, 1, output_padding=(0, 1), group="vflip", kind=kind, backend="native")
    counter = torch._dynamo.testing.EagerAndRecordGraphs()
    torch.compile(layer, fullgraph=True, backend=counter)(torch.randn(2, 4, 2, 5, 5))
    (graph,) = counter.graphs
    assert graph.code.count("torch.ops.sepgroupy.group_conv_transposed") == 1
    torch.compiler.reset()
    assert_compiled_once(layer, (7, 4, 2, 5, 6), (3, 4, 2, 9, 8), (5, 4, 2, 12, 11))
    weight = layer.weight if kind == "dense" else layer.pointwise_weight
    depthwise = None if kind == "dense" else layer.depthwise_weight
    if kind == "g":
        depthwise = depthwise.unsqueeze(2)
    given = [None if t is None else t.detach().requires_grad_() for t in (weight, depthwise, layer.bias)]
    elements = [1, 0, 0, 1, -1, 0, 0, 1]
    x = torch.randn(2, 2, 4, 5, 6, requires_grad=True)
    options = ([9, 12], False, 1, elements, [2, 2], [1, 1], [1, 1])
    torch.library.opcheck(torch.ops.sepgroupy.group_conv_transposed, (x, *given, *options))


@needs_kernels
@pytest.mark.parametrize(("backend", "times"), [("native", 1), ("auto", 0)])
@pytest.mark.usefixtures("fresh_compiler")
def test_only_a_forced_layer_exports_the_operator(backend: str, times: int) -> None:
    layer, x = GroupConvTranspose2d(4, 6, 2, 2, group="p4", backend=backend), torch.randn(2, 4, 4, 5, 5)
    program = torch.export.export(layer, (x,))
    assert program.graph_module.code.count("torch.ops.sepgroupy.group_conv_transposed") == times
    torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize(("kind", "multiplications"), [("dense", 12 * 4), ("g", 12 * 4), ("gc", 12 * 4)])
def test_executed_operations_are_counted(kind: str, multiplications: int) -> None:
    """Of each pair of channels and each pixel of the input: four kernel elements, which reach pixels of their own."""
    layer, x = GroupConvTranspose2d(4, 6, 2, 2, group="p4m", kind=kind), torch.randn(3, 4, 8, 5, 7)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    depthwise = 3 * 4 * 8 * 4 * 5 * 7 if kind == "gc" else 0
    assert counter.get_total_flops() == 2 * (3 * 4 * 6 * 5 * 7 * multiplications + depthwise)


@needs_kernels
def test_tensors_without_values() -> None:
    for kind in KINDS:
        layer = GroupConvTranspose2d(4, 6, 2, 2, group="p4", kind=kind, backend="native")
        x = torch.randn(0, 4, 4, 5, 5, requires_grad=True)
        y = layer(x)
        assert y.shape == (0, 6, 4, 10, 10)
        y.sum().backward()
        assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())
