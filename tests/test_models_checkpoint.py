"""Published checkpoints: what fits is rebuilt and computes the same, what does not is refused and never run."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from sepgroupy.errors import DataError
from sepgroupy.models import ResNet, RotMNISTNet, build_model, load_published, published_model_names


def scrambled(net):
    """Give every entry of a network's state values of its own, as training would."""
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            module.num_batches_tracked += 7
    return net.eval()


def assert_same(loaded, net):
    assert type(loaded) is type(net)
    assert not loaded.training
    assert loaded.group == net.group
    found, wanted = loaded.state_dict(), net.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    shape = (2, net.conv1.in_channels, *((28, 28) if isinstance(net, RotMNISTNet) else (16, 16)))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.pt"


@pytest.fixture
def state():
    """Return the state of a small network that loads as it is."""
    return dict(build_model("gc-p4cnn", width=3).state_dict())


@pytest.mark.parametrize("name", published_model_names())
def test_every_published_model_comes_back(name, file):
    net = scrambled(build_model(name))
    torch.save(net.state_dict(), file)
    assert_same(load_published(file), net)


@pytest.mark.parametrize(
    "net",
    [
        RotMNISTNet("plain", 3, in_channels=2, classes=4),
        RotMNISTNet("c", 3),
        RotMNISTNet("dense", 2, group="p4m"),
        RotMNISTNet("g", 2, group="p4m"),
        RotMNISTNet("gc", 2, group="p4m", classes=3),
        ResNet("plain", 8, (2, 3, 4), in_channels=1, classes=5),
        ResNet("dense", 14, (2, 3, 4), group="p4"),
        ResNet("g", 20, (2, 2, 2)),
        ResNet("gc", 8, (2, 3, 4), group="p4", classes=2),
    ],
)
@pytest.mark.parametrize(("prefix", "wrapper"), [("", None), ("module.", "state_dict"), ("", "model")])
def test_other_sizes_prefixes_and_wrappers(net, prefix, wrapper, file):
    scrambled(net)
    state = {prefix + key: value for key, value in net.state_dict().items()}
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, file)
    assert_same(load_published(file), net)


def test_the_file_format_of_old_torch(file):
    net = scrambled(build_model("gc-p4cnn", width=3))
    torch.save(net.state_dict(), file, _use_new_zipfile_serialization=False)
    assert_same(load_published(str(file)), net)


def test_what_is_loaded_can_be_trained(file, state):
    torch.save(state, file)
    net = load_published(file).train()
    net(torch.randn(2, 1, 28, 28))[:, 0].sum().backward()
    assert all(p.grad is not None for p in net.parameters())


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("write", [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))])
def test_code_in_a_file_does_not_run(write, file, state, tmp_path):
    marker = tmp_path / "ran"
    write(state | {"fc.bias": Trap(marker)}, file)
    with pytest.raises(DataError, match=r"model\.pt is broken, or holds more than tensors"):
        load_published(file)
    assert not marker.exists()
    torch.load(file, weights_only=False) if write is torch.save else pickle.loads(file.read_bytes())
    assert marker.exists(), "the trap itself must work"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(share, file, state):
    torch.save(state, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r"model\.pt is broken"):
        load_published(file)


@pytest.mark.parametrize("content", [b"no checkpoint", b"PK\x03\x04", pickle.dumps({"a": 1}), b"\x80\x02."])
def test_other_files_are_refused(content, file):
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"model\.pt is broken"):
        load_published(file)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.pt cannot be read: No such file"):
        load_published(tmp_path / "none.pt")
    with pytest.raises(DataError, match="cannot be read"):
        load_published(tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3), "holds no state dict but a Tensor"),
        ([1, 2], "holds no state dict but a list"),
        ({}, r"it has no conv1\.weight; its 0 keys"),
        ({"epoch": 3}, "'epoch' is a int, not a dense tensor"),
        ({3: torch.zeros(2)}, "3 is a Tensor"),
        ({"state_dict": {"weight": torch.zeros(2)}}, r"it has no conv1\.weight; its 1 keys begin with weight"),
    ],
)
def test_what_is_no_state_dict_is_refused(value, message, file):
    torch.save(value, file)
    with pytest.raises(DataError, match=rf"model\.pt .*{message}"):
        load_published(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"bn3.running_var": None},
            r"RotMNISTNet\(.*kind='gc', group='p4', width=3\), but bn3\.running_var is missing",
        ),
        ({"fc.weight": None}, r"it has no fc\.weight"),
        ({"conv2.pointwise_weight": None}, r"it has no conv2\.pointwise_weight"),
        ({"extra": torch.zeros(1)}, "extra is unknown"),
        ({"bn8.weight": torch.zeros(3)}, r"bn8\.weight is unknown"),
        (
            {"conv4.depthwise_weight": torch.zeros(3, 1, 1, 5, 5)},
            r"conv4\.depthwise_weight has shape \(3, 1, 1, 5, 5\)",
        ),
        ({"fc.weight": torch.zeros(10, 4)}, r"fc\.weight has shape \(10, 4\) in torch.float32, not shape \(10, 3\)"),
        ({"fc.weight": torch.zeros(10, 3, 1)}, r"fc\.weight has shape \(10, 3, 1\); it must have 2 axes"),
        ({"conv1.weight": torch.zeros(0, 1, 1, 3, 3)}, r"conv1\.weight has shape \(0, 1, 1, 3, 3\)"),
        ({"conv1.weight": torch.zeros(3, 1, 3, 3)}, r"conv1\.weight has shape \(3, 1, 3, 3\)"),
        ({"conv1.weight": torch.zeros(3, 1, 1, 3, 3, dtype=torch.int64)}, r"in torch\.int64, not"),
        ({"conv2.pointwise_weight": torch.zeros(3, 3, 6, 1, 1)}, r"on a group of order 6, not 4 \(p4\) or 8"),
        ({"conv2.pointwise_weight": torch.zeros(3, 3, 8, 1, 1)}, "has shape"),
        ({"conv1.weight": torch.zeros(1).expand(10**6, 1, 1, 3, 3)}, "not a dense tensor held whole"),
        ({"conv1.weight": torch.zeros(10**5, 1, 1, 3, 3, dtype=torch.float16)}, "bn1.weight has shape"),
    ],
)
def test_what_does_not_fit_is_named(change, message, file, state):
    torch.save({k: v for k, v in (state | change).items() if v is not None}, file)
    with pytest.raises(DataError, match=rf"model\.pt .*{message}"):
        load_published(file)


def test_a_block_that_is_missing_is_named(file):
    state = ResNet("gc", 14, (2, 3, 4)).state_dict()
    torch.save({k: v for k, v in state.items() if not k.startswith("layer2.1.")}, file)
    with pytest.raises(DataError, match=r"depth=14\), but layer2\.1\.bn1\.weight is missing.* and so on, 14 in all"):
        load_published(file)
    torch.save(state | {"layer1.99999999999.bn1.weight": torch.zeros(2)}, file)
    with pytest.raises(DataError, match=r"depth=20\), but layer1\.2\.bn1\.weight is missing"):
        load_published(file)
