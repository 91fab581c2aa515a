"""Networks for images by name: equivariance, cost, exact sizes, pretrained weights, and timm's registry."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18

from sepgroupy import assert_equivariant, build_model
from sepgroupy.errors import ArgumentError, DataError
from sepgroupy.image_models import build_image_model, register_timm


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "options", "size", "exact"),
    [
        ("p4m-resnet8-w4", {}, 24, 24),
        ("p4m-resnet8-w4", {"kind": "dense", "group": "p4", "match": "width"}, 30, 32),
        ("p4m-resnet8-w4", {"kind": "g", "group": "p2"}, 29, 28),
        ("p4m-resnet8-w4", {}, 3, 8),
        ("p4m-unet2-w4", {"task": "segmentation"}, 17, 16),
        ("p4m-unet1-w4", {"task": "segmentation", "kind": "dense"}, 2, 4),
    ],
)
def test_built_in_networks_are_equivariant_at_their_size(name: str, options: Any, size: int, exact: int) -> None:
    model = build_image_model(name, channels=2, outputs=3, size=size, **options)
    assert model.input_size == exact
    assert (model.reason == "") == (size == exact)
    images = torch.randn(2, 2, exact, exact).double()
    assert_equivariant(model.module.double().train(), options.get("group", "p4m"), images)


def test_cost_is_that_of_the_plain_network() -> None:
    options: dict[str, Any] = {"channels": 3, "outputs": 10, "size": 16}
    for name, task in (("p4m-resnet8-w16", "classification"), ("p4m-unet2-w8", "segmentation")):
        plain = build_image_model(name, task=task, kind="plain", **options).module
        for kind in ("dense", "g", "gc"):
            model = build_image_model(name, task=task, kind=kind, **options).module
            assert 0.8 < count(model) / count(plain) < 1.2  # of so narrow networks one channel is much
    wide = build_image_model("p4m-resnet8-w16", match="width", **options).module
    assert wide.conv1.out_channels == plain_width(build_image_model("p4m-resnet8-w16", kind="plain", **options).module)
    few = build_image_model("p4m-resnet8-w16", match="macs", **options).module
    assert count(few) < count(wide)


def plain_width(net: Any) -> int:
    return int(net.conv1.out_channels)


def test_depth_and_width_are_in_the_name() -> None:
    options: dict[str, Any] = {"channels": 1, "outputs": 2, "size": 32, "kind": "plain"}
    net: Any = build_image_model("p4m-resnet", **options).module
    assert (len(net.layer1), net.conv1.out_channels, net.fc.in_features) == (3, 16, 64)  # 6·3 + 2 layers
    net = build_image_model("p4m-resnet14-w12", **options).module
    assert (len(net.layer1), net.conv1.out_channels) == (2, 12)


def test_a_network_of_torchvision_is_moved_to_its_nearest_exact_size() -> None:
    name = "torchvision/mobilenet_v3_small"
    model = build_image_model(name, channels=1, outputs=3, size=72, group="p2", match="width")
    assert model.input_size == 65
    assert "symmetric at 65 and 97, and not at 72" in model.reason
    assert_equivariant(model.module.double().eval(), "p2", torch.randn(1, 1, *[model.input_size] * 2).double())


def test_a_segmentation_network_of_torchvision_transforms_masks_like_images() -> None:
    options: dict[str, Any] = {"channels": 1, "outputs": 3, "size": 32, "group": "p2", "match": "width"}
    model = build_image_model("torchvision/lraspp_mobilenet_v3_large", task="segmentation", **options)
    assert model.input_size == 33
    images = torch.randn(1, 1, 33, 33).double()
    assert model.module.double().eval()(images).shape == (1, 3, 33, 33)
    assert_equivariant(model.module, "p2", images)


def saved(file: Path, plain: nn.Module) -> Any:
    """Save the parameters of a network, which stands for one that was trained, and return it."""
    torch.save(plain.state_dict(), file)
    return plain.eval()


def test_pretrained_filters_are_lifted_where_the_kind_can_represent_them(tmp_path: Path) -> None:
    file = tmp_path / "mobilenet.pt"
    trained = saved(file, mobilenet_v3_small(num_classes=7))
    options: dict[str, Any] = {"size": 33, "group": "p2", "kind": "gc", "match": "width", "weights": file}
    model = build_image_model("torchvision/mobilenet_v3_small", channels=3, outputs=7, **options).module.eval()
    x = torch.randn(1, 3, 33, 33)
    both = [trained.avgpool(trained.features(y)).flatten(1) for y in (x, x.rot90(2, (-2, -1)))]
    expected = trained.classifier(torch.maximum(*both))  # the maximum over the group
    torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-3)


def features(net: Any, x: torch.Tensor) -> torch.Tensor:
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    return torch.flatten(net.avgpool(net.layer4(net.layer3(net.layer2(net.layer1(x))))), 1)


def test_pretrained_filters_with_other_channels_and_classes(tmp_path: Path) -> None:
    file = tmp_path / "resnet18.pt"
    trained = saved(file, resnet18(num_classes=7))
    options: dict[str, Any] = {"size": 33, "kind": "plain", "weights": file}
    gray: Any = build_image_model("torchvision/resnet18", channels=1, outputs=2, **options).module.eval()
    assert gray.fc.out_features == 2
    x = torch.randn(1, 1, 33, 33)
    torch.testing.assert_close(features(gray, x), features(trained, x.expand(1, 3, 33, 33)), atol=1e-5, rtol=1e-4)
    with pytest.raises(DataError, match=r"do not fit torchvision/resnet34: layer1\.2\.conv1\.weight is missing"):
        build_image_model("torchvision/resnet34", channels=3, outputs=7, **options)


def test_pretrained_weights_are_fetched_by_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = mobilenet_v3_small().eval()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: trained.state_dict())
    options: dict[str, Any] = {"channels": 3, "outputs": 5, "size": 32, "kind": "plain"}
    for weights in ("pretrained", "IMAGENET1K_V1"):
        model: Any = build_image_model("torchvision/mobilenet_v3_small", weights=weights, **options).module.eval()
        x = torch.randn(1, 3, 32, 32)
        torch.testing.assert_close(model.features(x), trained.features(x))
        assert model.classifier[-1].out_features == 5

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(DataError, match="cannot be fetched: no network"):
        build_image_model("torchvision/mobilenet_v3_small", weights="pretrained", **options)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        (
            "p4m-resnet",
            {"weights": "pretrained"},
            r"weights \(='pretrained'\) are for networks of timm and torchvision",
        ),
        ("torchvision/resnet18", {"weights": "x"}, "need match='width', not 'params'"),
        (
            "torchvision/resnet18",
            {"weights": "x", "match": "width"},
            "cannot be lifted to kind 'gc': layer1.0.conv1 of",
        ),
        ("torchvision/resnet18", {"weights": "x", "kind": "plain"}, "one of IMAGENET1K_V1"),
        ("torchvision/resnet7", {}, "is unknown: for classification torchvision has .*resnet"),
        ("timm/resnet7", {}, "is unknown to timm"),
        ("timm/resnet18", {"task": "segmentation"}, "makes no masks"),
        ("resnet18", {}, "is unknown: use p4m-resnet"),
        ("p4m-resnet9", {}, r"depth \(=9\)"),
        ("p4m-unet", {}, "is not for task classification: use p4m-resnet"),
        ("p4m-resnet", {"task": "segmentation"}, "use p4m-unet"),
        ("p4m-resnet", {"kind": "c"}, r"kind \(='c'\)"),
        ("p4m-resnet", {"match": "flops"}, r"match \(='flops'\)"),
        ("p4m-resnet", {"task": "detection"}, r"task \(='detection'\)"),
        ("p4m-resnet", {"outputs": 0}, r"outputs \(=0\)"),
        ("timm/test_vit", {"size": 160}, "reads 3 axes, which do not say where rows and columns are"),
    ],
)
def test_an_option_that_does_not_fit_the_network_is_refused(name: str, options: dict[str, Any], text: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ArgumentError, match=text):
        build_image_model(name, **({"channels": 3, "outputs": 2, "size": 32} | options))


def test_without_timm_the_error_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ArgumentError, match=r"needs timm: pip install 'sepgroupy\[timm\]'"):
        build_image_model("timm/resnet18", channels=3, outputs=2, size=33)
    monkeypatch.setitem(sys.modules, "timm.models", None)
    with pytest.raises(ArgumentError, match="timm is not installed"):
        register_timm()


def test_timm_by_name() -> None:
    pytest.importorskip("timm")
    model = build_image_model("timm/test_convnext", channels=1, outputs=3, size=60, group="p2", match="width")
    assert model.input_size % 32 == 0
    images = torch.randn(1, 1, model.input_size, model.input_size).double()
    assert_equivariant(model.module.double().eval(), "p2", images)


def test_built_in_networks_in_timm() -> None:
    timm = pytest.importorskip("timm")
    assert not timm.list_models("p4m_*")  # registered by a call alone
    names = register_timm()
    assert register_timm() == names
    assert set(timm.list_models("p4m_*")) == set(names)
    net = timm.create_model("p4m_resnet8", num_classes=5, in_chans=1, width=4, kind="dense").eval()
    x = torch.randn(2, 1, 16, 16)
    maps = net.forward_features(x)
    torch.testing.assert_close(net.forward_head(maps), net(x))
    torch.testing.assert_close(
        net.forward_features(x.rot90(1, (-2, -1))), maps.rot90(1, (-2, -1)), atol=1e-5, rtol=1e-4
    )
    same = build_model("p4m-resnet44", depth=8, widths=(4, 8, 16), in_channels=1, classes=5, head="invariant",
                       downsampling="equivariant").eval()  # fmt: skip
    same.load_state_dict(net.state_dict())
    torch.testing.assert_close(same(x), net(x))
    assert timm.data.resolve_data_config({}, model=net)["input_size"] == (3, 32, 32)
    net.reset_classifier(0)
    assert net(x).shape == (2, net.num_features)
    with pytest.raises(ArgumentError, match="no weights for p4m_resnet8"):
        timm.create_model("p4m_resnet8", pretrained=True)
    with pytest.raises(ArgumentError, match="option drop_rate is unknown"):
        timm.create_model("p4m_resnet8", drop_rate=0.1)
