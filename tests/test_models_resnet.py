"""The ResNets for CIFAR-10: published counts, names and function; the equivariant variants; what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sepgroupy.errors import ArgumentError
from sepgroupy.groups import as_group
from sepgroupy.models import ResNet, build_model
from sepgroupy.nn import GroupConv2d, LiftingConv2d
from sepgroupy.testing import assert_equivariant, equivariance_error

PARAMETERS = {
    "resnet44": 2_636_458,
    "p4m-resnet44": 2_621_829,
    "g-p4m-resnet44": 1_782_381,
    "gc-p4m-resnet44": 1_884_270,
}
FILTERS = {
    "resnet44": ("weight",),
    "p4m-resnet44": ("weight",),
    "g-p4m-resnet44": ("depthwise_weight", "pointwise_weight"),
    "gc-p4m-resnet44": ("depthwise_weight", "pointwise_weight"),
}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
ON_A_GROUP = [(kind, group) for kind in ("dense", "g", "gc") for group in ("p4", "p4m", "pm")]


def narrow(kind, group="p4m", depth=8, widths=(3, 4, 5), **options):
    """Build a small network with statistics and affines that differ by channel, in float64, for evaluation."""
    torch.manual_seed(0)
    net = ResNet(kind, depth, widths, group, **options).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net


def images(size, count=2, channels=3):
    return torch.randn(count, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def published_forward(net, x):
    """Compute what the published network is, step by step, its maps in the published layout (B, C, |H|, Y, X)."""

    def norm(m, x):
        return F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias)

    x = net.conv1(x)
    for block in (*net.layer1, *net.layer2, *net.layer3):
        y = block.conv1(F.relu(norm(block.bn1, x)))
        y = block.conv2(F.relu(norm(block.bn2, y)))
        x = y + (x if block.downsample is None else norm(block.downsample[1], block.downsample[0](x)))
    x = F.relu(norm(net.bn1, x)).mean((-2, -1))  # (B, C) or (B, C, |H|)
    return x.flatten(1) @ net.fc.weight.T + net.fc.bias


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_exact(name):
    assert sum(p.numel() for p in build_model(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_checkpoints_have_the_published_names(name):
    wanted = {"conv1.weight", "fc.weight", "fc.bias"} | {f"bn1.{entry}" for entry in NORM}
    for stage in (1, 2, 3):
        for index in range(7):
            block = f"layer{stage}.{index}"
            wanted |= {f"{block}.{bn}.{entry}" for bn in ("bn1", "bn2") for entry in NORM}
            wanted |= {f"{block}.{conv}.{entry}" for conv in ("conv1", "conv2") for entry in FILTERS[name]}
        if stage > 1:
            wanted |= {f"layer{stage}.0.downsample.0.weight"}
            wanted |= {f"layer{stage}.0.downsample.1.{entry}" for entry in NORM}
    assert build_model(name).state_dict().keys() == wanted


def test_the_residual_projection_is_dense_and_the_head_reads_channels_times_group():
    state = build_model("gc-p4m-resnet44").state_dict()
    assert state["conv1.weight"].shape == (28, 3, 1, 3, 3)
    assert state["layer1.0.conv1.depthwise_weight"].shape == (28, 1, 1, 3, 3)
    assert state["layer2.0.conv1.pointwise_weight"].shape == (56, 28, 8, 1, 1)
    assert state["layer2.0.downsample.0.weight"].shape == (56, 28, 8, 1, 1)
    assert state["layer3.0.downsample.0.weight"].shape == (112, 56, 8, 1, 1)
    assert state["fc.weight"].shape == (10, 112 * 8)


@pytest.mark.parametrize("depth", [8, 20, 44])
def test_depth_counts_3x3_convolutions_and_the_linear_layer(depth):
    net = ResNet("gc", depth, (1, 1, 1))
    convolutions = [m for m in net.modules() if isinstance(m, (LiftingConv2d, GroupConv2d))]
    assert sum(m.kernel_size == (3, 3) for m in convolutions) + 1 == depth


@pytest.mark.parametrize(("kind", "group"), [("plain", "p4m"), *ON_A_GROUP])
def test_the_network_is_the_published_function(kind, group):
    net = narrow(kind, group, depth=14)
    x = images(12)
    torch.testing.assert_close(net(x), published_forward(net, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("kind", "group"), ON_A_GROUP)
def test_equivariant_downsampling_is_invariant_at_32_pixels(kind, group):
    net = narrow(kind, group, head="invariant", downsampling="equivariant")
    assert_equivariant(net, group, images(32))


def test_the_whole_resnet44_is_invariant_at_32_pixels():
    net = narrow("gc", depth=44, widths=(2, 3, 4), head="invariant", downsampling="equivariant")
    assert_equivariant(net, "p4m", images(32, count=1))


@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
def test_strided_downsampling_is_invariant_at_odd_sizes_only(kind):
    net = narrow(kind, head="invariant")
    assert_equivariant(net, "p4m", images(29))
    assert_equivariant(net, "p4m", images(33))
    assert equivariance_error(net, "p4m", images(32)).max() > 1e-3


def test_the_oriented_head_and_the_plain_network_are_not_invariant():
    assert equivariance_error(narrow("gc", downsampling="equivariant"), "p4m", images(32)).max() > 1e-3
    assert equivariance_error(narrow("plain", downsampling="equivariant"), "p4m", images(32)).max() > 1e-3


def test_the_oriented_head_sees_the_orientation_as_a_permutation():
    """Before the head a rotated image moves the group's axis and nothing else."""
    net = narrow("gc", downsampling="equivariant")
    features: list[torch.Tensor] = []
    net.fc.register_forward_pre_hook(lambda module, args: features.append(args[0].unflatten(1, (5, 8))))
    x = images(32)
    net(x)
    net(torch.rot90(x, 1, (-2, -1)))
    source = as_group("p4m").left_quotients[1]  # (t·f)[g] = f[t⁻¹g]
    torch.testing.assert_close(features[1], features[0][:, :, source.tolist()], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("downsampling", ["strided", "equivariant"])
def test_stages_halve_the_image(downsampling):
    net = narrow("gc", downsampling=downsampling)
    sizes = []
    for stage in (net.layer1, net.layer2, net.layer3):
        stage.register_forward_hook(lambda module, args, output: sizes.append(tuple(output.shape[-2:])))
    assert net(images(32)).shape == (2, 10)
    assert sizes == [(32, 32), (16, 16), (8, 8)]


@pytest.mark.parametrize(("kind", "order"), [("plain", 1), ("dense", 2), ("gc", 2)])
def test_widths_classes_and_channels_are_arguments(kind, order):
    net = narrow(kind, "pm", widths=(2, 3, 6), in_channels=1, classes=7)
    assert net.fc.weight.shape == (7, 6 * order)
    assert net(images(16, channels=1)).shape == (2, 7)
    assert narrow(kind, "pm", widths=(2, 3, 6), head="invariant").fc.weight.shape == (10, 6)


def test_gradients_reach_every_parameter():
    net = narrow("gc", head="invariant", downsampling="equivariant").train()
    net(images(32)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "c"}, r"kind \(='c'\) must be one of plain, dense, g, gc"),
        ({"kind": "gc", "depth": 45}, r"depth \(=45\) must be 6n \+ 2"),
        ({"kind": "gc", "depth": 2}, r"depth \(=2\)"),
        ({"kind": "gc", "depth": "44"}, r"depth \(='44'\)"),
        ({"kind": "gc", "widths": (8, 16)}, r"widths \(=\(8, 16\)\) must be three"),
        ({"kind": "gc", "widths": (8, 0, 16)}, r"=0\) must be a positive integer"),
        ({"kind": "gc", "group": "p6"}, r"group \(='p6'\) is unknown"),
        ({"kind": "gc", "head": "mean"}, r"head \(='mean'\) must be one of oriented, invariant"),
        ({"kind": "gc", "downsampling": "blur"}, r"downsampling \(='blur'\) must be one of strided, equivariant"),
        ({"kind": "gc", "backend": "fast"}, r"backend \(='fast'\) must be one of"),
    ],
)
def test_an_option_out_of_range_is_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        ResNet(**options)


def test_build_model_passes_options_and_refuses_others():
    net = build_model("GC-P4M-ResNet44", group="p4", depth=8, widths=(2, 3, 4), head="invariant")
    assert net.order == 4
    assert net.fc.weight.shape == (10, 4)
    with pytest.raises(ArgumentError, match="option width is unknown to resnet44"):
        build_model("resnet44", width=16)
    with pytest.raises(ArgumentError, match=r"model \(='resnet50'\) is unknown"):
        build_model("resnet50")
    with pytest.raises(ArgumentError, match=r"group \(='p4m'\) has no meaning in resnet44, of kind 'plain'"):
        build_model("resnet44", group="p4m")
    assert build_model("z2cnn", kind="gc", group="p4", width=3).order == 4
