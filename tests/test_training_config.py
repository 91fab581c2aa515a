from __future__ import annotations

import json
import pickle
import re
from dataclasses import FrozenInstanceError, asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from sepgroupy.errors import ArgumentError
from sepgroupy.models import published_model_names
from sepgroupy.paper import RECIPES, RunConfig, milestones_every

PAPER = {  # SPEC: sections 3 and 4
    "rotmnist": ("adam", 0.01, 0.0, 1e-5, (40,), 50, 256),
    "cifar10": ("sgd", 0.05, 0.9, 1e-5, (50, 100, 150), 300, 128),
}


@pytest.mark.parametrize("task", PAPER)
def test_defaults_are_the_papers(task: str) -> None:
    c = RunConfig.for_task(task)
    assert (c.optimizer, c.lr, c.momentum, c.weight_decay, c.milestones, c.epochs, c.batch_size) == PAPER[task]
    assert (c.width, c.samples, c.crop, c.hflip, c.seed) == (None, None, 0, False, 1)


@pytest.mark.parametrize("task", PAPER)
def test_a_configuration_survives_json(task: str) -> None:
    config = RunConfig.for_task(task, lr=0.1, width=5, milestones=(2, 3), folder="here", samples=7, seed=0)
    assert RunConfig.from_json(config.to_json()) == config


def test_an_override_of_none_leaves_the_papers_value() -> None:
    assert RunConfig.for_task("rotmnist", lr=None, epochs=3) == RunConfig.for_task("rotmnist", epochs=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task", "mnist"), ("task", ["rotmnist"]), ("model", "gc-p5cnn"), ("model", "resnet44"), ("model", None),
        ("width", 0), ("width", 2.0), ("data", 3), ("data_path", ""), ("samples", -1), ("crop", -1), ("crop", 33),
        ("crop", 1.0), ("hflip", "yes"),
        ("epochs", 0), ("epochs", True), ("batch_size", 0), ("test_batch_size", "1"), ("optimizer", "lamb"),
        ("lr", 0.0), ("lr", float("nan")), ("lr", "0.1"), ("momentum", 1.0), ("weight_decay", -1e-5),
        ("milestones", (3, 3)), ("milestones", (0,)), ("milestones", 40), ("log_every", 0), ("precision", "16"),
        ("device", "tpu"), ("seed", -1), ("seed", 2**32), ("folder", ""),
        ("warmup", -1), ("clip", 0.0), ("clip", float("inf")), ("lr", 10**400), ("devices", 0), ("nodes", 2.0),
        ("rotation", -1.0), ("rotation", 181.0), ("shift", 1.5), ("scale", 1.0), ("label_smoothing", 1.0),
        ("schedule", "linear"), ("ema", 1.0), ("ema", 0.0), ("validation", -1), ("validation", 0.1),
        ("strategy", "fsdp"), ("sync_batchnorm", 1), ("weights", ""), ("batch_size", 2**32),
    ],
)  # fmt: skip
def test_refusals_name_the_setting_and_its_value(name: str, value: Any) -> None:
    config = RunConfig.for_task("rotmnist")
    with pytest.raises(ArgumentError) as error:
        replace(config, **{name: value})
    assert re.match(rf"{name} \(={re.escape(repr(value))}\) must (be|have) ", str(error.value))
    values = asdict(config) | {name: value}
    with pytest.raises(ArgumentError, match=name):
        RunConfig.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, '{"task": "rotmnist"}', '{"tusk": 1}'])
def test_broken_json_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError):
        RunConfig.from_json(text)


@pytest.mark.parametrize("task", PAPER)
def test_the_modern_recipe_is_the_paper_s_but_for_its_own_values(task: str) -> None:
    paper, modern = RunConfig.for_task(task), RunConfig.for_task(task, "modern")
    assert RunConfig.for_task(task, recipe="paper") == paper
    different = {name for name, value in asdict(modern).items() if value != asdict(paper)[name]}
    assert different == {name for name, value in RECIPES["modern"][task].items() if value != asdict(paper)[name]}
    assert {"epochs", "schedule", "ema"} <= different
    assert RunConfig.for_task(task, "modern", epochs=3, ema=0.5) == replace(modern, epochs=3, ema=0.5)
    assert RunConfig.from_json(modern.to_json()) == modern
    assert modern.run_folder != paper.run_folder
    with pytest.raises(ArgumentError, match=r"recipe \(='postmodern'\) must be one of paper, modern"):
        RunConfig.for_task(task, "postmodern")


@pytest.mark.parametrize("warmup", [0, 2])
def test_the_cosine_schedule_is_torchs(warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6 * 7)
    config = RunConfig.for_task("rotmnist", lr=0.5, epochs=6, schedule="cosine", warmup=warmup)
    for step in range(6 * 7):
        rising = min(1.0, (step + 1) / (7 * warmup)) if warmup else 1.0
        assert config.learning_rate(step, 7) == pytest.approx(rising * schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_the_warm_up_ends_within_a_short_run(epochs: int) -> None:
    config = RunConfig.for_task("rotmnist", lr=0.5, epochs=epochs, schedule="cosine", warmup=2)
    rates = [config.learning_rate(step, 30) for step in range(30 * epochs)]
    peak = rates.index(max(rates)) + 1
    assert peak <= min(2 * 30, 30 * epochs / 3)
    assert max(rates) > 0.7 * 0.5  # of a cosine that fell during the warm-up
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ArgumentError, match="'learning_rate'"):
        RunConfig.for_task("rotmnist", learning_rate=0.1)
    with pytest.raises(ArgumentError, match=r"task \(='mnist'\)"):
        RunConfig.for_task("mnist")


def test_the_folder_follows_from_the_configuration() -> None:
    config = RunConfig.for_task("rotmnist", seed=3)
    assert config.run_folder == RunConfig.for_task("rotmnist", seed=3).run_folder
    assert config.run_folder != replace(config, seed=4).run_folder
    assert config.run_folder.parent == Path("runs")
    assert config.run_folder.name.startswith("rotmnist-gc-p4cnn-")
    assert replace(config, folder="a/b").run_folder == Path("a/b")


def test_the_folder_does_not_depend_on_settings_that_are_as_usual() -> None:
    assert RunConfig.for_task("rotmnist", warmup=0, epochs=50).run_folder == RunConfig.for_task("rotmnist").run_folder
    assert RunConfig.for_task("rotmnist", warmup=1).run_folder != RunConfig.for_task("rotmnist").run_folder


@pytest.mark.parametrize(
    ("task", "settings", "name"),
    [  # as named by the version whose fields were checked by hand
        ("rotmnist", {}, "rotmnist-gc-p4cnn-783fbba0"),
        ("rotmnist", {"init": "variance"}, "rotmnist-gc-p4cnn-2a855af5"),
        (
            "rotmnist",
            {"model": "z2cnn", "epochs": 3, "lr": 0.02, "milestones": (8,), "samples": 500},
            "rotmnist-z2cnn-fc9b673b",
        ),
        ("cifar10", {"crop": True, "hflip": True, "seed": 2}, "cifar10-gc-p4m-resnet44-d7725207"),
    ],
)
def test_the_names_of_folders_do_not_change(task: str, settings: dict[str, Any], name: str) -> None:
    config = RunConfig.for_task(task, **settings)
    assert config.run_folder == Path("runs") / name
    assert RunConfig.from_json(config.to_json()).run_folder == Path("runs") / name


def test_equal_configurations_have_one_folder_whatever_the_type_of_a_number() -> None:
    whole, real = (RunConfig.for_task("rotmnist", lr=lr, weight_decay=lr) for lr in (1, 1.0))
    assert whole == real
    assert hash(whole) == hash(real)
    assert whole.run_folder == real.run_folder
    assert whole.to_json() == real.to_json()


def test_a_list_of_milestones_is_a_tuple_and_its_wrong_element_is_named() -> None:
    assert RunConfig.for_task("rotmnist", milestones=[3, 5]).milestones == (3, 5)
    with pytest.raises(ArgumentError, match=r"milestones\[1\] \(='x'\) must be"):
        RunConfig.for_task("rotmnist", milestones=[3, "x"])


def test_a_configuration_is_a_frozen_value() -> None:
    config = RunConfig.for_task("rotmnist", epochs=3)
    with pytest.raises(FrozenInstanceError):
        config.epochs = 4  # type: ignore[misc]
    assert {config, replace(config), pickle.loads(pickle.dumps(config))} == {config}


def test_an_old_file_without_init_is_of_the_old_one() -> None:
    values = asdict(RunConfig.for_task("rotmnist"))
    del values["init"]
    assert RunConfig.from_json(json.dumps(values)).init == "variance"


def test_crops_of_older_versions_are_of_4_pixels() -> None:
    for old, new in ((True, 4), (False, 0)):
        config = RunConfig.for_task("cifar10", crop=old)
        assert (config.crop, type(config.crop)) == (new, int)
        assert config == RunConfig.for_task("cifar10", crop=new)
        text = config.to_json().replace(f'"crop": {new}', f'"crop": {json.dumps(old)}')
        assert RunConfig.from_json(text) == config
        assert RunConfig.from_json(text).run_folder == config.run_folder
    folders = {RunConfig.for_task("cifar10", crop=crop).run_folder for crop in (0, 1, 2, 4)}
    assert len(folders) == 4


@pytest.mark.parametrize("name", published_model_names())
def test_a_network_of_a_published_width_has_its_name(name: str) -> None:
    """Every width is named by the network of the same shapes, and by no other."""
    task = "cifar10" if "resnet" in name else "rotmnist"
    shapes = _published_shapes(task)
    for width in {"rotmnist": (5, 10, 17, 20, 30, 57), "cifar10": (5, 11, 19, 28, 32)}[task]:
        config = RunConfig.for_task(task, model=name, width=width)
        equal = [other for other in shapes if shapes[other] == _shapes(config)]
        canonical = config.canonical
        assert [canonical.model] == equal if canonical.width is None else not equal
        assert canonical.width in (None, width)
        assert canonical == replace(config, model=canonical.model, width=canonical.width)
        assert canonical.canonical == canonical
    config = RunConfig.for_task(task, model=name)
    assert config.canonical == config


@lru_cache
def _published_shapes(task: str) -> dict[str, list[tuple[str, torch.Size]]]:
    names = [name for name in published_model_names() if ("resnet" in name) == (task == "cifar10")]
    return {name: _shapes(RunConfig.for_task(task, model=name)) for name in names}


def _shapes(config: RunConfig) -> list[tuple[str, torch.Size]]:
    with torch.device("meta"):
        return [(key, value.shape) for key, value in config.build_model().state_dict().items()]


@pytest.mark.parametrize(("step", "epochs"), [(1, 5), (3, 10), (40, 50), (40, 10), (5, 5), (25, 50)])
def test_milestones_of_a_periodic_step_give_its_learning_rates(step: int, epochs: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step, 0.1)
    config = RunConfig.for_task("rotmnist", lr=0.5, epochs=epochs, milestones=milestones_every(step, epochs))
    for epoch in range(epochs):
        rates = [config.learning_rate(7 * epoch + step, 7) for step in (0, 6)]
        assert rates == [pytest.approx(schedule.get_last_lr()[0])] * 2
        optimizer.step()
        schedule.step()


def test_a_step_of_no_epochs_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"step \(=0\) must be"):
        milestones_every(0, 5)


def test_settings_younger_than_a_file_have_their_defaults() -> None:
    config = RunConfig.for_task("rotmnist", seed=7)
    old = {
        name: value for name, value in asdict(config).items() if name not in ("warmup", "clip", "devices", "weights")
    }
    assert RunConfig.from_json(json.dumps(old)) == config
