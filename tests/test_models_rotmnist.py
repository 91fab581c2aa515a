"""The seven networks for rotated MNIST: sizes, names, checkpoints and invariance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import oracle
from sepgroupy import build_model, model_names
from sepgroupy.errors import ArgumentError
from sepgroupy.groups import C4, D4, PointGroup
from sepgroupy.nn import GroupConv2d, LiftingConv2d

MODELS: dict[str, tuple[str, int, int]] = {  # kind, width, parameters
    "z2cnn": ("plain", 20, 25_210),
    "c-z2cnn": ("c", 57, 25_603),
    "p4cnn": ("dense", 10, 24_810),
    "g-p4cnn-small": ("g", 10, 8_910),
    "g-p4cnn": ("g", 17, 25_255),
    "gc-p4cnn-small": ("gc", 10, 3_420),
    "gc-p4cnn": ("gc", 30, 24_640),
}
ON_P4 = [name for name in MODELS if "p4" in name]
KERNELS = (3, 3, 3, 3, 3, 3, 4)


def published_shapes(kind: str, w: int, order: int = 4) -> dict[str, tuple[int, ...]]:
    """Give the keys and shapes of a published checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index, k in enumerate(KERNELS, start=1):
        conv = f"conv{index}"
        hidden: dict[str, dict[str, tuple[int, ...]]] = {
            "plain": {"weight": (w, w, k, k), "bias": (w,)},
            "c": {"0.weight": (w, w, 1, 1), "0.bias": (w,), "1.weight": (w, 1, k, k), "1.bias": (w,)},
            "dense": {"weight": (w, w, order, k, k), "bias": (w,)},
            "g": {"depthwise_weight": (w, w, k, k), "pointwise_weight": (w, w, order, 1, 1), "bias": (w,)},
            "gc": {"depthwise_weight": (w, 1, 1, k, k), "pointwise_weight": (w, w, order, 1, 1), "bias": (w,)},
        }
        first = (w, 1, k, k) if kind in ("plain", "c") else (w, 1, 1, k, k)
        layer = {"weight": first, "bias": (w,)} if index == 1 else hidden[kind]
        shapes |= {f"{conv}.{name}": shape for name, shape in layer.items()}
        shapes |= {f"bn{index}.{name}": (w,) for name in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"bn{index}.num_batches_tracked"] = ()
    return shapes | {"fc.weight": (10, w), "fc.bias": (10,)}


def lively(net: nn.Module) -> nn.Module:
    """Give a network in float64 affine maps and statistics of batch norm other than those it starts with."""
    norms = [module for module in net.double().modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        norm.momentum = 1.0  # running statistics of the last batch, so that the signal keeps its scale
    with torch.no_grad():
        net.train()(torch.randn(4, 1, 28, 28, dtype=torch.float64))
    return net.eval()


def test_the_seven_are_known_in_the_order_of_the_paper() -> None:
    assert model_names()[:7] == tuple(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_as_many_as_published(name: str) -> None:
    assert sum(p.numel() for p in build_model(name).parameters()) == MODELS[name][2]
    assert sum(p.numel() for p in build_model(name.upper()).parameters()) == MODELS[name][2]


@pytest.mark.parametrize("name", MODELS)
def test_a_published_checkpoint_loads(name: str) -> None:
    kind, width, _ = MODELS[name]
    shapes = published_shapes(kind, width)
    state = {key: torch.tensor(7) if key.endswith("tracked") else torch.rand(shape) for key, shape in shapes.items()}
    net = build_model(name)
    net.load_state_dict(state, strict=True)
    for mode in (True, False):
        stored = net.train(mode).state_dict()
        assert {key: tuple(value.shape) for key, value in stored.items()} == shapes
        assert all(torch.equal(stored[key], state[key]) for key in state)


def reference(net: Any, x: torch.Tensor, group: PointGroup) -> torch.Tensor:
    """Compute the network in evaluation as SPEC-like prose says it: layers by the oracle, the rest by torch."""
    state = net.state_dict()
    for index in range(1, 8):
        prefix = f"conv{index}."
        layer = {key.removeprefix(prefix): v.numpy() for key, v in state.items() if key.startswith(prefix)}
        x = torch.from_numpy(oracle.layer(x.numpy(), layer, group))
        bn = {key.removeprefix(f"bn{index}."): v for key, v in state.items() if key.startswith(f"bn{index}.")}
        x = torch.nn.functional.batch_norm(x, bn["running_mean"], bn["running_var"], bn["weight"], bn["bias"]).relu()
        if index == 2:
            x = torch.nn.functional.max_pool3d(x, (1, 2, 2))
    return (x.amax(2).flatten(1) @ state["fc.weight"].T + state["fc.bias"]).log_softmax(1)


@pytest.mark.parametrize("name", ON_P4)
def test_the_output_is_that_of_the_definition(name: str) -> None:
    net = lively(build_model(name, width=3))
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net(x), reference(net, x, C4), atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["plain", "c"])
def test_the_output_of_the_plain_networks(kind: str) -> None:
    net: Any = lively(build_model("z2cnn", kind=kind, width=3))
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    y = x
    for index in range(1, 8):
        y = net.get_submodule(f"bn{index}")(net.get_submodule(f"conv{index}")(y)).relu()
        if index == 2:
            y = nn.MaxPool2d(2)(y)
    torch.testing.assert_close(net(x), net.fc(y.flatten(1)).log_softmax(1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_invariance_is_exact_on_the_group_and_absent_without(name: str) -> None:
    net = lively(build_model(name))
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    with torch.no_grad():
        y = net(x)
        for r in range(1, 4):
            change = (net(torch.rot90(x, r, (-2, -1))) - y).abs().max()
            assert change < 1e-10 if name in ON_P4 else change > 0.01
        assert (net(x.flip(-2)) - y).abs().max() > 0.01  # the control: p4 knows no mirrors


@pytest.mark.parametrize("name", ON_P4)
def test_invariance_while_training_too(name: str) -> None:
    net = build_model(name, width=4).double().train()
    x = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net(torch.rot90(x, 1, (-2, -1))), net(x), atol=1e-10, rtol=0)


def test_any_other_group_and_width() -> None:
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    for group in ("p4m", "pm", [[[0, 1], [1, 0]]]):
        net: Any = lively(build_model("gc-p4cnn", group=group, width=5))
        assert net.conv7.out_channels == 5
        with torch.no_grad():
            y = net(x)
            for matrix in net.group.arrays:
                moved = torch.from_numpy(oracle.move(x.numpy(), matrix))
                torch.testing.assert_close(net(moved), y, atol=1e-10, rtol=0)
    assert build_model("gc-p4cnn", group="p4m").group == D4


def test_other_channels_and_classes() -> None:
    assert build_model("g-p4cnn", in_channels=3, classes=7)(torch.randn(2, 3, 28, 28)).shape == (2, 7)


@pytest.mark.parametrize("name", MODELS)
def test_the_output_is_log_probabilities(name: str) -> None:
    y = build_model(name)(torch.randn(2, 1, 28, 28))
    assert y.shape == (2, 10)
    torch.testing.assert_close(y.exp().sum(1), torch.ones(2))


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns(name: str) -> None:
    net = build_model(name)
    net(torch.randn(4, 1, 28, 28))[:, 3].sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    # A bias ahead of a batch norm has no effect, but all else has.
    silent = [n for n, p in net.named_parameters() if p.grad is not None and p.grad.abs().max() < 1e-12]
    assert all(n.startswith("conv") and n.endswith("bias") for n in silent)


def test_the_attributes_and_kinds() -> None:
    net: Any = build_model("gc-p4cnn")
    assert isinstance(net.conv1, LiftingConv2d)
    assert all(isinstance(net.get_submodule(f"conv{i}"), GroupConv2d) for i in range(2, 8))
    assert isinstance(net.fc, nn.Linear)


@pytest.mark.parametrize("backend", ["two_step", "expanded", "reference"])
def test_backends_agree(backend: str) -> None:
    auto, forced = (lively(build_model("gc-p4cnn", backend=b, width=4)) for b in ("auto", backend))
    forced.load_state_dict(auto.state_dict())
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(forced(x), auto(x), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("message", "name", "options"),
    [
        ("'p5cnn'.*gc-p4cnn", "p5cnn", {}),
        ("''", "", {}),
        ("3", 3, {}),
        ("colour.*width", "gc-p4cnn", {"colour": 1}),
        (r"kind \(='dense2'\)", "p4cnn", {"kind": "dense2"}),
        (r"width \(=0\)", "p4cnn", {"width": 0}),
        (r"width \(=0\)", "z2cnn", {"width": 0}),
        (r"width \(=2.5\)", "z2cnn", {"width": 2.5}),
        (r"classes \(=0\)", "p4cnn", {"classes": 0}),
        (r"in_channels \(=-1\)", "p4cnn", {"in_channels": -1}),
        (r"group \(='p5'\)", "p4cnn", {"group": "p5"}),
        ("2 axes", "p4cnn", {"group": [[[1]]]}),
        (r"backend \(='fast'\)", "gc-p4cnn", {"backend": "fast"}),
        (r"backend \(='dense'\)", "z2cnn", {"backend": "dense"}),
    ],
    ids=str,
)
def test_what_no_network_has_is_refused(message: str, name: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=message):
        build_model(name, **options)


@pytest.mark.parametrize("name", ["z2cnn", "c-z2cnn", "gc-p4cnn"])
@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 1, 20, 20), (2, 3, 28, 28), (1, 28, 28), (2, 1, 4, 28, 28)])
def test_an_image_of_another_shape_is_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"x has shape \(.*28"):
        build_model(name)(torch.zeros(shape))
