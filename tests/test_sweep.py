from __future__ import annotations

import csv
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sepgroupy import __version__
from sepgroupy.errors import ArgumentError, RunError
from sepgroupy.models import published_model_names
from sepgroupy.paper import RunConfig
from sepgroupy.paper.sweep import _sweep as sweep_module
from sepgroupy.paper.sweep import find_runs, grid, preset, sweep, to_csv
from sepgroupy.training import train
from stress.small import few_digits, use_digits

TINY: dict[str, Any] = {"epochs": 1, "batch_size": 20, "device": "cpu"}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every run of a test read few digits."""
    use_digits(monkeypatch, few_digits(24, 20))


@pytest.fixture
def trained(few: None, monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """List the runs that are really trained."""
    configs: list[RunConfig] = []

    def noted(config: RunConfig, progress: bool = False) -> Any:
        result = train(config, progress)
        configs.append(config)
        return result

    monkeypatch.setattr(sweep_module, "train", noted)
    return configs


def tiny(**axes: Any) -> list[RunConfig]:
    return grid("rotmnist", **({"models": ["z2cnn"], "widths": [2], "seeds": [1, 2]} | axes | TINY))


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "runs.csv").read_text())))


def test_a_grid_has_every_combination_once_seeds_outermost() -> None:
    configs = grid("rotmnist", ["z2cnn", "p4cnn"], [None, 5], [500, None], [1, 2, 1], epochs=3)
    assert len(configs) == len(set(configs)) == 16
    assert [config.seed for config in configs] == [1] * 8 + [2] * 8
    assert {(c.model, c.width, c.samples) for c in configs[:8]} == {
        (model, width, samples) for model in ("z2cnn", "p4cnn") for width in (None, 5) for samples in (500, None)
    }
    assert configs[0] == RunConfig.for_task("rotmnist", model="z2cnn", samples=500, seed=1, epochs=3)
    with pytest.raises(ArgumentError, match="model"):
        grid("rotmnist", ["resnet44"])
    with pytest.raises(ArgumentError, match="seed is not the same"):
        grid("rotmnist", ["z2cnn"], **{"seed": 3})


def test_the_table_has_a_row_a_run(few: None, tmp_path: Path) -> None:
    runs = sweep(tiny(models=["z2cnn", "p4cnn"], samples=[10, None]), tmp_path)
    assert [(run.config.model, run.config.samples, run.config.seed) for run in runs[:3]] == [
        ("z2cnn", 10, 1), ("p4cnn", 10, 1), ("z2cnn", None, 1)
    ]  # fmt: skip
    rows = table(tmp_path)
    assert len(rows) == 8
    found = {(row["model"], row["samples"], row["seed"]): row for row in rows}
    for run in runs:
        assert run.result is not None
        row = found[run.config.model, "" if run.config.samples is None else "10", str(run.config.seed)]
        assert float(row["test_error"]) == run.result.test_error
        assert float(row["seconds"]) == run.result.seconds
        assert int(row["parameters"]) == run.result.parameters
        assert (row["data"], row["dataset"]) == ("digits", "a few digits")
        assert (row["epochs"], row["milestones"], row["lr"], row["width"]) == ("1", "40", "0.01", "2")
        assert row["version_sepgroupy"] == __version__
        assert Path(row["folder"]) == run.folder
    assert to_csv([replace(runs[0], result=None)]).strip() == ""


def test_what_is_finished_is_not_trained_again_whatever_its_folder_is_called(
    trained: list[RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tiny()
    train(replace(first, folder=str(tmp_path / "by hand" / "some name")))
    sweep([first, second], tmp_path)
    assert [config.seed for config in trained] == [2]
    (tmp_path / "by hand").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path.parent)
    runs = sweep([second, first], tmp_path.name)  # the same folder, named otherwise
    assert len(trained) == 1
    assert [run.config.seed for run in runs] == [2, 1]
    sweep([replace(first, lr=0.5)], tmp_path)
    assert len(trained) == 2
    assert len(table(tmp_path)) == 3


def test_an_interrupted_sweep_goes_on(
    trained: list[RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = tiny(seeds=[1, 2, 3])

    def interrupted(config: RunConfig, progress: bool = False) -> Any:
        if config.seed == 2:
            raise KeyboardInterrupt
        return train(config, progress)

    with monkeypatch.context() as patch:
        patch.setattr(sweep_module, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sweep(configs, tmp_path)
    assert len(table(tmp_path)) == 1
    sweep(configs, tmp_path)
    assert [config.seed for config in trained] == [2, 3]
    assert len(table(tmp_path)) == 3


def test_an_unfinished_run_goes_on_in_its_own_folder(trained: list[RunConfig], tmp_path: Path) -> None:
    (config,) = tiny(seeds=[1])
    train(replace(config, folder=str(tmp_path / "mine")))
    (tmp_path / "mine" / "result.json").unlink()
    (run,) = sweep([config], tmp_path)
    assert run.folder == tmp_path / "mine"
    assert [other.folder for other in trained] == [str(tmp_path / "mine")]


def test_a_failing_run_does_not_stop_the_others(few: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RunError, match=r"2 of 4 runs have failed.*samples \(=25\)"):
        sweep(tiny(samples=[25, 24]), tmp_path)
    assert [row["samples"] for row in table(tmp_path)] == ["24", "24"]
    assert "has failed" in caplog.text


def test_broken_runs_are_named_and_left_out(few: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sweep(tiny(), tmp_path)
    for name, text in (("strange", "{"), ("other", '{"task": "cooking"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    broken = find_runs([tmp_path])[0].folder / "result.json"
    broken.write_text(json.dumps({"test_error": "low"}))
    with caplog.at_level(logging.WARNING):
        runs = find_runs([tmp_path])
    assert len(runs) == 1
    for folder in (tmp_path / "strange", tmp_path / "other", broken.parent):
        assert str(folder) in caplog.text
    with pytest.raises(ArgumentError, match="nowhere"):
        find_runs([tmp_path / "nowhere"])


def test_each_configuration_is_found_once_and_finished_if_it_can_be(few: None, tmp_path: Path) -> None:
    (config,) = tiny(seeds=[1])
    for name in ("a", "b", "c"):
        train(replace(config, folder=str(tmp_path / name)))
    (tmp_path / "a" / "result.json").unlink()
    (run,) = find_runs([tmp_path, tmp_path / "c"])
    assert run.folder == tmp_path / "b"
    assert run.result is not None


def test_a_run_is_known_by_its_network_whatever_that_is_called(trained: list[RunConfig], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 20, "device": "cpu", "samples": 20}
    train(RunConfig.for_task("rotmnist", model="gc-p4cnn", width=10, folder=str(tmp_path / "old"), **settings))
    configs = [
        RunConfig.for_task("rotmnist", model=model, width=width, **settings)
        for model, width in (("gc-p4cnn-small", None), ("gc-p4cnn", 10), ("gc-p4cnn", 5), ("gc-p4cnn-small", 5))
    ]
    runs = sweep(configs, tmp_path)
    assert [(config.model, config.width) for config in trained] == [("gc-p4cnn", 5)]
    assert [run.folder.name for run in runs[:2]] == ["old", "old"]
    assert runs[2] == runs[3]


GRIDS = {  # SPEC, section 7: widths of the paper's grid, and the width of its data efficiency
    "z2cnn": ((10, 20, 40, 60, 80, 100), 20), "c-z2cnn": ((25, 57, 120, 184, 247, 311), 57),
    "p4cnn": ((5, 10, 20, 30, 40, 50), 10), "g-p4cnn": ((8, 10, 17, 34, 51, 68, 85), 17),
    "gc-p4cnn": ((10, 30, 62, 94, 126, 158), 30),
}  # fmt: skip


def test_the_published_grids_by_name() -> None:
    def canonical(width: int, model: str, seed: int, **settings: Any) -> RunConfig:
        return RunConfig.for_task("rotmnist", model=model, width=width, seed=seed, **settings).canonical

    seeds, images = range(1, 6), range(2000, 10001, 2000)
    paper = [canonical(w, name, seed) for seed in seeds for name, (widths, _) in GRIDS.items() for w in widths]
    assert preset("rotmnist", "paper") == paper
    assert len(set(paper)) == 155
    assert sum(config.width is None for config in paper) == 35  # the seven networks of the table, by their names
    some = [canonical(width, name, s, samples=n) for s in seeds for n in images for name, (_, width) in GRIDS.items()]
    assert preset("rotmnist", "data-efficiency") == some
    assert all(config.weight_decay == 1e-5 for config in paper + some)
    assert {config.data for config in preset("rotmnist", "paper", data="amat", data_path="x")} == {"amat"}
    cifar = preset("cifar10", "paper")
    assert {(c.model, c.crop, c.hflip, c.seed) for c in cifar} == {
        (name, *augmented, 1)
        for name in published_model_names()
        if "resnet" in name
        for augmented in ((0, False), (4, True))
    }
    assert len(cifar) == 8
    for task, name in (("rotmnist", "all"), ("cifar10", "data-efficiency"), ("mnist", "paper")):
        with pytest.raises(ArgumentError, match="paper, data-efficiency for rotmnist; paper for cifar10"):
            preset(task, name)


def real() -> list[RunConfig]:
    """Return a sweep that another process, where nothing is patched, can do as well."""
    return grid("rotmnist", ["z2cnn", "p4cnn"], [2], [16], [1, 2, 3], epochs=2, device="cpu")


def test_a_killed_sweep_does_what_is_missing(tmp_path: Path) -> None:
    options = "--models z2cnn,p4cnn --widths 2 --samples 16 --seeds 1,2,3 --set epochs=2 --set device=cpu --folder"
    code = "from sepgroupy.cli import main; main()"
    command = [sys.executable, "-c", code, "sweep", "rotmnist", *options.split(), str(tmp_path)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while len(list(tmp_path.rglob("result.json"))) < 2:
        assert process.poll() is None, "the sweep ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert 2 <= len(finished) < 6
    runs = sweep(real(), tmp_path)
    assert len(list(tmp_path.rglob("result.json"))) == len(runs) == len(table(tmp_path)) == 6
    assert all(path.stat().st_mtime_ns == changed for path, changed in finished.items())


def test_jobs_of_a_cluster_train_what_this_process_would(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    there = sweep(real()[:3], tmp_path / "there", cluster="local", jobs=2, parameters={"timeout_min": 5})
    assert len(list((tmp_path / "there" / "jobs").glob("*_result.pkl"))) == 2
    here = sweep(real()[:3], tmp_path / "here")
    for run, other in zip(there, here, strict=True):
        assert run.identity == other.identity
        assert run.result is not None
        assert other.result is not None
        assert run.result.test_loss == pytest.approx(other.result.test_loss, rel=1e-2)


def test_a_job_that_has_to_stop_is_queued_again_with_the_same_runs() -> None:
    pytest.importorskip("submitit")
    share = sweep_module._Share(tiny())
    assert share.checkpoint().function is share


def test_a_job_that_is_lost_is_a_failure(few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")

    class Lost:
        def __init__(self, configs: Any) -> None:
            pass

        def __call__(self) -> None:
            os._exit(3)

    monkeypatch.setattr(sweep_module, "_Share", Lost)
    with pytest.raises(RunError, match=r"1 of 2 runs have failed.*its log"):
        sweep(tiny(), tmp_path, cluster="local")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cluster": "cloud"}, "cloud"),
        ({"cluster": "local", "jobs": 0}, "jobs"),
        ({"cluster": "local", "parameters": {"wings": 2}}, "wings"),
    ],
)
def test_refuses_what_submitit_does_not_know(few: None, options: Any, message: str, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(ArgumentError, match=message):
        sweep(tiny(), tmp_path, **options)


def test_says_how_to_get_submitit(few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ArgumentError, match="pip install"):
        sweep(tiny(), tmp_path, cluster="local")
