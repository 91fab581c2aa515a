"""Trained parameters: each network has the test error that its card states, and a file is never trusted."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sepgroupy
from sepgroupy import build_model, list_weights
from sepgroupy.cli import main
from sepgroupy.errors import ArgumentError, DataError
from sepgroupy.models import WeightsCard, save_weights
from sepgroupy.paper import RunConfig, load_digits, save_run_weights
from sepgroupy.training import load_model, score, train

MODELS = ("z2cnn", "c-z2cnn", "p4cnn", "g-p4cnn-small", "g-p4cnn", "gc-p4cnn-small", "gc-p4cnn")
DIGITS = Path(sepgroupy.__file__).parent / "weights" / "rotated-digits" / "gc-p4cnn-small.npz"
CARD = WeightsCard("gc-p4cnn-small", "none", {}, 1, 50.0, 3420, "none", "published", "")


def test_all_networks_are_listed() -> None:
    (digits,) = list_weights()
    assert digits.name == "rotated-digits"
    assert set(digits.models) == set(MODELS)
    for model, card in digits.cards.items():
        assert (card.model, card.seed, card.recipe["epochs"], card.init) == (model, 1, 50, "published")
        assert "CC BY-SA 3.0" in card.license
        assert card.parameters == sum(p.numel() for p in build_model(model).parameters())


@pytest.mark.parametrize("model", MODELS)
def test_a_network_has_its_stated_error(model: str) -> None:
    net = build_model(model, weights="rotated-digits")
    assert not net.training
    # A rounding error may decide between two classes of nearly equal probability: one image is 0.1 %.
    assert score(net, load_digits().test).error == pytest.approx(list_weights()[0].cards[model].test_error, abs=0.11)


def test_weights_do_not_depend_on_the_backend_or_the_init() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 1, 28, 28)
    plain = build_model("gc-p4cnn", weights="rotated-digits")
    other = build_model("GC-P4CNN", weights="rotated-digits", backend="reference", init="variance")
    torch.testing.assert_close(plain(x), other(x), atol=1e-4, rtol=1e-4)


def test_a_file_gives_back_every_value(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model, path = build_model("gc-p4cnn-small"), tmp_path / "net.npz"
    save_weights(path, model, CARD)
    found = build_model("gc-p4cnn-small", weights=path).state_dict()
    assert list(found) == list(model.state_dict())
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())
    with pytest.raises(ArgumentError, match="exists already"):
        save_weights(path, model, CARD)
    with pytest.raises(ArgumentError, match=r"must end in \.npz"):
        save_weights(tmp_path / "net.pt", model, CARD)


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(ArgumentError, match="use rotated-digits"):
        build_model("gc-p4cnn", weights="imagenet")
    with pytest.raises(ArgumentError, match="has no resnet44: it has c-z2cnn, g-p4cnn, "):
        build_model("resnet44", weights="rotated-digits")
    with pytest.raises(ArgumentError, match=r"weights \(=True\)"):
        build_model("gc-p4cnn", weights=True)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="leave out group"):  # p2mm has as many elements, and means something else
        build_model("gc-p4cnn", weights="rotated-digits", group="p2mm")


def edited(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    with np.load(DIGITS) as stored:
        arrays = dict(stored)
    edit(arrays)
    with path.open("wb") as file:
        np.savez(file, **arrays)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda a: a.pop("fc.bias"), "fc.bias is missing"),
        (lambda a: a.update(extra=np.zeros(1)), "extra is unknown"),
        (lambda a: a.update({"fc.bias": np.zeros(11, np.float32)}), r"fc.bias has shape \(11,\)"),
        (lambda a: a.update({"fc.bias": np.zeros(10)}), "fc.bias is of torch.float64, not torch.float32"),
        (lambda a: a.update({"fc.bias": np.zeros(10, np.int32)}), "fc.bias has shape"),
        (lambda a: a.update({"fc.bias": np.array([print] * 10)}), "is broken"),  # a pickle
        (lambda a: a.pop("card"), "is broken"),
        (lambda a: a.update(card=np.array("[]")), "is broken"),
        (lambda a: a.update(card=np.array("{}")), "is broken"),
        (lambda a: a.update(card=np.array(json.dumps(asdict(CARD) | {"seed": "1"}))), "is broken"),
        (lambda a: a.update(card=np.array(json.dumps(asdict(CARD) | {"model": "p4cnn"}))), "the weights of p4cnn, not"),
    ],
)
def test_a_file_that_does_not_fit_is_named(
    edit: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "net.npz"
    edited(path, edit)
    with pytest.raises(DataError, match=message) as caught:
        build_model("gc-p4cnn-small", weights=path)
    assert str(path) in str(caught.value)


def test_broken_files_are_named(tmp_path: Path) -> None:
    whole = DIGITS.read_bytes()
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("card.npy", bytes(10**7))
    (tmp_path / "short.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.npz").touch()
    for name in ("bomb", "short", "empty", "missing"):
        with pytest.raises(DataError, match=rf"{name}\.npz (is broken|cannot be read)"):
            build_model("gc-p4cnn-small", weights=tmp_path / f"{name}.npz")


def test_a_run_becomes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    settings = {"width": 3, "samples": 20, "batch_size": 10, "epochs": 1, "device": "cpu"}
    result = train(RunConfig.for_task("rotmnist", model="gc-p4cnn", folder=str(folder), **settings))
    with pytest.raises(SystemExit) as stopped:
        main(["weights", str(folder)])
    assert stopped.value.code == 0
    path = folder / "gc-p4cnn.npz"
    assert capsys.readouterr().out == f"{path}\n"
    found = build_model("gc-p4cnn", weights=path, width=3)
    expected = load_model(folder).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
    with pytest.raises(DataError, match="does not fit"):
        build_model("gc-p4cnn", weights=path)
    with np.load(path) as stored:
        text = stored["card"].item()
    card = json.loads(text)
    assert (card["test_error"], card["parameters"], card["recipe"]["width"]) == (
        result.test_error,
        result.parameters,
        3,
    )
    assert str(tmp_path) not in text  # nothing of the machine
    (folder / "result.json").unlink()
    with pytest.raises(DataError, match=r"result\.json"):
        save_run_weights(folder, tmp_path / "other.npz")
