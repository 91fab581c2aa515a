from __future__ import annotations

import copy
import csv
import json
import math
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sepgroupy.data import ImageData, RandomAffine, Split, rotate
from sepgroupy.errors import ArgumentError, DataError
from sepgroupy.fusion import fuse
from sepgroupy.models import build_model, published_model_names
from sepgroupy.paper import RunConfig, load_data, require_free, save_initial_state, save_trained_state
from sepgroupy.training import Result, Score, evaluate, generator, initial_model, load_model, predict, score, train
from stress.small import AFFINE, before_step, epoch_order, few_digits, interrupt, use_digits

ROTMNIST = [name for name in published_model_names() if "resnet" not in name]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> ImageData:
    """Let every run of a test read few digits."""
    digits = few_digits()
    use_digits(monkeypatch, digits)
    return digits


def config_in(folder: Path, **overrides: Any) -> RunConfig:
    settings = {"model": "z2cnn", "width": 3, "epochs": 2, "batch_size": 20, "device": "cpu", "folder": str(folder)}
    return RunConfig.for_task("rotmnist", **(settings | overrides))


def parameters(folder: Path) -> dict[str, Tensor]:
    return load_model(folder).state_dict()


def history(folder: Path) -> list[dict[str, str]]:
    """Read the table of a run, without what the clock decides."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("model", ROTMNIST)
def test_every_model_trains(model: str, few: ImageData, tmp_path: Path) -> None:
    result = train(config_in(tmp_path, model=model, samples=32))
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json", "last.ckpt", "metrics.csv", "result.json", "tensorboard"
    }  # fmt: skip
    assert list((tmp_path / "tensorboard").glob("events*"))
    rows = history(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert rows[0]["test_error"] == ""
    assert float(rows[1]["test_error"]) == result.test_error
    assert result.parameters == sum(p.numel() for p in build_model(model, width=3).parameters())
    torch.manual_seed(1)
    start, end = build_model(model, width=3), load_model(tmp_path)
    assert all(not torch.equal(a, b) for a, b in zip(start.parameters(), end.parameters(), strict=True))
    assert evaluate(tmp_path, "cpu") == Score(result.test_loss, result.test_error, result.test_correct, 30)
    assert result.test_error == 100 * (30 - result.test_correct) / 30
    assert result.test_images == 30


def test_a_run_is_the_plain_loop(few: ImageData, tmp_path: Path) -> None:
    config = config_in(tmp_path, epochs=3, milestones=(1, 2), weight_decay=0.1, seed=5)
    train(config)
    torch.manual_seed(5)
    model = build_model("z2cnn", width=3)
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=0.1)
    for epoch, lr in enumerate((0.01, 0.001, 0.0001)):
        optimizer.param_groups[0]["lr"] = lr
        for indices in epoch_order(48, 5, epoch).split(20):
            optimizer.zero_grad()
            nn.functional.nll_loss(model(few.train.images[indices]), few.train.labels[indices]).backward()
            optimizer.step()
    for name, value in parameters(tmp_path).items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-4, atol=1e-5)
    assert [float(row["lr"]) for row in history(tmp_path)] == pytest.approx([0.01, 0.001, 0.0001])


def test_a_modern_run_is_the_plain_loop(few: ImageData, tmp_path: Path) -> None:
    config = config_in(tmp_path, epochs=4, log_every=2, seed=5, **MODERN)
    result = train(config)
    data = load_data(config)
    assert data.validation is not None
    torch.manual_seed(5)
    model = fuse(build_model("z2cnn", width=3))  # rounding as in a run: Adam amplifies it where a gradient is 0
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    average = copy.deepcopy(model)
    affine, scores, step = RandomAffine(180.0, 0.1, 0.1), [], 0
    for epoch in range(4):
        for indices in epoch_order(42, 5, epoch).split(20):
            optimizer.param_groups[0]["lr"] = config.learning_rate(step, 3)
            optimizer.zero_grad()
            outputs = model(affine(data.train.images[indices], generator(5, AFFINE, step)))
            nn.functional.cross_entropy(outputs, data.train.labels[indices], label_smoothing=0.1).backward()
            optimizer.step()
            decay = min(0.8, (1 + step) / (10 + step)) if step else 0.0
            for old, new in zip(average.parameters(), model.parameters(), strict=True):
                old.data.lerp_(new.data, 1 - decay)
            for old, new in zip(average.buffers(), model.buffers(), strict=True):
                old.copy_(new)  # batch statistics are averages already: averages of them are stale
            step += 1
        scores.append([score(average, split) for split in (data.validation, data.test)])
    for name, value in parameters(tmp_path).items():
        torch.testing.assert_close(value, average.state_dict()[name], rtol=1e-4, atol=1e-5)
    rows = history(tmp_path)
    assert [row["validation_error"] != "" for row in rows] == [False, True, False, True]
    assert [row["test_error"] != "" for row in rows] == [False, False, False, True]  # the test set is looked at once
    validation, test = scores[3]
    assert float(rows[1]["validation_loss"]) == pytest.approx(scores[1][0].loss, rel=1e-4)
    assert (result.validation_error, result.test_error) == (validation.error, test.error)
    assert result.validation_loss == pytest.approx(validation.loss, rel=1e-4)
    assert evaluate(tmp_path, "cpu").error == test.error


def test_validation_images_are_drawn_by_the_seed_from_the_training_images(few: ImageData, tmp_path: Path) -> None:
    held = []
    for seed in (1, 1, 2):
        data = load_data(config_in(tmp_path, samples=30, validation=10, seed=seed))
        assert data.validation is not None
        assert (len(data.train), len(data.validation)) == (20, 10)
        together = [image.numpy().tobytes() for image in (*data.train.images, *data.validation.images)]
        assert sorted(together) == sorted(image.numpy().tobytes() for image in few.train.images[:30])
        held.append(data.validation.images)
    assert torch.equal(held[0], held[1])
    assert not torch.equal(held[0], held[2])
    with pytest.raises(ArgumentError, match=r"validation \(=48\) must be less than the 48"):
        load_data(config_in(tmp_path, validation=48))


def test_a_run_starts_from_the_averaged_weights_of_another(few: ImageData, tmp_path: Path) -> None:
    train(config_in(tmp_path / "a", ema=0.5))
    averaged = parameters(tmp_path / "a")
    trained = torch.load(tmp_path / "a" / "last.ckpt")["state_dict"]
    assert not torch.equal(averaged["conv1.weight"], trained["model.conv1.weight"])
    assert_same(initial_model(config_in(tmp_path / "b", weights=str(tmp_path / "a"))).state_dict(), averaged)


def test_a_run_learns(few: ImageData, tmp_path: Path) -> None:
    result = train(config_in(tmp_path, width=8, epochs=25, batch_size=12))
    assert result.train_error < 10 < result.test_error < 80


def test_the_order_is_a_new_permutation_every_epoch(few: ImageData, tmp_path: Path) -> None:
    fabric: Any = type("Fabric", (), {"world_size": 1, "global_rank": 0, "device": torch.device("cpu")})

    def order(seed: int, epoch: int) -> Tensor:
        data = config_in(tmp_path, seed=seed).load_data()
        images = torch.cat([batch.images for batch in data.batches(epoch, 0, fabric)]).flatten(1)
        return (images[:, None] == few.train.images.flatten(1)).all(2).nonzero()[:, 1]

    orders = [order(*place) for place in ((1, 0), (1, 1), (2, 0))]
    assert torch.equal(orders[0], order(1, 0))
    assert torch.equal(orders[1], epoch_order(48, 1, 1))
    assert len({tuple(order.tolist()) for order in orders}) == 3
    assert all(sorted(order.tolist()) == list(range(48)) for order in orders)


def test_same_seed_same_run(few: ImageData, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(name) + seed + os.getpid())  # whatever was drawn before
        train(config_in(tmp_path / name, seed=seed, crop=True, hflip=True))
    assert_same(parameters(tmp_path / "a"), parameters(tmp_path / "b"))
    assert history(tmp_path / "a") == history(tmp_path / "b") != history(tmp_path / "c")


MODERN: dict[str, Any] = {
    "optimizer": "adamw", "weight_decay": 0.1, "schedule": "cosine", "warmup": 1, "rotation": 180.0, "shift": 0.1,
    "scale": 0.1, "label_smoothing": 0.1, "ema": 0.8, "validation": 6,
}  # fmt: skip
OPTIMIZERS: dict[str, dict[str, Any]] = {"adam": {}, "sgd": {"optimizer": "sgd", "momentum": 0.9}, "modern": MODERN}


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Result]]:
    """Train a run that nothing happens to with each optimizer."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        use_digits(patch, few_digits())
        return {name: (folder / name, train(config_in(folder / name, **interruptible(name)))) for name in OPTIMIZERS}


def interruptible(optimizer: str) -> dict[str, Any]:
    return {"epochs": 3, "milestones": (1, 2), "log_every": 2, "crop": 4, "hflip": True} | OPTIMIZERS[optimizer]


@pytest.mark.parametrize(  # before any checkpoint, and in each of three later epochs
    ("optimizer", "step"), [("modern", 1), ("modern", 3), ("modern", 5), ("modern", 8), ("adam", 5), ("sgd", 8)]
)
def test_interrupted_and_resumed_is_never_interrupted(
    step: int,
    optimizer: str,
    whole_runs: dict[str, tuple[Path, Result]],
    few: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, (folder, whole) = interruptible(optimizer), whole_runs[optimizer]
    with monkeypatch.context() as patch:
        before_step(patch, interrupt, step)
        with pytest.raises(KeyboardInterrupt):
            train(config_in(tmp_path, **settings))
    assert not (tmp_path / "result.json").exists()
    resumed = train(config_in(tmp_path, **settings))
    assert_same(parameters(folder), parameters(tmp_path))
    assert history(folder) == history(tmp_path)
    assert replace(resumed, seconds=whole.seconds) == whole


def test_a_run_that_lacks_only_its_result_is_finished(few: ImageData, tmp_path: Path) -> None:
    result = train(config_in(tmp_path))
    (tmp_path / "result.json").unlink()
    assert train(config_in(tmp_path)) == result


def test_a_finished_run_is_not_run_again(few: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = train(config_in(tmp_path))
    before = snapshot(tmp_path)
    use_digits(monkeypatch, None)  # the data are not read
    assert train(config_in(tmp_path)) == result
    assert snapshot(tmp_path) == before


def test_another_run_is_never_overwritten(few: ImageData, tmp_path: Path) -> None:
    train(config_in(tmp_path))
    before = snapshot(tmp_path)
    with pytest.raises(ArgumentError, match=r"lr 0\.01 there, 0\.5 here.*choose another folder") as error:
        train(config_in(tmp_path, lr=0.5))
    assert str(tmp_path) in str(error.value)
    assert snapshot(tmp_path) == before


def test_a_folder_in_other_use_is_left_alone(few: ImageData, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    for folder in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ArgumentError, match="choose another folder"):
            train(config_in(folder))
    assert snapshot(tmp_path) == {"thesis.tex": b"all of it"}


def test_nothing_is_written_before_the_data_are_read(few: ImageData, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"samples \(=49\)"):
        train(config_in(tmp_path / "run", samples=49))
    assert not (tmp_path / "run").exists()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_other_data_are_noticed(few: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(config_in(tmp_path))
    other = ImageData(few.name, few.train, Split(few.test.images.flip(0), few.test.labels), 10)
    use_digits(monkeypatch, other)
    with pytest.raises(DataError, match="no longer those"):
        evaluate(tmp_path, "cpu")
    (tmp_path / "result.json").unlink()
    with pytest.raises(DataError, match="no longer those"):
        train(config_in(tmp_path))


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_a_checkpoint_runs_no_code(few: ImageData, tmp_path: Path) -> None:
    config = config_in(tmp_path / "run")
    train(config)
    (tmp_path / "run" / "result.json").unlink()
    torch.save({"state_dict": Payload(tmp_path / "made")}, tmp_path / "run" / "last.ckpt")
    for use in (lambda: evaluate(tmp_path / "run", "cpu"), lambda: train(config)):
        with pytest.raises(DataError, match=r"last\.ckpt is broken, or holds more"):
            use()
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02.", "tensor", "other", "model"])
def test_broken_checkpoints_are_named(content: bytes | str, few: ImageData, tmp_path: Path) -> None:
    config = config_in(tmp_path)
    train(config)
    path = tmp_path / "last.ckpt"
    whole = torch.load(path, weights_only=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        wrong = {"tensor": torch.zeros(3), "other": {"state_dict": whole["state_dict"]}, "model": whole}
        whole["state_dict"] = {"conv1.weight": torch.zeros(2)} if content == "model" else whole["state_dict"]
        torch.save(wrong[content], path)
    with pytest.raises(DataError, match=r"last\.ckpt"):
        evaluate(tmp_path, "cpu")


@pytest.mark.parametrize("name", ["config.json", "result.json"])
@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"seconds": 1}', b"[" * 100_000])
def test_broken_json_files_are_named(content: bytes, name: str, few: ImageData, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config_in(tmp_path).to_json())
    (tmp_path / "result.json").write_text("{}")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        train(config_in(tmp_path))


def test_the_result_says_where_it_comes_from(few: ImageData, tmp_path: Path) -> None:
    result = train(config_in(tmp_path))
    assert isinstance(result, Result)
    assert (result.data, result.fingerprint) == (few.name, few.fingerprint)
    assert result.versions.keys() == {"sepgroupy", "torch", "lightning", "python"}
    assert result.command.startswith(Path(sys.argv[0]).name)  # without the folder, which is of this machine
    assert result.seconds > 0


def test_a_result_of_an_older_version_is_read(few: ImageData, tmp_path: Path) -> None:
    result = train(config_in(tmp_path))
    values = json.loads((tmp_path / "result.json").read_text())
    del values["test_correct"], values["test_images"]
    (tmp_path / "result.json").write_text(json.dumps(values))
    assert train(config_in(tmp_path)) == replace(result, test_correct=0, test_images=0)


def test_the_initial_model_is_that_of_the_run(few: ImageData, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    drawn = initial_model(config_in(tmp_path / "a", seed=4)).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    train(config_in(tmp_path / "b", seed=4, epochs=1, lr=1e-30))
    for name, value in load_model(tmp_path / "b").named_parameters():
        torch.testing.assert_close(value, drawn[name], atol=1e-20, rtol=0)
    torch.save(drawn, tmp_path / "drawn.pt")
    assert_same(
        drawn, initial_model(config_in(tmp_path / "c", seed=5, weights=str(tmp_path / "drawn.pt"))).state_dict()
    )


def test_cudnn_is_deterministic_while_a_run_trains(
    few: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cudnn, seen = torch.backends.cudnn, []
    before = cudnn.deterministic, cudnn.benchmark
    before_step(monkeypatch, lambda: seen.append((cudnn.deterministic, cudnn.benchmark)))
    train(config_in(tmp_path, epochs=1))
    assert set(seen) == {(True, False)}
    assert (cudnn.deterministic, cudnn.benchmark) == before


def test_state_dicts_of_their_own_are_never_overwritten(few: ImageData, tmp_path: Path) -> None:
    config, before, after = config_in(tmp_path / "run"), tmp_path / "before.pth.tar", tmp_path / "after.pth.tar"
    require_free(config, after)
    save_initial_state(config, before)
    assert_same(torch.load(before), initial_model(config).state_dict())
    train(config)
    save_trained_state(config, after)
    assert_same(torch.load(after), parameters(tmp_path / "run"))
    contents = before.read_bytes(), after.read_bytes()
    save_initial_state(config, before)  # again: they hold these very states
    save_trained_state(config, after)
    require_free(config, after)
    other = replace(config, seed=9, folder=str(tmp_path / "other"))
    for refused in (partial(save_initial_state, other, before), partial(require_free, other, after)):
        with pytest.raises(ArgumentError, match="to go on, move it away or delete it"):
            refused()
    (tmp_path / "run" / "result.json").unlink()  # it will be trained on: nobody knows what comes out
    with pytest.raises(ArgumentError, match="to go on"):
        require_free(config, after)
    before.write_bytes(b"mine")
    with pytest.raises(ArgumentError, match=str(before)):
        save_initial_state(config, before)
    assert (before.read_bytes(), after.read_bytes()) == (b"mine", contents[1])


def test_score_counts() -> None:
    logits = torch.tensor([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0], [0.0, 9.0], [0.0, 9.0]])
    split = Split(logits.view(5, 1, 1, 2), torch.tensor([0, 1, 1, 0, 0]))
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False), nn.Dropout(0.5))
    nn.init.eye_(model[1].weight)
    model.train()
    expected = nn.functional.cross_entropy(logits, split.labels)
    for batch_size in (1, 2, 5, 9):
        assert score(model, split, batch_size) == Score(pytest.approx(float(expected)), 60.0, 2, 5)
    assert model[2].training
    torch.testing.assert_close(predict(model, split.images, 2).exp().sum(1), torch.ones(5))


@pytest.mark.parametrize("rotations", [1, 2, 4, 5])
def test_predictions_are_averaged_over_rotations(rotations: int, few: ImageData) -> None:
    torch.manual_seed(0)
    model, images = build_model("gc-p4cnn-small").eval(), few.test.images
    with torch.no_grad():
        every = [
            model(rotate(images, math.radians(90 * k / rotations)) if k else images).exp() for k in range(rotations)
        ]
    expected = sum(every) / rotations
    for batch_size in (7, 256):
        predictions = predict(model, images, batch_size, rotations)
        torch.testing.assert_close(predictions.exp(), expected, atol=1e-5, rtol=1e-5)
    correct = int((expected.argmax(1) == few.test.labels).sum())
    assert score(model, few.test, 11, rotations).correct == correct
    # A network that is invariant under rotations by 90° sees the same set of orientations in a rotated image.
    if rotations > 1:
        other = predict(model, images.rot90(1, (-2, -1)), rotations=rotations)
        torch.testing.assert_close(other, predict(model, images, rotations=rotations), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rotations", [0, -1, 2.0])
def test_a_number_of_rotations_that_is_none_is_refused(rotations: Any, few: ImageData) -> None:
    with pytest.raises(ArgumentError, match=rf"rotations \(={rotations}\)"):
        predict(build_model("z2cnn"), few.test.images, rotations=rotations)


def test_evaluate_averages_over_rotations(few: ImageData, tmp_path: Path) -> None:
    # After a few steps a network has one answer for all images; this one is trained.
    torch.save(build_model("gc-p4cnn-small", weights="rotated-digits").state_dict(), tmp_path / "trained.pt")
    folder, start = tmp_path / "run", str(tmp_path / "trained.pt")
    train(config_in(folder, model="gc-p4cnn-small", width=None, weights=start, lr=1e-6))
    expected = score(load_model(folder), few.test, 256, 3)
    assert evaluate(folder, "cpu", rotations=3) == expected
    assert expected.loss != evaluate(folder, "cpu").loss


def test_a_missing_device_is_refused(few: ImageData, tmp_path: Path) -> None:
    missing = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(ArgumentError, match=f"device \\(='{missing}'\\) is not on this machine"):
        train(config_in(tmp_path / "run", device=missing))
    assert not (tmp_path / "run").exists()
