"""All eleven published networks are, at equal seed, bitwise those of the published code.

The draws are made here from the stated formulas and order, not by the library and not from stored digests: torch's
random numbers differ between processors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sepgroupy import build_model
from sepgroupy.errors import ArgumentError
from sepgroupy.gconv import g_splitgconv2d, gc_splitgconv2d, splitgconv2d
from sepgroupy.models import published_model_names
from sepgroupy.nn import GroupConv2d, GroupConvTranspose2d, LiftingConv2d

Draws = Iterator[tuple[str, Tensor]]

ROTMNIST = {  # name: (kind, width)
    "z2cnn": ("plain", 20),
    "c-z2cnn": ("c", 57),
    "p4cnn": ("dense", 10),
    "g-p4cnn-small": ("g", 10),
    "g-p4cnn": ("g", 17),
    "gc-p4cnn-small": ("gc", 10),
    "gc-p4cnn": ("gc", 30),
}
RESNETS = {
    "resnet44": ("plain", (32, 64, 128)),
    "p4m-resnet44": ("dense", (11, 23, 45)),
    "g-p4m-resnet44": ("g", (19, 38, 76)),
    "gc-p4m-resnet44": ("gc", (28, 56, 112)),
}
BIASED = True


def uniform(shape: tuple[int, ...], fan_in: int) -> Tensor:
    bound = 1 / math.sqrt(fan_in)
    return torch.empty(shape).uniform_(-bound, bound)


def torch_default(name: str, out_channels: int, in_channels: int, kernel: int, bias: bool) -> Draws:
    """PyTorch's own rule for Conv2d: Kaiming with a = √5 is uniform within ±1/√fan_in; so is the bias."""
    fan_in = in_channels * kernel * kernel
    bound = math.sqrt(3.0) * (math.sqrt(2.0 / (1 + math.sqrt(5) ** 2)) / math.sqrt(fan_in))
    yield f"{name}.weight", torch.empty(out_channels, in_channels, kernel, kernel).uniform_(-bound, bound)
    if bias:
        yield f"{name}.bias", uniform((out_channels,), fan_in)


def group_layer(name: str, kind: str, out_c: int, in_c: int, order: int, kernel: int, bias: bool) -> Draws:
    fan_in = in_c * kernel * kernel
    if kind in ("lifting", "dense"):
        yield f"{name}.weight", uniform((out_c, in_c, 1 if kind == "lifting" else order, kernel, kernel), fan_in)
    else:
        depthwise = (out_c, in_c, kernel, kernel) if kind == "g" else (out_c, 1, 1, kernel, kernel)
        yield f"{name}.depthwise_weight", uniform(depthwise, fan_in)
        yield f"{name}.pointwise_weight", uniform((out_c, in_c, order, 1, 1), fan_in)
    if bias:
        yield f"{name}.bias", uniform((out_c,), fan_in)


def linear(out_features: int, in_features: int) -> Draws:
    bound = math.sqrt(3.0) * (math.sqrt(2.0 / (1 + math.sqrt(5) ** 2)) / math.sqrt(in_features))
    yield "fc.weight", torch.empty(out_features, in_features).uniform_(-bound, bound)
    yield "fc.bias", uniform((out_features,), in_features)


def rotmnist(kind: str, width: int) -> Draws:
    for index, kernel in enumerate((3, 3, 3, 3, 3, 3, 4), start=1):
        name, in_c = f"conv{index}", 1 if index == 1 else width
        if kind == "plain" or (kind == "c" and index == 1):
            yield from torch_default(name, width, in_c, kernel, BIASED)
        elif kind == "c":
            yield from torch_default(f"{name}.0", width, in_c, 1, BIASED)
            yield from torch_default(f"{name}.1", width, 1, kernel, BIASED)
        else:
            yield from group_layer(name, "lifting" if index == 1 else kind, width, in_c, 4, kernel, BIASED)
    yield from linear(10, width)


def resnet(kind: str, widths: tuple[int, int, int]) -> Draws:
    order = 1 if kind == "plain" else 8

    def convolution(name: str, layer_kind: str, out_c: int, in_c: int, kernel: int) -> Draws:
        if kind == "plain":
            return torch_default(name, out_c, in_c, kernel, not BIASED)
        return group_layer(name, layer_kind, out_c, in_c, order, kernel, not BIASED)

    draws = dict(convolution("conv1", "lifting", widths[0], 3, 3))
    in_c = widths[0]
    for stage, out_c in enumerate(widths, start=1):
        for block in range(7):
            name = f"layer{stage}.{block}"
            if block == 0 and stage > 1:  # the strided 1×1 residual convolution is drawn before the other two
                draws |= dict(convolution(f"{name}.downsample.0", "dense", out_c, in_c, 1))
            draws |= dict(convolution(f"{name}.conv1", kind, out_c, in_c, 3))
            draws |= dict(convolution(f"{name}.conv2", kind, out_c, out_c, 3))
            in_c = out_c
    draws |= dict(linear(10, in_c * order))
    if kind == "plain":  # every convolution is drawn a second time, in the order in which the modules are registered
        names = ["conv1"]
        for stage in (1, 2, 3):
            for block in range(7):
                names += [f"layer{stage}.{block}.{part}" for part in ("conv1", "conv2", "downsample.0")]
        for name in names:
            if (key := f"{name}.weight") in draws:
                out_channels, _, rows, columns = draws[key].shape
                draws[key] = torch.empty(draws[key].shape).normal_(0, math.sqrt(2 / (out_channels * rows * columns)))
    yield from draws.items()


def test_the_two_tables_here_hold_every_published_network() -> None:
    assert set(ROTMNIST) | set(RESNETS) == set(published_model_names())


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", [*ROTMNIST, *RESNETS])
def test_a_published_network_is_bitwise_the_published_one(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    expected = dict(rotmnist(*ROTMNIST[name]) if name in ROTMNIST else resnet(*RESNETS[name]))
    torch.manual_seed(seed)
    parameters = dict(build_model(name).named_parameters())
    norms = {key for key in parameters if "bn" in key or "downsample.1" in key}
    assert parameters.keys() - norms == expected.keys()
    for key, value in expected.items():
        assert torch.equal(parameters[key], value), key
    for key in norms:
        assert (parameters[key] == (1 if key.endswith("weight") else 0)).all(), key


@pytest.mark.parametrize("module", [splitgconv2d, g_splitgconv2d, gc_splitgconv2d])
def test_the_published_classes_draw_as_published(module: object) -> None:
    kind = {splitgconv2d: "dense", g_splitgconv2d: "g", gc_splitgconv2d: "gc"}[module]  # type: ignore[index]
    for name in module.__all__:  # type: ignore[attr-defined]
        order = 8 if "P4M" in name else 4
        torch.manual_seed(3)
        layer = getattr(module, name)(5, 6, 3)
        torch.manual_seed(3)
        drawn = dict(group_layer("", "lifting" if name.endswith("Z2") else kind, 6, 5, order, 3, BIASED))
        for key, parameter in layer.named_parameters():
            assert torch.equal(parameter, drawn[f".{key}"]), (name, key)


@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
@pytest.mark.parametrize(("kernel", "groups"), [((3, 5), 1), (3, 2), ((1, 4), 4)])
def test_the_published_bound_counts_kernel_elements_and_the_channels_that_one_filter_reads(
    kind: str, kernel: int | tuple[int, int], groups: int
) -> None:
    layer = GroupConv2d(64, 64, kernel, groups=groups, group="p2mm", kind=kind, init="published")
    rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
    bound = 1 / math.sqrt(64 // groups * rows * columns)
    for name, parameter in layer.named_parameters():
        assert parameter.abs().max() <= bound, name
        assert parameter.abs().max() > 0.9 * bound, name


def test_a_transposed_layer_counts_the_kernel_elements_that_reach_one_pixel() -> None:
    layer = GroupConvTranspose2d(32, 16, 4, stride=2, group="p4", init="published")
    bound = 1 / math.sqrt(32 * 4 * 4 / 4)
    assert 0.9 * bound < layer.weight.abs().max() <= bound  # type: ignore[operator]
    assert layer.bias is not None
    assert layer.bias.abs().max() <= bound


def test_an_unknown_rule_is_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match=r"init .*'kaiming'.* published, variance"):
        LiftingConv2d(1, 2, 3, group="p4", init="kaiming")
    with pytest.raises(ArgumentError, match=r"init .*'kaiming'.* published, variance"):
        build_model("z2cnn", init="kaiming")
