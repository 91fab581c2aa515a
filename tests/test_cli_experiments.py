from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sepgroupy import cli
from sepgroupy.compression import compress
from sepgroupy.paper.sweep import preset
from sepgroupy.training import load_model
from stress.small import few_digits, use_digits_in_reports

Run = Callable[..., tuple[int, str, str]]
SWEEP = ("sweep", "rotmnist", "--set", "epochs=1", "--set", "device=cpu", "--folder", "all")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command in a folder of its own, on few digits; gives exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    digits = few_digits(24, 20)
    use_digits_in_reports(monkeypatch, digits, digits)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        return int(stop.value.code or 0), *capsys.readouterr()

    return call


def trained(run: Run, *options: str) -> Path:
    assert run(*SWEEP, *options, "--seeds", "1")[0] == 0
    (folder,) = (path.parent for path in Path("all").rglob("result.json"))
    return folder


def test_sweep_then_report(run: Run) -> None:
    code, out, _ = run(*SWEEP, "--models", "z2cnn,gc-p4cnn", "--widths", "2,published")
    assert (code, out) == (0, "12 runs are finished: all/runs.csv\n")
    assert len(Path("all/runs.csv").read_text().splitlines()) == 13
    code, out, _ = run("report", "all", "--folder", "page")
    assert (code, out) == (0, "page/report.html\n")
    text = Path("page/report.md").read_text()
    assert "| z2cnn, w=2 |" in text
    assert "| gc-p4cnn | 24,640 | 3 |" in text


def test_sweep_of_a_published_grid(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("sepgroupy.paper.sweep.sweep", lambda configs, folder, **_: seen.append(configs) or configs)
    for task, name in (("rotmnist", "paper"), ("rotmnist", "data-efficiency"), ("cifar10", "paper")):
        code, out, _ = run("sweep", task, "--preset", name, "--set", "epochs=1")
        assert (code, out) == (0, f"{len(seen[-1])} runs are finished: runs/runs.csv\n")
        assert seen[-1] == preset(task, name, epochs=1)


def test_the_command_lists_and_draws_the_redundancy_of_group_convolutions(run: Run) -> None:
    folder = trained(run, "--models", "p4cnn", "--widths", "2")
    code, out, _ = run("redundancy", str(folder))
    assert code == 0
    assert [f"conv{i}" in out for i in range(1, 8)] == [False] + 6 * [True]
    assert (folder / "redundancy.png").read_bytes().startswith(b"\x89PNG")


def test_compress_then_train_on_with_the_command_that_it_prints(run: Run) -> None:
    folder = trained(run, "--models", "p4cnn")
    code, out, _ = run("compress", str(folder), "--kind", "g")
    assert code == 0
    assert "24,810" in out
    assert "8,910" in out
    command = shlex.split(out.split("train on: ")[1])
    assert command[:5] == ["sepgroupy", "train", "rotmnist", "--model", "g-p4cnn-small"]
    state, expected = torch.load(folder / "g.pt"), compress(load_model(folder), "g").model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    code, out, _ = run(*command[1:], "--device", "cpu", "--folder", "on")
    assert code == 0
    after = load_model("on").state_dict()
    moved = (after["conv2.depthwise_weight"] - state["conv2.depthwise_weight"]).abs().max()
    assert 0 < moved < 0.05  # steps of Adam at 0.01, not other numbers
    assert run("compress", str(folder), "--kind", "g")[0] == 2  # the file is there
    code, _, err = run("compress", "on")
    assert code == 2
    assert "no dense group convolution" in err


def test_compress_keeps_the_width_and_the_data_of_the_run(run: Run) -> None:
    folder = trained(run, "--models", "p4cnn", "--widths", "3", "--samples", "10")
    code, out, _ = run("compress", str(folder), "--output", "thin.pt")
    assert code == 0
    assert "--weights thin.pt --width 3 --samples 10 --epochs 1" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sweep", "mnist", "--models", "z2cnn"), "task (='mnist')"),
        (("sweep", "rotmnist", "--models", "z3cnn"), "z3cnn"),
        (("sweep", "rotmnist", "--models", "z2cnn", "--seeds", "1;2"), "seeds (='1;2')"),
        (("sweep", "rotmnist", "--models", "z2cnn", "--samples", "some"), "whole numbers or all"),
        (("sweep", "rotmnist", "--models", "z2cnn", "--set", "epochs"), "NAME=VALUE"),
        (("sweep", "rotmnist", "--models", "z2cnn", "--set", "colour=red"), "'colour'"),
        (("sweep", "rotmnist", "--models", "z2cnn", "--set", "epochs=two"), "epochs (='two')"),
        (("sweep", "rotmnist", "--models", "z2cnn", "--set", "seed=2"), "seed is not the same"),
        (("sweep", "rotmnist"), "give one of the two"),
        (("sweep", "rotmnist", "--preset", "paper", "--models", "z2cnn"), "give one of the two"),
        (("sweep", "rotmnist", "--preset", "paper", "--seeds", "1"), "has its own widths, samples and seeds"),
        (("sweep", "rotmnist", "--preset", "thesis"), "paper, data-efficiency for rotmnist"),
        (("report", "nowhere"), "nowhere"),
    ],
)
def test_misuse_exits_2_with_one_line(arguments: tuple[str, ...], message: str, run: Run) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize("command", ["redundancy", "compress"])
def test_a_missing_run_exits_1(command: str, run: Run) -> None:
    code, _, err = run(command, "nowhere")
    assert code == 1
    assert "nowhere" in err
