"""Several processes: what they compute together is what one computes, and what happens to one is told by the first."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sepgroupy.data import ImageData, Split
from sepgroupy.errors import ArgumentError
from sepgroupy.nn import GroupBatchNorm2d, GroupBatchNorm3d
from sepgroupy.paper import RunConfig
from sepgroupy.training import evaluate, train
from sepgroupy.training._distributed import share_batch_norm
from stress.small import before_step, few_digits, outcome, same, small_run, together, use_digits

STEPS = 5


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    use_digits(monkeypatch, few_digits(test=29))  # an odd number


def two(folder: Path, **settings: Any) -> RunConfig:
    return small_run(folder, devices=2, sync_batchnorm=True, **settings)


def run_two(config: RunConfig, log: Path) -> list[int]:
    return together(2, partial(train, config), log)


@pytest.mark.parametrize("model", ["z2cnn", "gc-p4cnn-small"])
def test_two_processes_are_one_with_the_same_batches(model: str, tmp_path: Path) -> None:
    # Batches of 11 in parts of 6 and 5, the last one of 4. Steps are small, so that rounding stays what it is: Adam
    # would blow up that of gradients that are zero, and large steps that of a maximum between two equal values.
    settings = {"model": model, "batch_size": 11, "optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "epochs": 3}
    settings |= {"log_every": 1, "milestones": (1, 2), "clip": 5.0, "warmup": 1, "seed": 2}
    train(small_run(tmp_path / "one", **settings))
    assert run_two(two(tmp_path / "two", **settings), tmp_path / "log.txt") == [0, 0]
    (state, table), (other, other_table) = outcome(tmp_path / "one"), outcome(tmp_path / "two")
    for name, value in state.items():
        torch.testing.assert_close(value, other[name], atol=1e-4, rtol=1e-3, msg=name)
    for row, other_row in zip(table, other_table, strict=True):
        assert row.keys() == other_row.keys()
        for name, text in row.items():
            tolerance = (
                1e-6 if name.endswith("error") else 1e-3
            )  # the same answers, so that none is lost or twice there
            assert float(other_row[name]) == pytest.approx(float(text), rel=tolerance), name
    assert evaluate(tmp_path / "two", "cpu").error == pytest.approx(float(table[-1]["test_error"]))
    log = (tmp_path / "log.txt").read_text()
    assert log.count("epoch 3 of 3") == 1


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d, (7, 3)),
        (nn.BatchNorm2d, (7, 3, 4, 4)),
        (GroupBatchNorm2d, (7, 3, 8, 4, 4)),
        (GroupBatchNorm3d, (7, 3, 4, 2, 3, 3)),
    ],
)
def test_shared_statistics_are_those_of_the_whole_batch(
    norm: type[nn.modules.batchnorm._BatchNorm], shape: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(shape) * 5 + 100, torch.randn(shape)
    plain = norm(3)
    nn.init.uniform_(plain.weight)
    x.requires_grad_()
    (plain(x) * weights).sum().backward()
    model = nn.Sequential(nn.Identity(), nn.Sequential(norm(3)))
    model[1][0].load_state_dict(norm(3).state_dict() | {"weight": plain.weight.detach()})
    share_batch_norm(model)
    assert model.state_dict().keys() == {f"1.0.{name}" for name in plain.state_dict()}

    def action() -> None:
        rank = int(os.environ["RANK"])
        torch.distributed.init_process_group("gloo")
        mine = x.detach().tensor_split(2)[rank].requires_grad_()
        y = model(mine)
        (y * weights.tensor_split(2)[rank]).sum().backward()
        parameters = [p.grad for p in model.parameters()]
        evaluated = model.eval()(mine).detach()
        torch.save((y.detach(), mine.grad, parameters, model.state_dict(), evaluated), tmp_path / f"{rank}.pt")

    assert together(2, action, tmp_path / "log.txt") == [0, 0], (tmp_path / "log.txt").read_text()
    (y0, g0, p0, s0, e0), (y1, g1, p1, s1, e1) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)
    close(torch.cat([y0, y1]), plain(x).detach())
    close(torch.cat([g0, g1]), x.grad)
    for part, other, whole in zip(p0, p1, plain.parameters(), strict=True):
        close(part + other, whole.grad)
    plain_state = norm(3)
    plain_state(x)
    plain_state.weight.data = plain.weight.data
    close(torch.cat([e0, e1]), plain_state.eval()(x).detach())
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        close(s0[f"1.0.{name}"], plain_state.state_dict()[name])
        assert torch.equal(s0[f"1.0.{name}"], s1[f"1.0.{name}"])


def test_a_lost_process_ends_the_run_with_an_error_and_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_two(two(tmp_path / "whole"), tmp_path / "log.txt") == [0, 0]
    for lost in (0, 1):
        folder, log = tmp_path / f"lost-{lost}", tmp_path / f"lost-{lost}.txt"
        start = time.monotonic()
        with monkeypatch.context() as patch:
            before_step(patch, lambda: os.kill(os.getpid(), signal.SIGKILL), 2 * STEPS + 2, lost)
            codes = run_two(two(folder), log)
        assert time.monotonic() - start < 100  # gloo itself would wait for half an hour
        assert (codes[lost], codes[1 - lost]) == (-signal.SIGKILL, 1)
        error = f"error: process {1 - lost} of 2 ends because another one is gone; started again, the run goes on from"
        assert log.read_text().splitlines()[-1].startswith(error)
        assert run_two(two(folder), log) == [0, 0]
        assert same(outcome(folder), outcome(tmp_path / "whole"))


def test_a_signal_to_any_process_stops_all_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_two(two(tmp_path / "whole"), tmp_path / "log.txt") == [0, 0]
    with monkeypatch.context() as patch:
        before_step(patch, lambda: os.kill(os.getpid(), signal.SIGUSR1), STEPS + 1, rank=1)
        assert run_two(two(tmp_path / "run"), tmp_path / "log.txt") == [130, 0]
    # Step STEPS + 2 tells all of it, which they read after the next one.
    assert f"stopped after step {STEPS + 3} of {6 * STEPS} and saved" in (tmp_path / "log.txt").read_text()
    assert run_two(two(tmp_path / "run"), tmp_path / "log.txt") == [0, 0]
    assert same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


def test_what_all_refuse_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used/thesis.tex").touch()
    log = tmp_path / "log.txt"
    assert run_two(two(tmp_path / "used"), log) == [2, 0]
    assert run_two(two(tmp_path / "small", batch_size=47), log) == [2, 0]
    digits = few_digits()
    images = digits.train.images.clone()
    images[:] = float("nan")
    spoiled = ImageData("spoiled", Split(images, digits.train.labels), digits.test, 10)
    use_digits(monkeypatch, spoiled)
    assert run_two(two(tmp_path / "nan"), log) == [1, 0]
    lines = log.read_text().splitlines()
    assert [re.findall("in use|leaves 1 of 48|is nan in step 1 ", line) for line in lines] == [
        ["in use"], ["leaves 1 of 48"], ["is nan in step 1 "],
    ]  # fmt: skip


def test_as_many_processes_as_are_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ArgumentError, match=r"devices \(=1\) times nodes \(=1\) must be the 2 processes that there are"
    ):
        train(small_run(tmp_path / "run"))
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(ArgumentError, match=r"this machine cannot do device cpu.*precision 16-mixed"):
        train(small_run(tmp_path / "run", precision="16-mixed"))
    assert not (tmp_path / "run").exists()


COMMAND = """
import sys
from sepgroupy.cli import main
main()
"""


@pytest.mark.parametrize("launcher", ["own", "torchrun"])
def test_the_command_is_started_by_itself_or_by_torchrun(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "command.py").write_text(COMMAND)
    start = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if launcher == "torchrun" else []
    options = "--model gc-p4cnn-small --width 2 --samples 32 --batch-size 16 --epochs 1 --device cpu --devices 2"
    done = subprocess.run(
        [sys.executable, *start, "command.py", "train", "rotmnist", *options.split(), "--folder", "run"],
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first == "gc-p4cnn-small on digits, run directory run"
    monkeypatch.undo()
    assert f"test error {evaluate(tmp_path / 'run', 'cpu').error:.2f} %" in last
