"""The U-Net: masks that move with the image, and learn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepgroupy.errors import ArgumentError
from sepgroupy.functional import transform
from sepgroupy.models import UNet, build_model, model_names, published_model_names
from sepgroupy.nn import GroupConv2d, GroupConvolution, GroupConvTranspose2d
from sepgroupy.testing import assert_equivariant, equivariance_error


def narrow(kind: str = "gc", group: str = "p4m", **options: Any) -> UNet:
    """Build a small network with statistics and affines that differ by channel, in float64, for evaluation."""
    net = UNet(kind, 2, group, **({"in_channels": 1, "classes": 3, "depth": 2} | options)).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return net


@pytest.mark.parametrize("group", ["p4", "p4m", "pm", "p2mm"])
@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
@pytest.mark.parametrize("size", [4, 20])
def test_masks_are_equivariant_in_training_and_inference(kind: str, group: str, size: int) -> None:
    net, x = narrow(kind, group), torch.randn(2, 1, size, size, dtype=torch.float64)
    assert net(x).shape == (2, 3, size, size)
    assert_equivariant(net, group, x)
    assert_equivariant(net.train(), group, x)  # with the statistics of the batch


def test_images_need_not_be_square() -> None:
    net, x = narrow(), torch.randn(2, 1, 12, 8, dtype=torch.float64)
    assert net(x).shape == (2, 3, 12, 8)
    assert_equivariant(net, "p4m", x)


def test_the_default_is_equivariant_too() -> None:
    net = build_model("p4m-unet", width=4).double().eval()
    assert_equivariant(net, "p4m", torch.randn(1, 3, 16, 16, dtype=torch.float64))


def test_the_plain_network_is_not() -> None:
    assert equivariance_error(narrow("plain"), "p4m", torch.randn(1, 1, 8, 8, dtype=torch.float64)).max() > 1e-3


def test_skips_reach_the_mask_past_the_coarser_levels() -> None:
    net, x = narrow(), torch.randn(2, 1, 8, 8, dtype=torch.float64)
    for parameter in net.grow.parameters():
        nn.init.zeros_(parameter)
    first, second = net(x)
    assert not torch.allclose(first, second)


def test_levels_halve_the_image_and_double_the_width() -> None:
    net = narrow(depth=3)
    shapes: list[tuple[int, ...]] = []
    for level in (*net.down, *net.up):
        level.register_forward_hook(lambda module, args, y: shapes.append(tuple(y.shape[1:])))
    net(torch.zeros(1, 1, 16, 16, dtype=torch.float64))
    down = [(2, 8, 16, 16), (4, 8, 8, 8), (8, 8, 4, 4), (16, 8, 2, 2)]
    assert shapes == [*down, *down[-2::-1]]


def test_layers_are_of_the_kind_and_group() -> None:
    net = build_model("p4m-unet", width=2, kind="g", group="p4")
    layers = [m for m in net.modules() if isinstance(m, GroupConv2d | GroupConvTranspose2d)]
    assert len(layers) == 2 * 7 - 1 + 3  # all but the first, which lifts, and the three that grow
    assert {(m.kind, m.group.name) for m in layers} == {("g", "p4")}


@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
@pytest.mark.parametrize("dimension", [2, 3])
def test_the_published_initialization_reaches_every_group_layer(kind: str, dimension: int) -> None:
    net = UNet(kind, 16, depth=1, init="published", dimension=dimension)
    layers = [module for module in net.modules() if isinstance(module, GroupConvolution)]
    assert [layer.spec.transposed for layer in layers].count(True) == 1
    assert [layer.kind for layer in layers].count("lifting") == 1
    assert len(layers) == 2 * 3 + 1  # three levels, and the transposed one
    for layer in layers:
        # With stride 2 one of 2 kernel elements of each axis reaches an output pixel of the transposed layer.
        elements = 1 if layer.spec.transposed else 3**dimension
        bound = 1 / math.sqrt(layer.in_channels * elements)
        assert (layer.bias is not None) == layer.spec.transposed
        for name, parameter in layer.named_parameters():
            assert 0.5 * bound < parameter.abs().max() <= bound, (layer, name)


@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
def test_by_default_the_initialization_is_variance_and_biases_are_zero(kind: str) -> None:
    def drawn(**options: str) -> UNet:
        torch.manual_seed(7)
        return UNet(kind, 4, depth=1, **options)  # type: ignore[arg-type]

    default, variance, published = drawn(), drawn(init="variance"), drawn(init="published")
    assert all(map(torch.equal, default.parameters(), variance.parameters()))
    assert not default.grow[0].bias.any()  # type: ignore[union-attr]
    first, other = default.down[0].conv1.weight, published.down[0].conv1.weight
    torch.testing.assert_close(first, math.sqrt(6) * other)  # √(3·2/(I·K)) and 1/√(I·K)
    assert torch.equal(default.classify.weight, published.classify.weight)


def bars(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw noisy images with one bright bar each, and its pixels as the mask."""
    masks = torch.zeros(count, 16, 16, dtype=torch.int64)
    for mask in masks:
        row, column, turn = (int(torch.randint(0, high, (), generator=generator)) for high in (11, 13, 4))
        mask[row : row + 5, column : column + 3] = 1
        mask.copy_(torch.rot90(mask, turn))
    images = masks[:, None] + 0.3 * torch.randn(count, 1, 16, 16, generator=generator)
    return images, masks


def test_it_learns_to_segment() -> None:
    generator = torch.Generator().manual_seed(0)
    net = build_model("p4m-unet", width=4, in_channels=1, depth=2, group="p4")
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(50):
        images, masks = bars(8, generator)
        loss = F.cross_entropy(net(images), masks)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < losses[0]
    images, masks = bars(16, generator)
    predicted = net.eval()(images).argmax(1)
    assert (predicted & masks).sum() > 0.8 * (predicted | masks).sum()  # intersection over union
    rotated = net(transform(images, "p4", 1, group_axis=False)).argmax(1)
    assert (rotated == torch.rot90(predicted, 1, (-2, -1))).float().mean() > 0.999


@pytest.mark.parametrize("shape", [(1, 1, 18, 16), (1, 1, 16, 18), (1, 2, 16, 16), (1, 16, 16), (1, 1, 0, 16)], ids=str)
def test_other_sizes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"reads \(B, 1, Y, X\), Y and X divisible by 2\*\*depth \(=4\)"):
        narrow()(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "c"}, r"kind \(='c'\) must be one of plain, dense, g, gc"),
        ({"depth": 0}, r"depth \(=0\) must be a positive integer"),
        ({"width": 0}, r"width \(=0\)"),
        ({"classes": 0}, r"classes \(=0\)"),
        ({"init": "kaiming"}, r"init \(='kaiming'\) must be one of published, variance"),
        ({"group": "p6"}, r"group \(='p6'\) is unknown"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        build_model("p4m-unet", **options)


def test_it_is_no_published_network() -> None:
    assert "p4m-unet" in set(model_names()) - set(published_model_names())
    assert isinstance(build_model("P4M-UNet", width=1), UNet)
