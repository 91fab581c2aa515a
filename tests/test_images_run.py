"""Runs on anyone's images: trained, resumed, evaluated, predicted with and exported."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from browser import BROWSER, open_page
from sepgroupy import cli
from sepgroupy.errors import ArgumentError, DataError
from sepgroupy.image_models import ImageModel
from sepgroupy.paper import RunConfig, read_run_config
from sepgroupy.training import (
    ImageConfig,
    ImagePredictor,
    evaluate,
    evaluate_images,
    export_run,
    load_model,
    read_config,
    read_result,
    train,
)
from sepgroupy.training._augmentation import Augmentation
from sepgroupy.training._run_directory import lock_run_directory
from stress.small import before_step, interrupt, together

SIDE, COUNTS = 16, {"round, ü": 14, "square": 10}
pytestmark = pytest.mark.filterwarnings("ignore:.*worker processes in total:UserWarning")  # on one processor


def draw(kind: int, number: int) -> np.ndarray[Any, Any]:
    """Draw a disc or a square of a random size and place."""
    random = np.random.default_rng((kind, number))
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2 - random.uniform(-2, 2, (2, 1, 1))
    radius = random.uniform(3, 6)
    inside = np.hypot(y, x) < radius if kind == 0 else np.maximum(abs(y), abs(x)) < radius
    return np.clip(60 + 120 * inside + random.normal(0, 10, (SIDE, SIDE)), 0, 255).astype(np.uint8)


def save(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of two class folders of PNGs."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    for kind, (name, count) in enumerate(COUNTS.items()):
        for number in range(count):
            save(folder / name / f"{number:02}.png", draw(kind, number))
    return folder


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of images and masks, whose values are 0 and 7."""
    folder = tmp_path_factory.mktemp("data") / "masks"
    for number in range(12):
        pixels = draw(0, number)
        save(folder / "images" / f"{number:02}.png", pixels)
        save(folder / "masks" / f"{number:02}.png", (7 * (pixels > 120)).astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a CSV file with two numbers for each image."""
    folder = tmp_path_factory.mktemp("data") / "sizes"
    rows = [("path", "label_mean", "label_ten")]
    for number in range(14):
        pixels = draw(number % 2, number)
        save(folder / f"{number:02}.png", pixels)
        rows.append((f"{number:02}.png", str(pixels.mean() / 10), str(10 * (number % 2))))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def config_on(data: Path, folder: Path, task: str = "classification", **overrides: Any) -> ImageConfig:
    usual = {"model": "p4m-unet1-w2" if task == "segmentation" else "p4m-resnet8-w2", "match": "width"}
    settings = usual | {"epochs": 2, "batch_size": 8, "device": "cpu", "warmup": 0} | overrides
    return ImageConfig.for_task(task, data_path=str(data), folder=str(folder), **settings)


@pytest.fixture(scope="module")
def finished(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train one run, for the tests that only read it."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train(config_on(shapes, folder), workers=0)
    return folder


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def assert_same(first: Any, second: Any) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# ---- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 3])  # before any checkpoint, and within the second epoch
def test_interrupted_and_resumed_with_workers_is_never_interrupted(
    step: int, shapes: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_on(shapes, tmp_path)
    with monkeypatch.context() as patch:
        before_step(patch, interrupt, step)
        with pytest.raises(KeyboardInterrupt):
            train(config, workers=1)
    train(config, workers=2)
    assert_same(load_model(finished).state_dict(), load_model(tmp_path).state_dict())
    assert history(finished) == history(tmp_path)
    assert (finished / "split.csv").read_bytes() == (tmp_path / "split.csv").read_bytes()


def test_mixed_precision_trains_and_resumes_bitwise(
    shapes: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, linear = set(), nn.functional.linear

    def watched(x: Tensor, *others: Any) -> Tensor:
        outputs = linear(x, *others)
        seen.add(outputs.dtype)
        return outputs

    monkeypatch.setattr(nn.functional, "linear", watched)  # a hook would stop the fusion
    configs = [config_on(shapes, tmp_path / name, precision="bf16-mixed") for name in ("whole", "parts")]
    train(configs[0], workers=0)
    assert torch.bfloat16 in seen
    with monkeypatch.context() as patch:
        before_step(patch, interrupt, 3)
        with pytest.raises(KeyboardInterrupt):
            train(configs[1], workers=0)
    train(configs[1], workers=0)
    whole, parts, single = (load_model(f).state_dict() for f in (tmp_path / "whole", tmp_path / "parts", finished))
    assert_same(whole, parts)
    assert history(tmp_path / "whole") == history(tmp_path / "parts")
    assert {value.dtype for value in whole.values()} == {torch.float32, torch.int64}
    weights = [name for name in whole if name.endswith("weight")]
    assert not all(torch.equal(whole[name], single[name]) for name in weights)
    for name in weights:  # of the same run, but for rounding
        torch.testing.assert_close(whole[name], single[name], atol=0.02, rtol=0.1)


def test_a_time_limit_stops_a_run_to_go_on_another_time(shapes: Path, finished: Path, tmp_path: Path) -> None:
    config = config_on(shapes, tmp_path)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(config, workers=0, time_limit=1e-6)
    assert torch.load(tmp_path / "last.ckpt")["global_step"] == 2
    train(config, workers=0)
    assert_same(load_model(finished).state_dict(), load_model(tmp_path).state_dict())


def test_each_image_is_augmented_differently_in_every_epoch_and_by_the_seed_alone(shapes: Path, tmp_path: Path) -> None:
    def images(workers: int, epoch: int, first: int = 0, **overrides: Any) -> Tensor:
        data = config_on(shapes, tmp_path, **overrides).load_data(workers, tmp_path)
        fabric: Any = type("Fabric", (), {"world_size": 1, "global_rank": 0, "device": torch.device("cpu")})
        return torch.cat([batch.images for batch in data.batches(epoch, first, fabric)])

    here = images(0, 0)
    assert torch.equal(here, images(1, 0))
    assert torch.equal(here[8:], images(0, 0, first=1)) or len(here) == 16
    upright = {image.numpy().tobytes() for image in images(0, 0, recipe="plain")}
    assert len(upright) == len(here)
    assert not upright & {image.numpy().tobytes() for image in torch.cat([here, images(0, 1), images(0, 0, seed=2)])}
    flips = {"recipe": "plain", "hflip": True, "vflip": True}
    orbit = {t.numpy().tobytes() for x in images(0, 0, recipe="plain") for t in (x, x.flip(1), x.flip(2), x.flip(1, 2))}
    flipped = {image.numpy().tobytes() for image in images(0, 0, **flips)}
    assert flipped <= orbit
    assert flipped != upright


def test_batches_of_an_epoch_differ_by_one_image_at_most(shapes: Path, tmp_path: Path) -> None:
    data = config_on(shapes, tmp_path, batch_size=5).load_data(0, tmp_path)
    fabric: Any = type("Fabric", (), {"world_size": 2, "global_rank": 1, "device": torch.device("cpu")})
    batches = list(data.batches(0, 0, fabric))
    assert len(batches) == data.steps == math.ceil(data.train_images / 5)
    assert sum(batch.total for batch in batches) == data.train_images
    assert {batch.total for batch in batches} <= {data.smallest_batch, data.smallest_batch + 1}
    assert all(len(batch.targets) == batch.total // 2 for batch in batches)


def test_balanced_sampling_and_class_weights_balance_the_classes(shapes: Path, tmp_path: Path) -> None:
    data = config_on(shapes, tmp_path, balanced_sampling=True).load_data(0, tmp_path)
    drawn = torch.cat([data.splits.train.targets[data.order(epoch)] for epoch in range(200)])
    assert drawn.float().mean() == pytest.approx(0.5, abs=0.03)
    assert data.splits.train.targets.float().mean() < 0.45
    weighted = config_on(shapes, tmp_path, class_weights=True, label_smoothing=0.0).load_data(0, tmp_path)
    targets = weighted.splits.train.targets
    logits = torch.randn(len(targets), 2)
    losses = nn.functional.cross_entropy(logits, targets, reduction="none")
    expected = torch.stack([losses[targets == c].mean() for c in (0, 1)]).mean()
    torch.testing.assert_close(weighted.objective.loss(logits, targets), expected)


class Flat(nn.Sequential):
    def __init__(self, outputs: int) -> None:
        super().__init__(OrderedDict(flatten=nn.Flatten(), linear=nn.Linear(SIDE * SIDE, outputs)))


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs train a linear network."""

    def image_model(self: ImageConfig, channels: int, outputs: int, size: int, weights: Any = None) -> ImageModel:
        return ImageModel("linear", Flat(outputs), size)

    monkeypatch.setattr(ImageConfig, "image_model", image_model)


@pytest.mark.usefixtures("linear")
def test_accumulated_gradients_are_those_of_the_whole_batch(shapes: Path, tmp_path: Path) -> None:
    for parts in (1, 3):
        train(config_on(shapes, tmp_path / str(parts), accumulate=parts, optimizer="sgd", recipe="plain"), workers=0)
    whole, parted = (load_model(tmp_path / str(parts)).state_dict() for parts in (1, 3))
    for name, value in whole.items():
        torch.testing.assert_close(parted[name], value, atol=1e-6, rtol=1e-5)


def test_averaged_weights_have_the_batch_statistics_of_the_last_step(shapes: Path, tmp_path: Path) -> None:
    train(config_on(shapes, tmp_path, epochs=3), workers=0)
    checkpoint = torch.load(tmp_path / "last.ckpt")
    last, average = checkpoint["state_dict"], checkpoint["average"]
    for name, value in last.items():
        same = torch.equal(average[f"module.{name.removeprefix('model.')}"], value)
        assert same == ("running" in name or "normalize" in name or "num_batches" in name), name


@pytest.mark.usefixtures("linear")
def test_two_processes_are_one_with_the_same_batches(shapes: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"recipe": "plain", "hflip": True, "optimizer": "sgd", "batch_size": 7, "epochs": 1}
    alone = train(config_on(shapes, tmp_path / "one", **settings), workers=0)
    config = config_on(shapes, tmp_path / "two", devices=2, **settings)
    assert together(2, lambda: train(config, workers=0), tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()
    one, two = (load_model(tmp_path / name).state_dict() for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=1e-5)
    assert read_result(tmp_path / "two").test_loss == pytest.approx(alone.test_loss, rel=1e-5)


@pytest.mark.usefixtures("linear")
def test_the_best_epoch_on_the_validation_images_is_tested_and_patience_ends_the_run(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_on(shapes, tmp_path, epochs=9, patience=2)
    streamed = type(config.load_data(0))
    errors, states, accumulate = iter([5.0, 3.0, 4.0, 3.0, 1.0]), [], streamed.accumulate_metrics

    def scripted(self: Any, model: nn.Module, split: str, *rest: Any) -> Tensor:
        if split == "test":
            return accumulate(self, model, split, *rest)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return torch.tensor([1.0 + len(states), next(errors), 10.0], dtype=torch.float64)

    monkeypatch.setattr(streamed, "accumulate_metrics", scripted)
    result = train(config, workers=0)
    rows = history(tmp_path)
    assert [row["validation_error"] for row in rows] == ["50.0", "30.0", "40.0", "30.0"]
    assert [bool(row["test_error"]) for row in rows] == [False, False, False, True]
    assert_same(load_model(tmp_path).state_dict(), states[1])
    assert (result.validation_error, result.test_error) == (30.0, evaluate(tmp_path, "cpu").error)
    assert train(config) == result
    (tmp_path / "result.json").unlink()
    assert train(config, workers=0).test_error == result.test_error


def test_a_process_that_reads_images_does_not_hold_the_folder(tmp_path: Path) -> None:
    """A worker may outlive a run that was killed by some seconds."""
    source, sink = os.pipe()
    run = os.fork()
    if not run:
        with lock_run_directory(tmp_path):
            if not os.fork():  # a worker
                os.write(sink, str(os.getpid()).encode())
            time.sleep(60)
        os._exit(0)
    worker = int(os.read(source, 20))
    with pytest.raises(ArgumentError, match="another process"), lock_run_directory(tmp_path):
        pass
    os.kill(run, signal.SIGKILL)
    os.waitpid(run, 0)
    try:
        with lock_run_directory(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


# ---- evaluation ----------------------------------------------------------------------------------------------------


def test_an_evaluation_is_what_its_files_say(shapes: Path, finished: Path) -> None:
    found = evaluate_images(finished, "cpu", 0)
    score = evaluate(finished, "cpu")
    assert (found.images, found.loss) == (score.images, pytest.approx(score.loss))
    assert found.scores.metrics["accuracy"] == pytest.approx(score.correct / score.images)
    assert score.error == read_result(finished).test_error
    values = json.loads((finished / "evaluation.json").read_text())
    assert values["macro_f1"] == found.scores.metrics["macro_f1"]
    assert values["largest_change_under_the_group"] == found.largest_change < 1e-5
    with (finished / "test-predictions.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["path", "loss", "target", "prediction", "p(round, ü)", "p(square)"]
    assert len(rows) == found.images
    assert sum(row[2] == row[3] for row in rows) == score.correct
    for path, loss, target, prediction, *chances in rows:
        assert path.startswith(f"{target}/")
        assert -math.log(float(chances[target == "square"])) == pytest.approx(float(loss), abs=1e-3)
        assert (prediction == "square") == (float(chances[1]) > 0.5)
    assert found.worst[0].loss == pytest.approx(max(float(row[1]) for row in rows), rel=1e-5)
    assert int(found.scores.confusion.sum()) == found.images  # type: ignore[union-attr]


def test_an_evaluation_needs_the_images_of_the_run(shapes: Path, finished: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(finished, tmp_path / "run")
    shutil.copytree(shapes, tmp_path / "shapes")
    config = json.loads((finished / "config.json").read_text()) | {"data_path": str(tmp_path / "shapes")}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    save(tmp_path / "shapes" / "square" / "more.png", draw(1, 99))  # is in no split of the run
    assert evaluate(tmp_path / "run", "cpu") == evaluate(finished, "cpu")
    path = next(iter((tmp_path / "shapes" / "square").glob("0*.png")))
    save(path, draw(1, 98))
    with pytest.raises(DataError, match="no longer those"):
        evaluate_images(tmp_path / "run", "cpu", 0)
    path.unlink()
    with pytest.raises(DataError, match=path.name):
        evaluate_images(tmp_path / "run", "cpu", 0)


def test_a_regression(sizes: Path, tmp_path: Path) -> None:
    result = train(config_on(sizes, tmp_path, "regression"), workers=0)
    found = evaluate_images(tmp_path, "cpu", 0)
    errors = (found.outputs - found.targets).abs()
    assert result.test_error == pytest.approx(float(errors.mean()), rel=1e-5)
    assert [row[0] for row in found.scores.rows] == ["label_mean", "label_ten"]
    assert found.scores.rows[1][1] == pytest.approx(float(errors[:, 1].mean()))
    data = config_on(sizes, tmp_path, "regression").load_data(0, tmp_path)
    assert found.facts.target_mean == pytest.approx(data.splits.train.targets.mean(0).tolist())
    assert found.largest_change < 1e-4
    assert "mean absolute error" in (tmp_path / "report.html").read_text()


def test_a_segmentation(masks: Path, tmp_path: Path) -> None:
    train(config_on(masks, tmp_path / "run", "segmentation", epochs=1), workers=0)
    found = evaluate_images(tmp_path / "run", "cpu", 0)
    model, data = load_model(tmp_path / "run"), found.config.load_data(0, tmp_path / "run")
    with torch.no_grad():
        pairs = [(model(x[None]).argmax(1)[0], y) for x, y in (data.splits.test[i] for i in range(found.images))]
    predicted, true = (torch.stack(part) for part in zip(*pairs, strict=True))
    for index, (name, pixels, dice, iou) in enumerate(found.scores.rows):
        a, b = predicted == index, true == index
        assert (name, pixels) == ("07"[index], int(b.sum()))
        assert float(iou) == pytest.approx(float((a & b).sum() / (a | b).sum()), nan_ok=True)
        assert float(dice) == pytest.approx(float(2 * (a & b).sum() / (a.sum() + b.sum())), nan_ok=True)
    assert found.largest_change < 1e-5
    predictor = ImagePredictor(tmp_path / "run", "cpu")
    (batch,) = predictor.predict(predictor.open(masks / "images"), workers=0)
    cli_out = tmp_path / "predicted"
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", str(tmp_path / "run"), str(masks / "images"), "--masks", str(cli_out), "--workers", "0"])
    assert not stop.value.code
    for one in batch:
        written = np.asarray(Image.open(cli_out / f"{Path(one.path).name}.png"))
        assert set(np.unique(written)) <= {0, 7}
        assert np.array_equal(written == 7, one.output.numpy() == 1)  # type: ignore[union-attr]
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", str(tmp_path / "run"), str(masks / "images"), "--masks", str(cli_out)])
    assert stop.value.code == 2


@pytest.mark.skipif(BROWSER is None, reason="there is no browser: install chromium")
def test_the_page_opens_in_a_browser(finished: Path, tmp_path: Path) -> None:
    page = evaluate_images(finished, "cpu", 0).page.read_text()
    found = open_page(page, 390, tmp_path)
    assert found["failures"] == []
    assert all(name.startswith("data:") for name in found["fetched"])
    assert found["page"][1] <= found["page"][0] == 390
    assert len(found["figures"]) == page.count("<svg") == 4
    assert min(found["letters"]) > 7
    assert found["rows"] == page.count("<tr>") - page.count("<thead>")


# ---- volumes -------------------------------------------------------------------------------------------------------


def write_volumes(file: Path, side: int = 8) -> Path:
    """Write balls and cubes in the format of MedMNIST."""
    grid = np.abs(np.stack(np.mgrid[:side, :side, :side]) - (side - 1) / 2)
    solids = [np.sqrt((grid**2).sum(0)) < side * 0.32, grid.max(0) < side * 0.3]
    random, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        labels = np.arange(count) % 2
        noise = random.normal(0, 20, (count, side, side, side))
        volumes = 60 + 120 * np.stack([solids[label] for label in labels]) + noise
        arrays |= {f"{split}_images": volumes.clip(0, 255).astype(np.uint8), f"{split}_labels": labels[:, None]}
    np.savez_compressed(file, **arrays)
    return file


def test_volumes_are_trained_evaluated_and_exported(tmp_path: Path) -> None:
    data = write_volumes(tmp_path / "solids.npz")
    train(config_on(data, tmp_path / "run", model="o-resnet8-w2", batch_size=4), workers=0)
    found = evaluate_images(tmp_path / "run", "cpu", 0)
    assert (found.images, found.transformed) == (4, 4)
    assert found.largest_change < 1e-5  # under the 24 rotations of a cube
    assert "group O, kind gc: 4 test volumes of 8×8×8 voxels" in found.page.read_text()
    model = load_model(tmp_path / "run")
    volume = torch.rand(1, 1, 8, 8, 8)
    torch.testing.assert_close(model(volume), model(volume.rot90(1, (2, 4)).rot90(1, (3, 4))), atol=1e-5, rtol=1e-5)
    program = export_run(tmp_path / "run", "torch")
    torch.testing.assert_close(torch.export.load(program).module()(volume), model(volume), atol=1e-5, rtol=1e-5)
    with pytest.raises(ArgumentError, match="are of image files, and o-resnet8-w2 reads volumes"):
        ImagePredictor(tmp_path / "run", "cpu").open(tmp_path)


def test_a_network_for_images_is_refused_for_volumes_and_the_reverse(shapes: Path, tmp_path: Path) -> None:
    data = write_volumes(tmp_path / "solids.npz")
    with pytest.raises(
        ArgumentError, match=r"model \(='p4m-resnet8-w2'\) does not fit .* has volumes, .* use o-resnet"
    ):
        train(config_on(data, tmp_path / "run"))
    with pytest.raises(ArgumentError, match=r"model \(='o-resnet'\) does not fit .* has images, .* use p4m-resnet"):
        train(config_on(shapes, tmp_path / "run", model="o-resnet"))
    with pytest.raises(ArgumentError, match=r"crop \(=2\) is for images"):
        config_on(data, tmp_path / "run", model="o-resnet", crop=2)
    with pytest.raises(ArgumentError, match="p4m"):
        train(config_on(data, tmp_path / "run", model="o-resnet", group="p4m"))
    assert not (tmp_path / "run").exists()


def test_a_volume_is_augmented_by_rotations_about_any_axis_and_filled_with_the_mean(tmp_path: Path) -> None:
    config = config_on(tmp_path, tmp_path, model="o-resnet", recipe="plain", rotation=180.0, shift=0.0, scale=0.0)
    augment = Augmentation.of(config, [0.25])
    assert augment is not None
    side = 24
    z, y, x = torch.meshgrid(*[torch.arange(side) - (side - 1) / 2] * 3, indexing="ij")
    radius = (z**2 + y**2 + x**2).sqrt()
    ball = 0.25 + 0.7 * torch.exp(-((radius / 4) ** 2))
    rod = 0.25 + 0.7 * torch.exp(-((x / 6) ** 2) - (y**2 + z**2) / 9)
    angles = []
    for seed in range(6):
        moved, target = augment(ball[None], 3, seed)
        assert target == 3
        torch.testing.assert_close(moved[0], ball, atol=0.03, rtol=0)  # trilinear
        rotated = augment(rod[None], 3, seed)[0][0] - 0.25
        assert float(rotated.sum()) == pytest.approx(float((rod - 0.25).sum()), rel=0.02)  # no volume is lost
        covariance = torch.stack([(rotated * a * b).sum() for a in (z, y, x) for b in (z, y, x)]).view(3, 3)
        angles.append(torch.linalg.eigh(covariance)[1][:, -1].abs())  # the direction of the rod
    directions = torch.stack(angles)
    assert (directions.amax(0) - directions.amin(0) > 0.3).all()
    assert torch.equal(augment(rod[None], 3, 1)[0], augment(rod[None], 3, 1)[0])


def test_an_image_and_its_mask_are_deformed_alike(tmp_path: Path) -> None:
    still = {"rotation": 0.0, "shift": 0.0, "scale": 0.0, "hflip": False, "vflip": False, "elastic": 0.03}
    config = config_on(tmp_path, tmp_path, task="segmentation", model="p4m-unet", recipe="plain", **still)
    augment = Augmentation.of(config, [0.0])
    assert augment is not None
    rows = torch.arange(40.0)[:, None].expand(40, 40)  # a pixel's value is its row: where it was read
    image, mask = augment(rows[None], rows.long(), 5)
    inside = slice(6, -6)
    read = image[0, inside, inside]
    assert 0.3 < float((read - rows[inside, inside]).std()) < 40 * 0.03 * 2
    assert torch.equal(mask[inside, inside], read.round().long())


def test_a_volume_is_deformed(tmp_path: Path) -> None:
    still = {"rotation": 0.0, "shift": 0.0, "scale": 0.0, "elastic": 0.03}
    augment = Augmentation.of(config_on(tmp_path, tmp_path, model="o-resnet", recipe="plain", **still), [0.0])
    assert augment is not None
    ramp = torch.arange(20.0)[:, None, None].expand(20, 20, 20)
    read = augment(ramp[None], 0, 5)[0][0, 4:-4, 4:-4, 4:-4] - ramp[4:-4, 4:-4, 4:-4]
    assert 0.1 < float(read.std()) < 20 * 0.03 * 2
    assert float(read.diff(dim=2).abs().max()) < 1  # smooth


# ---- the command ---------------------------------------------------------------------------------------------------

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        return int(stop.value.code or 0), *capsys.readouterr()

    return call


def test_the_four_commands(shapes: Path, tmp_path: Path, command: Command) -> None:
    settings = ("--model", "p4m-resnet8-w2", "--size", "14", "--epochs", "1", "--device", "cpu", "--workers", "0")
    code, out, _ = command("train", "images", "--data-path", shapes, *settings, "--run-dir", "run")
    assert code == 0
    assert "balanced accuracy" in out
    assert (tmp_path / "run" / "report.html").exists()
    assert json.loads((tmp_path / "run" / "data.json").read_text())["input_size"] == 16  # where it is exact
    code, again, _ = command("evaluate", "run", "--device", "cpu", "--workers", "0")
    assert code == 0
    assert again.splitlines()[-5:] == out.splitlines()[-5:]
    (tmp_path / "broken.png").write_bytes(b"no image")
    pattern = shapes / "square" / "*.png"
    code, _, err = command(
        "predict", "run", pattern, "broken.png", "--csv", "p.csv", "--jsonl", "p.jsonl", "--workers", "0"
    )
    assert code == 1
    assert "1 of 11 files could not be read: broken.png" in err
    with (tmp_path / "p.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert head[1:] == ["prediction", "p(round, ü)", "p(square)"]
    assert (len(rows), len(lines)) == (10, 11)
    assert "error" in next(line for line in lines if line["path"] == "broken.png")
    model = load_model(tmp_path / "run")
    data: Any = read_config(tmp_path / "run").load_data(0, tmp_path / "run")
    image = next(data.splits.test[i][0] for i, p in enumerate(data.splits.test.paths) if p.startswith("square"))
    with torch.no_grad():
        chances = model(image[None]).softmax(1)[0].tolist()
    name = next(p for p in data.splits.test.paths if p.startswith("square"))
    row = next(row for row in rows if row[0].endswith(name))
    assert [float(cell) for cell in row[2:]] == pytest.approx(chances, abs=2e-6)
    line = next(line for line in lines if line["path"].endswith(name))
    assert list(line["probabilities"].values()) == pytest.approx(chances, abs=2e-6)
    assert command("predict", "run", pattern, "--csv", "p.csv")[0] == 2  # it is there
    assert command("predict", "run", "nothing*.png")[0] == 1
    code, out, _ = command("export", "run", "--format", "onnx")
    assert code == 0
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / out.strip())
    (logits,) = session.run(None, {session.get_inputs()[0].name: image[None].numpy()})
    assert torch.from_numpy(logits).softmax(1)[0].tolist() == pytest.approx(chances, abs=1e-5)


def test_a_network_of_timm_is_trained_by_the_command(shapes: Path, tmp_path: Path, command: Command) -> None:
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("test_convnext", num_classes=5).state_dict(), tmp_path / "trained.pt")
    words = ("train", "images", "--data-path", shapes, "--size", "30", "--epochs", "1", "--device", "cpu")
    words = (*words, "--model", "timm/test_convnext", "--group", "p2", "--workers", "0", "--weights", "trained.pt")
    code, _, err = command(*words, "--run-dir", "run", "--match", "width")
    assert code == 2
    assert "weights (='trained.pt') cannot be lifted to kind 'gc'" in err
    assert not (tmp_path / "run" / "config.json").exists()  # it is free for the next attempt
    code, out, err = command(*words, "--run-dir", "run", "--match", "width", "--kind", "dense")
    assert code == 0, err
    assert "balanced accuracy" in out
    config: Any = read_config(tmp_path / "run")
    start = config.pretrained_model(config.read_facts(tmp_path / "run")).state_dict()
    trained = load_model(tmp_path / "run").state_dict()
    assert trained.keys() == start.keys()
    assert any(not torch.equal(trained[name], start[name]) for name in start)
    assert command("predict", "run", shapes / "square", "--csv", "p.csv", "--workers", "0")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "data_path is missing"),
        (("--data-path", "nowhere"), "nowhere"),
        (("--data-path", "empty"), "empty"),
        (("--data-path", "one"), "one class only"),
        (("--data-path", "x", "--task", "detection"), "task (='detection') must be"),
        (("--data-path", "x", "--task", "regression", "--class-weights"), "class_weights (=True) needs"),
        (("--data-path", "x", "--recipe", "best"), "recipe (='best') must be one of modern, plain"),
        (("--data-path", "x", "--time-limit", "soon"), "time_limit (='soon') must be a time"),
        (("--data-path", "SHAPES", "--model", "resnet9000"), "model (='resnet9000') is unknown"),
        (("--data-path", "SHAPES", "--weights", "pretrained"), "pretrained"),
        (("--data-path", "SHAPES", "--workers", "-1"), "workers (=-1)"),
    ],
)
def test_bad_input_is_named_before_the_first_epoch(
    arguments: tuple[str, ...], message: str, shapes: Path, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "empty").mkdir()
    for number in range(3):
        save(tmp_path / "one" / "class" / f"{number}.png", draw(0, number))
    words = [str(shapes) if word == "SHAPES" else word for word in arguments]
    code, _, err = command("train", "images", *words, "--run-dir", "run", "--model", "p4m-resnet8-w2", *words)
    assert code in (1, 2)
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_the_folder_of_another_kind_of_run_is_left_alone(shapes: Path, finished: Path, tmp_path: Path) -> None:
    config = RunConfig.for_task("rotmnist", folder=str(tmp_path))
    (tmp_path / "config.json").write_text(config.to_json())
    with pytest.raises(ArgumentError, match="task 'rotmnist' there, 'classification' here"):
        train(config_on(shapes, tmp_path), workers=0)
    with pytest.raises(ArgumentError, match="task 'classification' there, 'rotmnist' here"):
        train(replace(config, folder=str(finished)))
    with pytest.raises(DataError, match="is of task classification"):
        read_run_config(finished)


def test_folders_of_another_version_are_named(finished: Path, tmp_path: Path, command: Command) -> None:
    import shutil

    for name, change in (("data.json", {"angles": 3}), ("config.json", {"angles": 3}), ("config.json", {"task": "x"})):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(finished, tmp_path / "run")
        values = json.loads((tmp_path / "run" / name).read_text())
        (tmp_path / "run" / name).write_text(json.dumps(values | change))
        for words in (("evaluate", "run"), ("predict", "run", "x.png"), ("export", "run")):
            code, _, err = command(*words)
            assert code == 1
            assert name in err
            assert err.count("\n") == 1
    (tmp_path / "run" / "data.json").unlink()
    shutil.copy(finished / "config.json", tmp_path / "run")
    assert "data.json cannot be read" in command("predict", "run", "x.png")[2]
