from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from sepgroupy import __version__, cli, errors
from sepgroupy.errors import DataError
from sepgroupy.paper import RunConfig, demo
from sepgroupy.training import ImageConfig, evaluate
from stress.small import before_step, few_digits, interrupt, use_digits

Run = Callable[..., tuple[int, str, str]]
TRAIN = ("train", "rotmnist", "--model", "z2cnn", "--width", "3", "--epochs", "1", "--device", "cpu")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command in a folder of its own, on few digits; gives exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    use_digits(monkeypatch, few_digits(40, 20))
    monkeypatch.setattr(demo, "load_digits", lambda rotated=True: few_digits(40, 20, rotated))

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        return int(stop.value.code or 0), *capsys.readouterr()

    return call


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version") == (0, f"sepgroupy {__version__}\n", "")


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _commands(page: Path) -> list[str]:
    """Find the commands that a page shows, in blocks and in sentences."""
    text = page.read_text().replace("\\\n", " ")
    found = re.findall(r"^(?:\w+=\S+ )?(sepgroupy .*)$", text, re.MULTILINE) + re.findall(r"`(sepgroupy [^`]*)`", text)
    return [command.replace("IMAGES…", "IMAGES").replace(" …", "") for command in found]


@pytest.mark.parametrize("page", [page for page in PAGES if _commands(page)], ids=lambda page: page.name)
def test_the_commands_and_options_of_the_pages_exist(page: Path, run: Run) -> None:
    for line in _commands(page):
        words = shlex.split(line, comments=True)[1:]
        code, _, err = run(*words, "--help")  # which reads all options before it prints the help
        assert code == 0, f"{line}: {err}"


@pytest.mark.parametrize("arguments", [(), ("train",), ("evaluate",), ("demo",)])
def test_every_command_has_a_help_page(arguments: tuple[str, ...], run: Run) -> None:
    code, out, _ = run(*arguments, "--help")
    assert code == 0
    assert "Usage" in out


@pytest.mark.parametrize(
    "arguments",
    [("tarin",), ("train",), ("train", "mnist"), ("train", "rotmnist", "--epochs", "two"), ("evaluate", "--speed")],
)
def test_misuse_exits_2(arguments: tuple[str, ...], run: Run) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert "Traceback" not in err


def test_a_wrong_value_exits_2_with_one_line(run: Run) -> None:
    assert run(*TRAIN, "--lr", "-1") == (2, "", "error: lr (=-1.0) must be greater than 0\n")


OPTIONS = {  # of every field of RunConfig that is not the task: the option's words, and the value that they mean
    "model": "--model z2cnn", "data": "--data amat", "epochs": "--epochs 2", "batch_size": "--batch-size 3",
    "test_batch_size": "--test-batch-size 4", "optimizer": "--optimizer sgd", "lr": "--lr 0.5",
    "momentum": "--momentum 0.6", "weight_decay": "--weight-decay 0.7", "milestones": "--milestone 8 --milestone 9",
    "log_every": "--log-every 10", "width": "--width 11", "data_path": "--data-path here", "samples": "--samples 12",
    "crop": "--crop 3", "hflip": "--hflip", "precision": "--precision 16-mixed", "device": "--device cpu",
    "seed": "--seed 13", "warmup": "--warmup 14", "clip": "--clip 1.5", "devices": "--devices 16",
    "nodes": "--nodes 17", "strategy": "--strategy ddp", "sync_batchnorm": "--sync-batchnorm",
    "rotation": "--rotation 18", "shift": "--shift 0.19", "scale": "--scale 0.2", "elastic": "--elastic 0.03",
    "label_smoothing": "--label-smoothing 0.21", "schedule": "--schedule cosine", "ema": "--ema 0.22",
    "validation": "--validation 23", "weights": "--weights there", "folder": "--folder place",
    "init": "--init variance", "select": "--select best", "patience": "--patience 24", "accumulate": "--accumulate 25",
    "compile": "--compile",
}  # fmt: skip


def test_every_field_of_a_configuration_is_an_option(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[RunConfig]()
    monkeypatch.setattr("sepgroupy.cli._train.run", lambda config, *_: seen.append(config))
    names = [field.name for field in fields(RunConfig) if field.name != "task"]
    assert set(OPTIONS) == set(names)
    values: dict[str, Any] = {}
    for name in names:
        words = OPTIONS[name].split()[1::2]
        kind = type(getattr(RunConfig.for_task("rotmnist"), name))
        optional = {"width": int, "samples": int, "clip": float, "ema": float, "patience": int}
        given = [optional.get(name, str if kind is type(None) else kind)(word) for word in words if kind is not tuple]
        values[name] = tuple(map(int, words)) if kind is tuple else given[0] if given else True
        needed = {"validation": 23} if name in ("select", "patience") else {}
        words = OPTIONS[name].split() + (OPTIONS["validation"].split() if needed else [])
        assert run("train", "rotmnist", *words) == (0, "", "")
        assert seen[-1] == RunConfig.for_task("rotmnist", **needed | {name: values[name]})
        assert seen[-1] != RunConfig.for_task("rotmnist")
    assert run("train", "rotmnist", *" ".join(OPTIONS.values()).split())[0] == 0
    assert seen[-1] == RunConfig.for_task("rotmnist", **values)
    assert run("train", "cifar10", "--augment", "--no-sync-batchnorm")[0] == 0
    assert seen[-1] == RunConfig.for_task("cifar10", crop=4, hflip=True)
    assert run("train", "cifar10", "--recipe", "modern", "--epochs", "3")[0] == 0
    assert seen[-1] == RunConfig.for_task("cifar10", "modern", epochs=3)
    assert run("train", "cifar10", "--recipe", "ancient")[0] == 2
    for words in (("--select", "best"), ("--patience", "3")):
        code, _, err = run("train", "rotmnist", *words)
        assert code == 2
        assert "needs images to choose by" in err
    assert run("train", "cifar10", "--augment", "--crop", "2")[0] == 0
    assert seen[-1] == RunConfig.for_task("cifar10", crop=2, hflip=True)


def test_the_help_says_what_the_fields_say(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    texts = {name: run("train", name, "--help")[1] for name in ("rotmnist", "cifar10", "images")}
    for name, kind in (("rotmnist", RunConfig), ("cifar10", RunConfig), ("images", ImageConfig)):
        for field in fields(kind):
            description = kind.describe(field.name)
            assert description
            assert field.name == "task" or description in texts[name]
        assert "adam|sgd" in texts[name]
        assert "32-true" in texts[name]
    assert "[default: (0.01)]" in texts["rotmnist"]
    assert "[default: (0.05, modern 0.1)]" in texts["cifar10"]
    assert "[default: (40)]" in texts["rotmnist"]
    assert "[default: (50 100 150)]" in texts["cifar10"]
    assert "p4m-resnet; regression" in texts["images"]


def test_failure_exits_1_with_one_line(run: Run) -> None:
    code, out, err = run("evaluate", "nowhere")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert "nowhere" in err
    assert err.count("\n") == 1


def test_an_unwritable_folder_exits_1(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = run(*TRAIN, "--folder", "file/run")
    assert code == 1
    assert "file" in err
    assert err.count("\n") == 1


def test_an_unexpected_error_exits_1_with_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("a\nb")

    before_step(monkeypatch, broken)
    code, _, err = run(*TRAIN)
    assert (code, err) == (1, "error: ZeroDivisionError: a b (--debug shows where)\n")
    with pytest.raises(ZeroDivisionError):
        cli.main(["--debug", *TRAIN])


def test_the_errors_share_one_base() -> None:
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.SepgroupyError)
    assert issubclass(errors.ArgumentError, ValueError)
    for kind, code in ((errors.ArgumentError, 2), (errors.DataError, 1), (errors.RunError, 1), (OSError, 1)):

        def fail(kind: type[Exception] = kind) -> None:
            raise kind("why")

        assert cli.exit_code(fail) == code


def test_debug_shows_the_stack(run: Run) -> None:
    with pytest.raises(DataError, match="nowhere"):
        cli.main(["--debug", "evaluate", "nowhere"])


def test_interruption_exits_130_and_the_same_command_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        before_step(patch, interrupt)
        code, _, err = run(*TRAIN)
    assert (code, err) == (130, "interrupted: run the same command again to resume\n")
    code, out, _ = run(*TRAIN)
    assert code == 0
    assert "test error" in out


def test_train_then_evaluate(run: Run, tmp_path: Path) -> None:
    code, trained, _ = run(*TRAIN, "--milestone", "2", "--milestone", "4", "--folder", "run")
    assert code == 0
    code, evaluated, _ = run("evaluate", "run", "--device", "cpu")
    assert code == 0
    assert "test error" in evaluated
    assert evaluated.removeprefix("run: ").strip() in trained
    found = re.search(r"test error (\S+) %.*test accuracy (\d+)/20 \((\S+) %\)", evaluated)
    assert found
    error, correct, accuracy = map(float, found.groups())
    assert error + accuracy == 100
    assert correct / 20 == accuracy / 100
    assert run("evaluate", "run", "--device", "cpu", "--rotations", "1")[1] == evaluated
    code, averaged, _ = run("evaluate", "run", "--device", "cpu", "--rotations", "4")
    assert code == 0
    expected = evaluate(tmp_path / "run", "cpu", rotations=4)
    assert f"test error {expected.error:.2f} %, test loss {expected.loss:.4f}" in averaged
    assert run("evaluate", "run", "--rotations", "0")[0] == 2
    code, again, _ = run(*TRAIN, "--milestone", "2", "--milestone", "4", "--folder", "run")
    assert (code, again) == (0, trained)
    assert run(*TRAIN, "--folder", "run")[0] == 2  # other milestones


def test_the_demonstration_prints_its_table_and_draws_its_plot(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "SCHEDULE", {"epochs": 1, "batch_size": 10})
    code, out, _ = run("demo", "--figure", "plot.png")
    assert code == 0
    assert "25,210" in out
    assert "24,640" in out
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "runs/demo/error-against-angle.csv").open(newline="") as file:
        angles, plain, group = zip(*[map(float, row) for row in list(csv.reader(file))[1:]], strict=True)
    assert angles == tuple(range(0, 361, 15))
    assert group[:6] == group[6:12] == group[12:18] == group[18:24]
    rows = {row.model: row for row in demo.demo()[0]}  # the runs are finished: nothing is trained
    assert rows["Z2CNN"].errors == plain
    assert rows["gc-P4CNN"].errors == group
    assert rows["gc-P4CNN"].change < 1e-5 < 1e-3 < rows["Z2CNN"].change
