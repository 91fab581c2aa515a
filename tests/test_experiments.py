from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from sepgroupy.data import write_synthetic_cifar10
from sepgroupy.training import RunConfig

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def experiment(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_main", EXPERIMENTS / name / "main.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def configured(name: str, command: str, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Return the configuration that a command line means, without running it."""
    module, seen = experiment(name), list[RunConfig]()
    monkeypatch.setattr(module, "run", seen.append)
    assert module.main(command.split()) == 0
    return seen[0]


def published(name: str, command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command line as a user would, in a folder of its own."""
    script = EXPERIMENTS / name / "main.py"
    arguments = [sys.executable, "-W", "error", str(script), *command.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_rotmnist_defaults_are_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = replace(RunConfig.for_task("rotmnist", model="z2cnn"), width=20)
    assert configured("rotmnist", "", monkeypatch) == expected


def test_rotmnist_published_command(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured("rotmnist", "--planes 158 --equivariance P4 --separable gc", monkeypatch)
    assert config == RunConfig.for_task("rotmnist", model="gc-p4cnn", width=158)


def test_rotmnist_every_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    command = (
        "--dataset-path here --batch-size 1 --test-batch-size 2 --epochs 3 --lr 4 --wd 5 --no-cuda --step 6 --planes 7 "
        "--samples 8 --seed 9 --savestr text --log-interval 10 --equivariance P4 --separable g"
    )
    assert configured("rotmnist", command, monkeypatch) == RunConfig.for_task(
        "rotmnist", model="g-p4cnn", width=7, data="amat", data_path="here", samples=8, epochs=3, batch_size=1,
        test_batch_size=2, lr=4.0, weight_decay=5.0, milestones=(6,), log_every=10, device="cpu", seed=9,
        folder="runs/rotmnist-g-p4cnn-text",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "model"),
    [("Z2", "z2cnn"), ("Z2 --separable gc", "c-z2cnn"), ("P4", "p4cnn"), ("P4 --separable gc", "gc-p4cnn")],
)
def test_rotmnist_models(flags: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert configured("rotmnist", f"--equivariance {flags}", monkeypatch).model == model


def test_rotmnist_refuses_what_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment("rotmnist").main(["--equivariance", "Z2", "--separable", "g"]) == 2
    assert "--equivariance P4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("resnet44", "resnet44"),
        ("resnet44_p4m", "p4m-resnet44"),
        ("resnet44_gp4m", "g-p4m-resnet44"),
        ("resnet44_gcp4m", "gc-p4m-resnet44"),
    ],
)
def test_cifar_published_command(name: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured("cifar", f"--dataset_path path/to/cifar --model {name}", monkeypatch)
    assert config == RunConfig.for_task("cifar10", model=model, data_path="path/to/cifar")


def test_cifar_every_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    command = (
        "--dataset-path here --batch-size 1 --test-batch-size 2 --samples 3 --epochs 4 --lr 5 --momentum 0.6 --wd 7 "
        "--rc --hflip --no-cuda --seed 8 --log-interval 9"
    )
    assert configured("cifar", command, monkeypatch) == RunConfig.for_task(
        "cifar10", model="resnet44", data_path="here", samples=3, crop=True, hflip=True, epochs=4, batch_size=1,
        test_batch_size=2, lr=5.0, momentum=0.6, weight_decay=7.0, log_every=9, device="cpu", seed=8,
    )  # fmt: skip


def test_rotmnist_runs(tmp_path: Path) -> None:
    command = "--planes 3 --equivariance P4 --separable gc --epochs 1 --samples 20 --no-cuda"
    done = published("rotmnist", command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "using the bundled digits" in done.stdout
    assert len(list(tmp_path.glob("runs/rotmnist-gc-p4cnn-*/result.json"))) == 1


def test_cifar_runs(tmp_path: Path) -> None:
    write_synthetic_cifar10(tmp_path / "cifar", train=10, test=5)
    done = published("cifar", "--dataset_path cifar --model resnet44_gcp4m --epochs 1 --rc --hflip --no-cuda", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("runs/cifar10-gc-p4m-resnet44-*/result.json"))) == 1
