"""Layers in one and three dimensions: against the definition, and for every element of the group."""

from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sepgroupy
from conftest import assert_as_defined, random_input
from sepgroupy import ArgumentError, as_group, audit, compress, convert, equivariance_error, export, functional, fuse
from sepgroupy.backends import registered_backends
from sepgroupy.data import SOLIDS, load_solids
from sepgroupy.exporting import save
from sepgroupy.groups import D4, PointGroup, fourier_basis, group_names
from sepgroupy.nn import GroupBatchNorm, GroupBatchNorm3d, GroupConvolution, GroupPool, PerElement

sys.path.insert(0, str(Path(__file__).parents[1]))  # studies/ belongs to the repository, not to the library
from studies import solids

pytestmark = pytest.mark.usefixtures("as_if_large")

KINDS = ("lifting", "dense", "g", "gc")


def build(dimension: int, kind: str, *args: Any, transposed: bool = False, **options: Any) -> Any:
    """Build a layer in float64 with a random bias."""
    name = "LiftingConv" if kind == "lifting" else "GroupConvTranspose" if transposed else "GroupConv"
    named = {} if kind == "lifting" else {"kind": kind}
    layer = getattr(sepgroupy, f"{name}{dimension}d")(*args, dtype=torch.float64, **named, **options)
    nn.init.normal_(layer.bias)
    return layer


def backends_of(layer: GroupConvolution) -> list[str]:
    supporting = [b for b in registered_backends() if b.unavailable_reason() is None]
    return ["auto", *(b.name for b in supporting if b.unsupported_reason(layer.spec) is None)]


CASES: dict[str, dict[str, Any]] = {
    "octahedral": {"group": "O", "kernel_size": 3, "padding": 1},
    "octahedral-even-stride": {"group": "O", "kernel_size": 2, "stride": 2, "padding": 1},
}
"""Other groups: ``test_nn_conv``."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_every_backend_computes_the_definition(case: str, kind: str) -> None:
    options = CASES[case]
    layer = build(3, kind, 2, 2, **options)
    x = random_input(layer, 4, 3, 5, batch=1)
    geometry = {name: value for name, value in options.items() if name not in ("group", "kernel_size")}
    for name in backends_of(layer):
        layer.backend = name
        assert_as_defined(layer, x, **geometry)


@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
@pytest.mark.parametrize(
    ("group", "options"),
    [
        ("T", {"kernel_size": 2, "stride": 2}),
        ("C4v", {"kernel_size": (1, 3, 3), "stride": (2, 1, 1), "output_padding": (1, 0, 0), "groups": 2}),
        ("reflection", {"kernel_size": 4, "stride": 2, "padding": 1}),
    ],
)
def test_every_backend_transposes(group: str, options: dict[str, Any], kind: str) -> None:
    dimension = 1 if group == "reflection" else 3
    layer = build(dimension, kind, 2, 2, group=group, transposed=True, **options)
    geometry = {name: value for name, value in options.items() if name != "kernel_size"}
    for name in backends_of(layer):
        layer.backend = name
        assert_as_defined(layer, random_input(layer, *(2, 3, 3)[-dimension:], batch=1), **geometry)


EXACT: dict[str, tuple[dict[str, Any], int]] = {
    "odd": ({"kernel_size": 3, "padding": 1}, 4),
    "odd-stride": ({"kernel_size": 3, "stride": 2, "padding": 1}, 5),
    "even": ({"kernel_size": 2}, 4),
    "even-stride": ({"kernel_size": 4, "stride": 2, "padding": 1}, 4),
}


@pytest.mark.parametrize(
    ("group", "case"),
    [("O", "odd"), ("O", "odd-stride"), ("O", "even"), ("Oh", "odd"), ("Oh", "odd-stride"), ("Oh", "even-stride")],
)
@pytest.mark.parametrize("kind", KINDS)
def test_exact_for_all_symmetries_of_a_cube(group: str, kind: str, case: str) -> None:
    options, size = EXACT[case]
    layer = build(3, kind, 1, 2, group=group, **options)
    errors = equivariance_error(layer, group, random_input(layer, size, size, size, batch=1))
    assert len(errors) == {"O": 24, "Oh": 48}[group]
    assert errors.max() < 1e-10


@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
def test_transposed_layers_are_exact(kind: str) -> None:
    layer = build(3, kind, 1, 2, 3, stride=2, padding=1, group="Oh", transposed=True)
    assert equivariance_error(layer, "Oh", random_input(layer, 3, 3, 3, batch=1)).max() < 1e-10


@pytest.mark.parametrize("name", ["Cs", "C4", "D2h", "D4h", "Td", "O"])
def test_a_network_of_every_group(name: str) -> None:
    group = as_group(name, 3)
    net = nn.Sequential(
        sepgroupy.LiftingConv3d(1, 2, 3, padding=1, group=name),
        GroupBatchNorm3d(2),
        nn.ReLU(),
        PerElement(nn.MaxPool3d(2), dimension=3),
        sepgroupy.GroupConv3d(2, 2, 3, padding=1, group=name, kind="gc"),
        PerElement(nn.Upsample(scale_factor=2, mode="trilinear"), dimension=3),
        GroupPool(dimension=3),
    )
    x = torch.randn(1, 1, 4, 4, 4, dtype=torch.float64)
    assert equivariance_error(net.double(), group, x).max() < 1e-10
    assert net(x).shape == (1, 2, 4, 4, 4)


@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
@pytest.mark.parametrize("group", ["C2v", "reflection"])
def test_gradients_of_transposed_layers_are_those_of_finite_differences(group: str, kind: str) -> None:
    dimension = 1 if group == "reflection" else 3
    layer = build(dimension, kind, 1, 1, 2, stride=2, padding=0, group=group, transposed=True)
    parameters = [p.detach().requires_grad_() for p in layer.parameters()]
    names = [name for name, _ in layer.named_parameters()]

    def call(x: torch.Tensor, *values: torch.Tensor) -> Any:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    x = random_input(layer, *(1, 2, 2)[-dimension:], batch=1).requires_grad_()
    assert torch.autograd.gradcheck(call, (x, *parameters), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, *parameters), fast_mode=True)


def test_functions_take_as_many_axes_as_the_weight() -> None:
    for kind in KINDS:
        layer = build(3, kind, 2, 2, (1, 3, 3), padding=(0, 1, 1), group="C4")
        x = random_input(layer, 2, 4, 4)
        options = {"bias": layer.bias, "padding": (0, 1, 1), "group": "C4"}
        if kind == "lifting":
            y = functional.lifting_conv(x, layer.weight, **options)
        elif kind == "dense":
            y = functional.group_conv(x, layer.weight, **options)
        else:
            y = functional.separable_group_conv(x, layer.depthwise_weight, layer.pointwise_weight, **options)
        torch.testing.assert_close(y, layer(x))


def test_multiplications_in_the_fourier_domain() -> None:
    found = {name: fourier_basis(as_group(name, 3)).multiplications for name in ("T", "O", "Td", "Th", "Oh", "D4h")}
    assert found == {"T": 32, "O": 64, "Td": 64, "Th": 64, "Oh": 128, "D4h": 24}
    q = fourier_basis(as_group("Oh")).matrix
    np.testing.assert_allclose(q @ q.T, np.eye(48), atol=1e-12)


ORDERS = {"C1": 1, "Ci": 2, "Cs": 2, "C2": 2, "C2v": 4, "C2h": 4, "D2": 4, "D2h": 8, "C4": 4, "C4v": 8, "C4h": 8}
ORDERS |= {"D4": 8, "D4h": 16, "T": 12, "Td": 24, "Th": 24, "O": 24, "Oh": 48}


def test_groups_by_name() -> None:
    assert {name: as_group(name, 3).order for name in group_names(3)} == ORDERS
    proper = {name for name in ORDERS if (np.linalg.det(as_group(name, 3).arrays) > 0).all()}
    assert proper == {"C1", "C2", "C4", "D2", "D4", "T", "O"}
    about_z = {name for name in ORDERS if (np.abs(as_group(name, 3).arrays[:, 0, 0]) == 1).all()}
    assert about_z == set(ORDERS) - {"T", "Td", "Th", "O", "Oh"}
    slices = [tuple(row[1:] for row in element[1:]) for element in as_group("C4v").elements]
    assert tuple(slices) == D4.elements
    for small, large in (("T", "O"), ("O", "Oh"), ("T", "Th"), ("T", "Td"), ("C4", "D4"), ("D4", "D4h")):
        elements = as_group(small, 3).elements
        assert as_group(large, 3).elements[: len(elements)] == elements  # the order of every group axis


def test_a_group_of_another_dimension_is_refused() -> None:
    assert as_group("D4") is D4
    assert as_group("D4", 3).dimension == 3
    with pytest.raises(ArgumentError, match=r"group \(='Oh'\) must act on 2 axes here, not on 3: use .* p4m$"):
        sepgroupy.LiftingConv2d(1, 1, 3, group="Oh")
    with pytest.raises(ArgumentError, match=r"group \(='p4m'\) must act on 3 axes here, not on 2: use .* Oh$"):
        sepgroupy.GroupConv3d(1, 1, 3, group="p4m")
    for layer, group in ((sepgroupy.LiftingConv2d, as_group("D4", 3)), (sepgroupy.LiftingConv3d, D4)):
        with pytest.raises(ArgumentError, match=rf"group.*must act on {layer.dimension} axes here, not on"):
            layer(1, 1, 3, group=group)
    quaternions = PointGroup.generate([[[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]]])
    with pytest.raises(ArgumentError, match="must act on 3 axes"):
        sepgroupy.LiftingConv3d(1, 1, 3, group=quaternions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": (1, 3, 3), "group": "O"}, "kernel_size (=(1, 3, 3)) must be the same on axes Z and X"),
        ({"kernel_size": (3, 1, 3), "group": "C4"}, "kernel_size (=(3, 1, 3)) must be the same on axes Y and X"),
        ({"kernel_size": 3, "stride": (1, 2), "group": "O"}, "stride (=(1, 2)) must be an integer of at least 1"),
        ({"kernel_size": 2, "padding": "same", "group": "Ci"}, "padding='same' pads"),
        ({"kernel_size": 8, "group": "Td", "backend": "native"}, "needs kernels of up to 343 elements"),
    ],
)
def test_a_bad_argument_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        sepgroupy.LiftingConv3d(1, 1, **options)


def test_an_input_of_another_shape_is_refused() -> None:
    layer = sepgroupy.GroupConv3d(2, 2, 3, group="O", kind="gc")
    with pytest.raises(
        ArgumentError, match=r"reads \(B, 2, 24, Z, Y, X\), a feature map on O .* Apply a LiftingConv3d to x first"
    ):
        layer(torch.zeros(1, 2, 24, 5, 5))
    with pytest.raises(ArgumentError, match=r"x is 5×5×2 voxels, with padding .* smaller than the extent"):
        layer(torch.zeros(1, 2, 24, 5, 5, 2))
    for module in (GroupPool(), PerElement(nn.MaxPool3d(2))):
        with pytest.raises(ArgumentError, match=r"a group feature map in 2-D has 5 axes.*dimension \(=2\)"):
            module(torch.zeros(1, 2, 24, 4, 4, 4))
    with pytest.raises(ArgumentError, match=r"dimension \(=4\) must be 1, 2 or 3"):
        GroupPool(dimension=4)


def network(dimension: int, group: str, kind: str = "gc") -> nn.Sequential:
    """Build a small network of all kinds of layers, with statistics that are not those of a new one."""
    layers: dict[str, Any] = {name: getattr(sepgroupy, f"{name}{dimension}d") for name in LAYERS}
    plain: dict[str, Any] = {name: getattr(nn, f"{name}{dimension}d") for name in ("MaxPool", "AdaptiveAvgPool")}
    net = nn.Sequential(
        layers["LiftingConv"](1, 2, 3, padding=1, group=group),
        layers["GroupBatchNorm"](2),
        nn.ReLU(),
        PerElement(plain["MaxPool"](2), dimension),
        layers["GroupConv"](2, 2, 3, padding=1, group=group, kind=kind),
        layers["GroupBatchNorm"](2),
        layers["GroupConvTranspose"](2, 2, 2, stride=2, group=group, kind=kind),
        GroupPool("max", dimension),
        plain["AdaptiveAvgPool"](1),
        nn.Flatten(),
        nn.Linear(2, 3),
    )
    for module in net.modules():
        if isinstance(module, GroupBatchNorm):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.eval()


LAYERS = ("LiftingConv", "GroupConv", "GroupConvTranspose", "GroupBatchNorm")
NETWORKS = [(3, "T"), (3, "D4"), (1, "reflection")]


@pytest.mark.parametrize(("dimension", "group"), NETWORKS)
def test_audit_tells_exact_networks_from_others(dimension: int, group: str) -> None:
    report = audit(network(dimension, "Oh" if group == "T" else group), group, 4)  # or a subgroup of the network's
    assert report.exact
    assert len(report.rows[0].errors) == as_group(group, dimension).order
    report = audit(network(dimension, group), group, 5)
    assert not report.exact
    assert report.first.name == "3.module"
    assert "stride 2 is not symmetric" in report.cause
    assert report.sizes == (4, 6)


def test_audit_measures_every_element_in_its_place() -> None:
    """Whatever part of the orbit an element is in, its error stands at its index."""
    net = nn.Sequential(nn.Conv3d(1, 1, 3, bias=False), nn.Flatten(2))
    with torch.no_grad():
        kernel = torch.randn(3, 3, 3)
        net[0].weight.copy_(kernel + functional.transform(kernel, "Oh", 41, group_axis=False))
    row = audit(net[:1], "Oh", 5).rows[0]
    group = as_group("Oh")
    invariant = {0, 41} if group.cayley_table[41, 41] == 0 else {0}
    assert {i for i, error in enumerate(row.errors) if error < 1e-10} == invariant
    assert row.cause == "an ordinary Conv3d, whose filter Oh changes"


@pytest.mark.parametrize(("dimension", "group"), NETWORKS)
def test_export_and_compress(dimension: int, group: str, tmp_path: Path) -> None:
    net, x = network(dimension, group, "dense"), torch.randn(2, 1, *(6,) * dimension)
    with torch.no_grad():
        plain = export(net)
        torch.testing.assert_close(plain(x), net(x))
        assert not any(type(module).__module__.startswith("sepgroupy") for module in plain.modules())
        smaller, rows = compress(net, "gc")
        assert [row.name for row in rows] == ["4", "6"]
        assert equivariance_error(smaller.double(), as_group(group, dimension), x.double()).max() < 1e-10
        torch.testing.assert_close(fuse(net)(x), net(x))
    if group == "T":
        onnxruntime = pytest.importorskip("onnxruntime")
        save(net, tmp_path / "net.onnx", "onnx", x.shape[1:])
        session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(found, plain(x).numpy(), atol=1e-5)


def test_convert_plain_networks() -> None:
    plain = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(4, 4, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3),
    ).eval()  # fmt: skip
    net = convert(plain, "O", "gc", in_size=4)  # audited by convert itself
    assert isinstance(net[0].convolution, sepgroupy.LiftingConv3d)
    assert net(torch.zeros(2, 1, 4, 4, 4)).shape == (2, 3)
    lifted = convert(plain, "T", "dense", in_size=4, weights="lift", pool="mean")
    x, group = torch.randn(2, 1, 4, 4, 4), as_group("T")
    inverse = (functional.transform(x, group, int(group.inverses[g]), group_axis=False) for g in range(12))
    torch.testing.assert_close(lifted(x), torch.stack([plain(y) for y in inverse]).mean(0))
    with pytest.raises(ArgumentError, match="must be the same on axes Z and X"):
        convert(nn.Sequential(nn.Conv3d(1, 2, (1, 3, 3))), "O", in_size=5)


def test_convert_a_video_network_for_rotations_of_its_images() -> None:
    video = pytest.importorskip("torchvision.models.video.resnet")
    plain = nn.Sequential(video.BasicStem(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(64, 2))
    net = convert(plain, "D4h", in_size=(3, 7, 7))
    assert net(torch.zeros(1, 3, 3, 7, 7)).shape == (1, 2)


@pytest.mark.parametrize("kind", ["lifting", "dense", "g"])  # gc: test_contracts
def test_compile_autocast_and_copies(kind: str) -> None:
    for group in ("O", "reflection"):
        dimension = 1 if group == "reflection" else 3
        layer = build(dimension, kind, 2, 2, 3, padding=1, group=group).float()
        x = random_input(layer, *(4,) * dimension, dtype=torch.float32)
        wanted = layer(x)
        torch.testing.assert_close(pickle.loads(pickle.dumps(layer))(x), wanted)
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), wanted, atol=0.05 * wanted.abs().max().item(), rtol=0)
        with torch.no_grad(), sepgroupy.cached_filters(layer):
            torch.testing.assert_close(layer(x), layer(x))
            torch.testing.assert_close(layer(x), wanted)
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), wanted)
        torch.testing.assert_close(layer.to(memory_format=torch.channels_last_3d)(x), wanted)
        vmapped = torch.func.vmap(layer)(torch.stack([x, -x]))
        torch.testing.assert_close(vmapped[0], wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["plain", "dense", "gc"])
@pytest.mark.parametrize("name", ["o-resnet8", "o-unet"])
def test_networks_by_name(name: str, kind: str) -> None:
    widths = {"widths": (1, 2, 2)} if "resnet" in name else {"width": 1, "depth": 1}
    net = sepgroupy.build_model(name, kind=kind, **widths).double().eval()
    x = torch.randn(1, 1, 4, 4, 4, dtype=torch.float64)
    assert net(x).shape == ((1, 10) if "resnet" in name else (1, 2, 4, 4, 4))
    if kind != "plain":
        assert equivariance_error(net, "O", x).max() < 1e-10
    if "unet" in name:
        with pytest.raises(ArgumentError, match=r"reads \(B, 1, Z, Y, X\), Z and Y and X divisible by"):
            net(x[..., :3])


def test_other_groups_and_dimensions_of_networks() -> None:
    net = sepgroupy.build_model("o-resnet8", widths=(1, 1, 1), group="C4v").eval()
    assert equivariance_error(net, "C4v", torch.randn(1, 1, 5, 8, 8)[:, :, :4]).max() < 1e-4
    signals = sepgroupy.models.ResNet("g", 8, (2, 2, 2), dimension=1, head="invariant", downsampling="equivariant")
    assert equivariance_error(signals.eval(), as_group("reflection", 1), torch.randn(1, 3, 8)).max() < 1e-4
    with pytest.raises(ArgumentError, match=r"dimension \(=4\)"):
        sepgroupy.models.UNet(dimension=4)


def test_the_audit_sends_few_elements_at_a_time() -> None:
    class Watched(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batches.append(len(x))
            return x

    batches: list[int] = []
    report = audit(nn.Sequential(Watched(), sepgroupy.LiftingConv3d(1, 1, 1, group="Oh")), "Oh", 3)
    assert report.exact
    assert len(report.rows[-1].errors) == 48
    assert max(batches) == 8


def test_solids_are_drawn_by_number_and_orientation() -> None:
    volumes, labels = load_solids(20, size=9, noise=0.0)
    assert labels.tolist() == [*range(10)] * 2
    again, _ = load_solids(12, size=9, noise=0.0)
    assert torch.equal(volumes[:12], again)
    inside = volumes.mean((1, 2, 3, 4))
    assert ((inside > 0.02) & (inside < 0.5)).all()
    fixed, _ = load_solids(1, size=9, orientation="fixed", noise=0.0)
    cube, _ = load_solids(1, size=9, orientation="cube", noise=0.0)
    assert fixed.shape == cube.shape == (1, 1, 9, 9, 9)
    with pytest.raises(ArgumentError, match="orientation"):
        load_solids(1, orientation="upright")


def test_the_study_of_solids_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, int, int]] = []

    def train(name: str, count: int, seed: int) -> dict[str, object]:
        if len(trained) == 4:
            raise KeyboardInterrupt
        trained.append((name, count, seed))
        return dict(zip(solids.COLUMNS, (name, count, seed, 10, seed / 10, 0.5), strict=True))

    monkeypatch.setattr(solids, "train", train)
    with pytest.raises(KeyboardInterrupt):
        solids.measure(tmp_path / "runs.csv", (50, 200), (1, 2))
    first = trained.copy()
    trained.clear()
    with pytest.raises(KeyboardInterrupt):
        solids.measure(tmp_path / "runs.csv", (50, 200), (1, 2))
    assert not set(first) & set(trained)
    trained.clear()
    rows = solids.measure(tmp_path / "runs.csv", (50,), (1, 2))
    assert "| plain | 15.0 ± 5.0 |" in solids.table(rows)


def test_a_run_of_the_study_of_solids(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SIZE", 4), ("TEST", 10), ("BATCH", 2), ("STEPS", 3), ("WIDTHS", (1, 1, 1))):
        monkeypatch.setattr(solids, name, value)
    for name in solids.NETWORKS:
        row = solids.train(name, 3, 1)
        assert tuple(row) == solids.COLUMNS
        assert 0 <= float(str(row["test error"])) <= 1


def test_orientations_of_solids() -> None:
    """A rotation of the solid is a rotation of its volume, up to the position of its centre."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(5.0) - 2] * 3, indexing="ij"), -1).numpy()
    for matrix, element in zip(as_group("O").arrays, range(24), strict=True):
        rotated = SOLIDS["angle"](grid / 2.5 @ matrix)  # f(R⁻¹q)
        wanted = functional.transform(torch.from_numpy(SOLIDS["angle"](grid / 2.5)), "O", element, group_axis=False)
        np.testing.assert_allclose(rotated, wanted.numpy())
