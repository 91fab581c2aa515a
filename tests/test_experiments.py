"""The command lines of the published scripts: each is parsed, means the right run, and starts."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sepgroupy.data import AMAT_FILES, write_synthetic_cifar10
from sepgroupy.models import build_model, load_published, published_model_names
from sepgroupy.paper import RunConfig
from sepgroupy.paper.sweep import preset
from sepgroupy.training import initial_model, load_model
from stress.small import few_digits, use_digits

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
Configured = Callable[[str, str], RunConfig]


def experiment(name: str) -> ModuleType:
    """Load a script as a new module."""
    spec = importlib.util.spec_from_file_location(f"{name}_main", EXPERIMENTS / name / "main.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def do_nothing(*_: object) -> None:
    """Take the place of what a script would do."""


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configured:
    """Return the configuration that a command line means, in an empty folder and without training."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, command: str) -> RunConfig:
        module, seen = experiment(name), list[RunConfig]()
        vars(module).update(run=seen.append, save_initial_state=do_nothing, save_trained_state=do_nothing)
        assert module.main(command.split()) == 0
        (config,) = seen
        assert list(tmp_path.iterdir()) == []
        return config

    return call


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    use_digits(monkeypatch, few_digits(24, 20))


def rotmnist(**settings: object) -> RunConfig:
    return RunConfig.for_task("rotmnist", **settings)


def run_as_user(name: str, command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process and a folder of its own."""
    script = EXPERIMENTS / name / "main.py"
    arguments = [sys.executable, "-W", "error", str(script), *command.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)


KINDS = {  # the flags of a network and its name here
    "": "z2cnn",
    "--equivariance Z2": "z2cnn",
    "--equivariance Z2 --separable g": "c-z2cnn",
    "--equivariance Z2 --separable gc": "c-z2cnn",
    "--equivariance Z2 --separable gi": "c-z2cnn",
    "--equivariance P4": "p4cnn",
    "--equivariance P4 --separable g": "g-p4cnn",
    "--equivariance P4 --separable gc": "gc-p4cnn",
    "--equivariance P4 --separable gi": "gc-p4cnn",
}
WIDTHS = sorted({config.width for config in preset("rotmnist", "paper") if config.width} | {10, 17, 20, 30, 57})


def test_rotmnist_defaults_are_the_papers(configured: Configured) -> None:
    assert configured("rotmnist", "") == rotmnist(model="z2cnn")


@pytest.mark.parametrize(("flags", "model"), KINDS.items())
def test_rotmnist_networks_and_widths(flags: str, model: str, configured: Configured) -> None:
    for planes, seed in product(WIDTHS, (1, 2, 3, 4, 5)):
        config = configured("rotmnist", f"{flags} --planes {planes} --seed {seed} --wd 1e-5")
        assert config == rotmnist(model=model, width=planes, seed=seed).canonical
    names = {configured("rotmnist", f"{flags} --planes {planes}").model for planes in (10, 17, 20, 30, 57)}
    assert {name for name in published_model_names() if name.removesuffix("-small") == model} <= names


@pytest.mark.parametrize(("flags", "model"), KINDS.items())
def test_rotmnist_data_efficiency_and_the_other_flags(flags: str, model: str, configured: Configured) -> None:
    for samples, step, save in product((2000, 4000, 6000, 8000, 10000), (20, 40), ("", "--savestr run")):
        config = configured("rotmnist", f"{flags} --samples {samples} --step {step} {save}")
        milestones = (20, 40) if step == 20 else (40,)
        assert config == rotmnist(model=model, width=20, samples=samples, milestones=milestones, epochs=50).canonical


@pytest.mark.parametrize(
    ("flags", "planes", "model"),
    [
        ("", 20, "z2cnn"),
        ("--equivariance Z2", 20, "z2cnn"),
        ("--equivariance Z2 --separable g", 57, "c-z2cnn"),
        ("--equivariance Z2 --separable gc", 57, "c-z2cnn"),
        ("--equivariance P4", 10, "p4cnn"),
        ("--equivariance P4 --separable g", 10, "g-p4cnn-small"),
        ("--equivariance P4 --separable g", 17, "g-p4cnn"),
        ("--equivariance P4 --separable gc", 10, "gc-p4cnn-small"),
        ("--equivariance P4 --separable gc", 30, "gc-p4cnn"),
    ],
)
def test_rotmnist_trains_each_published_network(
    few: None, flags: str, planes: int, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = f"{flags} --planes {planes} --seed 3 --samples 20 --step 20 --savestr S --epochs 1 --no-cuda"
    assert experiment("rotmnist").main(command.split()) == 0
    (folder,) = (tmp_path / "runs").glob(f"rotmnist-{model}-*")
    trained = load_model(folder).state_dict()
    config = rotmnist(model=model, seed=3)
    states = {"init": initial_model(config).state_dict(), "trained": trained}
    for name, state in states.items():
        saved = load_published(tmp_path / f"S_{name}_{planes}.pth.tar").state_dict()
        assert saved.keys() == state.keys()
        assert all(torch.equal(saved[key], value) for key, value in state.items())
    assert all(value.isfinite().all() for value in trained.values())
    assert not any(torch.equal(trained[key], value) for key, value in states["init"].items() if "weight" in key)


def test_rotmnist_every_flag(configured: Configured) -> None:
    command = (
        "--dataset-path here --batch-size 1 --test-batch-size 2 --epochs 13 --lr 4 --wd 5 --no-cuda --step 6 "
        "--planes 7 --samples 8 --seed 9 --savestr text --log-interval 10 --equivariance P4 --separable g"
    )
    assert configured("rotmnist", command) == rotmnist(
        model="g-p4cnn", width=7, data="amat", data_path="here", samples=8, epochs=13, batch_size=1,
        test_batch_size=2, lr=4.0, weight_decay=5.0, milestones=(6, 12), log_every=10, device="cpu", seed=9,
    )  # fmt: skip


def test_rotmnist_reads_the_files_of_the_working_directory_and_only_without_them_the_digits(
    configured: Configured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert configured("rotmnist", "").data == "digits"
    assert "using the bundled digits" in capsys.readouterr().out
    assert configured("rotmnist", "--dataset-path elsewhere").data == "amat"  # where they must be, then
    module, seen = experiment("rotmnist"), list[RunConfig]()
    vars(module).update(run=seen.append)
    for name in AMAT_FILES:  # the first of them alone is an incomplete download, which is told when it is read
        (tmp_path / name).touch()
        assert module.main([]) == 0
        assert (seen[-1].data, seen[-1].data_path) == ("amat", "./")
    assert "bundled" not in capsys.readouterr().out


def test_rotmnist_saves_state_dicts_before_and_after(
    few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = experiment("rotmnist")
    command = [
        "--equivariance",
        "P4",
        "--separable",
        "gc",
        "--planes",
        "10",
        "--epochs",
        "1",
        "--no-cuda",
        "--savestr",
        "S",
    ]
    assert module.main(command) == 0
    out = capsys.readouterr().out
    assert "test accuracy" in out
    (folder,) = (tmp_path / "runs").iterdir()
    config = rotmnist(model="gc-p4cnn-small", epochs=1, device="cpu")
    expected = {"S_init_10.pth.tar": initial_model(config), "S_trained_10.pth.tar": load_model(folder)}
    for name, model in expected.items():
        saved = load_published(tmp_path / name).state_dict()
        assert all(torch.equal(saved[key], value) for key, value in model.state_dict().items())
        assert saved.keys() == model.state_dict().keys()
    assert module.main(command) == 0  # the run is finished, and the files hold what it has left
    capsys.readouterr()
    assert module.main([*command, "--seed", "2"]) == 2
    error = capsys.readouterr().err
    assert "S_trained_10.pth.tar" in error
    assert "to go on" in error
    assert len(list((tmp_path / "runs").iterdir())) == 1  # refused before anything was trained
    (tmp_path / "S_trained_10.pth.tar").unlink()
    assert module.main([*command, "--seed", "2"]) == 2
    assert "S_init_10.pth.tar" in capsys.readouterr().err


def test_rotmnist_refuses_what_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment("rotmnist").main(["--step", "0"]) == 2
    assert "step (=0)" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        experiment("rotmnist").main(["--separable", "c"])
    assert stop.value.code == 2


RESNETS = {
    "resnet44": "resnet44",
    "resnet44_p4m": "p4m-resnet44",
    "resnet44_gp4m": "g-p4m-resnet44",
    "resnet44_gcp4m": "gc-p4m-resnet44",
}
AUGMENTATIONS = {
    "": (0, False), "--rc": (4, False), "--rc 4": (4, False), "--rc 0": (0, False), "--hflip": (0, True),
    "--hflip --rc 4": (4, True), "--rc 4 --hflip": (4, True), "--rc --hflip": (4, True), "--hflip --rc 2": (2, True),
}  # fmt: skip


@pytest.mark.parametrize(("name", "model"), RESNETS.items())
def test_cifar_networks_and_augmentations(name: str, model: str, configured: Configured) -> None:
    for (flags, (crop, hflip)), path in product(AUGMENTATIONS.items(), (None, "path/to/cifar")):
        command = f"--model {name} {flags} {'' if path is None else f'--dataset_path {path}'}"
        assert configured("cifar", command) == RunConfig.for_task(
            "cifar10", model=model, data_path=path or "./", crop=crop, hflip=hflip, test_batch_size=1000, log_every=10
        )


def test_cifar_every_flag(configured: Configured) -> None:
    command = (
        "--dataset-path here --batch-size 1 --test-batch-size 2 --samples 3 --epochs 4 --lr 5 --momentum 0.6 --wd 7 "
        "--rc 3 --hflip --no-cuda --seed 8 --log-interval 9"
    )
    assert configured("cifar", command) == RunConfig.for_task(
        "cifar10", model="resnet44", data_path="here", samples=3, crop=3, hflip=True, epochs=4, batch_size=1,
        test_batch_size=2, lr=5.0, momentum=0.6, weight_decay=7.0, log_every=9, device="cpu", seed=8,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "name"),
    [("", "resnet44_gcp4m_seed_3.pth.tar"), ("--hflip --rc 4", "resnet44_gcp4m_aug_seed_3.pth.tar")],
)
def test_cifar_saves_its_state_dict(
    flags: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = experiment("cifar")
    vars(module).update(run=do_nothing)
    monkeypatch.setattr("sepgroupy.paper._states.load_model", lambda folder: build_model("gc-p4m-resnet44"))
    assert module.main(f"--model resnet44_gcp4m --seed 3 {flags}".split()) == 0
    assert load_published(tmp_path / name) is not None
    assert module.main(f"--model resnet44_gcp4m --seed 3 {flags}".split()) == 2
    assert "to go on" in capsys.readouterr().err


def test_cifar_without_files_says_where_they_must_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert experiment("cifar").main([]) == 1
    assert "give the folder that cifar-10-python.tar.gz was unpacked in" in capsys.readouterr().err


def test_rotmnist_trains_on_the_bundled_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = "--planes 3 --equivariance P4 --separable gc --epochs 1 --samples 20 --no-cuda"
    assert experiment("rotmnist").main(command.split()) == 0
    out = capsys.readouterr().out
    assert "using the bundled digits" in out
    assert "test accuracy" in out
    assert len(list(tmp_path.glob("runs/rotmnist-gc-p4cnn-*/result.json"))) == 1


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("resnet44", "--hflip --rc 4"),
        ("resnet44_p4m", ""),
        ("resnet44_gp4m", "--hflip --rc 4"),
        ("resnet44_gcp4m", ""),
    ],
)
def test_cifar_trains_each_network_on_the_files_of_the_working_directory(
    name: str, flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_synthetic_cifar10(tmp_path, train=5, test=2)
    command = f"--model {name} {flags} --seed 2 --samples 3 --epochs 1 --no-cuda"
    assert experiment("cifar").main(command.split()) == 0
    (folder,) = tmp_path.glob(f"runs/cifar10-{RESNETS[name]}-*")
    trained = load_model(folder).state_dict()
    saved = load_published(tmp_path / f"{name}{'_aug' if flags else ''}_seed_2.pth.tar").state_dict()
    assert saved.keys() == trained.keys()
    assert all(torch.equal(saved[key], value) for key, value in trained.items())
    assert all(value.isfinite().all() for value in trained.values())


def test_cifar_runs(tmp_path: Path) -> None:
    write_synthetic_cifar10(tmp_path, train=10, test=5)  # in the working directory, the default of --dataset_path
    done = run_as_user("cifar", "--model resnet44_gcp4m --epochs 1 --hflip --rc 4 --no-cuda", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("runs/cifar10-gc-p4m-resnet44-*/result.json"))) == 1
    assert (tmp_path / "resnet44_gcp4m_aug_seed_1.pth.tar").exists()
