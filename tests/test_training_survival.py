"""What may come over a run of days, and that nothing is lost by it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sepgroupy.data import ImageData, Split
from sepgroupy.errors import ArgumentError, DataError, RunError
from sepgroupy.models import build_model
from sepgroupy.paper import RunConfig
from sepgroupy.training import MemoryData, evaluate, load_model, read_result, train
from sepgroupy.training._outcome import revision_of
from stress.kills import survive
from stress.small import (
    before_step,
    epoch_order,
    few_digits,
    finished,
    fork,
    outcome,
    read_checkpoint,
    same,
    small_run,
    use_digits,
)  # fmt: skip

STEPS = 5  # an epoch of a small run


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return few_digits()


@pytest.fixture(autouse=True)
def few(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    use_digits(monkeypatch, digits, save_seconds=300.0)


@pytest.fixture(scope="module")
def whole(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train a small run that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        use_digits(patch, digits)
        train(small_run(folder))
    return outcome(folder)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_killed_and_resumed_is_never_killed(tmp_path: Path) -> None:
    counts = survive(6, tmp_path)
    assert counts["while a checkpoint was written"] >= 2


@pytest.mark.parametrize(
    ("name", "step"),
    [("SIGINT", 0), ("SIGTERM", 7), ("SIGUSR1", 2 * STEPS - 1), ("SIGINT", 6 * STEPS - 1), ("SIGUSR1", 7)],
)
def test_a_signal_stops_the_run_after_the_step_and_saves_it(
    name: str, step: int, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    number = signal.Signals[name]
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        before_step(patch, partial(send, number), step)
        with pytest.raises(KeyboardInterrupt):
            train(small_run(tmp_path))
    assert signal.getsignal(number) is handler
    assert read_checkpoint(tmp_path)["global_step"] == step + 1
    assert f"{name}: stopped after step {step + 1} of {6 * STEPS} and saved in {tmp_path}" in caplog.text
    train(small_run(tmp_path))
    assert same(outcome(tmp_path), whole)


def test_a_signal_breaks_off_an_evaluation(whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_run(tmp_path, test_batch_size=10)
    with monkeypatch.context() as patch:
        accumulate = MemoryData.accumulate_metrics

        def interrupted(*arguments: Any) -> Any:
            send(signal.SIGTERM)
            return accumulate(*arguments)

        patch.setattr(MemoryData, "accumulate_metrics", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    saved = read_checkpoint(tmp_path)
    assert (saved["global_step"], len(saved["run"]["history"])) == (2 * STEPS, 1)
    train(config)
    assert same((outcome(tmp_path)[0], 0), (whole[0], 0))


@pytest.mark.parametrize("numbers", ["SIGTERM SIGTERM", "SIGTERM SIGINT", "SIGINT SIGINT"])
def test_ctrl_c_as_the_second_signal_does_not_wait(
    numbers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = []

    def send_all() -> None:
        for number in numbers.split():
            send(signal.Signals[number])
        reached.append(True)

    before_step(monkeypatch, send_all, STEPS + 1)
    with pytest.raises(KeyboardInterrupt):
        train(small_run(tmp_path))
    waits = numbers == "SIGTERM SIGTERM"
    assert reached == [True] * waits
    assert read_checkpoint(tmp_path)["global_step"] == STEPS + 2 * waits  # the step is done, or the last epoch is left


def test_checkpoints_are_written_by_time_too(whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_digits(monkeypatch, few_digits(), save_seconds=0.0)
    with monkeypatch.context() as patch:
        before_step(patch, partial(pytest.fail, "as if killed"), 8)
        with pytest.raises(pytest.fail.Exception):
            train(small_run(tmp_path))
    assert read_checkpoint(tmp_path)["global_step"] == 8
    train(small_run(tmp_path))
    assert same(outcome(tmp_path), whole)


def limit_files(size: int) -> None:
    """Let no file grow beyond a size: to a program that is a disk that is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_full_disk_is_told_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_step(monkeypatch, partial(pytest.fail, "it began"), 0)

    def action() -> None:
        limit_files(4096)
        train(small_run(tmp_path / "run"))

    assert finished(fork(action, tmp_path / "log.txt")) == 1
    assert re.fullmatch(r"error: .*File too large.*\n", (tmp_path / "log.txt").read_text())
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.json"}


def test_a_disk_that_becomes_full_loses_nothing_that_was_saved(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        before_step(patch, partial(limit_files, 4096), 2 * STEPS + 1)
        assert finished(fork(lambda: train(small_run(tmp_path / "run")), tmp_path / "log.txt")) == 1
    assert "File too large" in (tmp_path / "log.txt").read_text()
    assert read_checkpoint(tmp_path / "run")["global_step"] == 2 * STEPS
    assert not list((tmp_path / "run").glob(".last*"))
    train(small_run(tmp_path / "run"))
    assert same(outcome(tmp_path / "run"), whole)


def test_what_a_killed_writer_has_left_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    names = (".last.0123abcd.ckpt", ".config.0123abcd.json", ".last.mine.ckpt", ".notes")
    for name in names:
        (tmp_path / name).touch()
    train(small_run(tmp_path, epochs=1))
    assert {path.name for path in tmp_path.glob(".*")} == {".last.mine.ckpt", ".notes"}


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(ArgumentError, match=r"is being trained in by another process"):
        train(small_run(tmp_path))
    os.close(other)
    train(small_run(tmp_path, epochs=1))


def test_a_nan_loss_stops_the_run_and_names_the_step(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = digits.train.images.clone()
    images[epoch_order(48, 1, 0)[33]] = float("nan")  # in the fourth batch of ten
    spoiled = ImageData("spoiled", Split(images, digits.train.labels), digits.test, 10)
    use_digits(monkeypatch, spoiled, save_seconds=0.0)
    with pytest.raises(RunError, match=r"the loss is nan in step 4 \(epoch 1 of 6\).*lower lr, clip or warmup"):
        train(small_run(tmp_path))
    saved = read_checkpoint(tmp_path)
    assert saved["global_step"] == 3
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_gradients_are_clipped(tmp_path: Path) -> None:
    settings = {"epochs": 1, "batch_size": 48, "optimizer": "sgd", "lr": 1.0, "weight_decay": 0.0}
    torch.manual_seed(1)
    start = torch.cat([p.flatten() for p in build_model("gc-p4cnn-small", width=3).parameters()])
    moved = {}
    for clip in (None, 0.01, 1e6):
        train(small_run(tmp_path / str(clip), **settings, clip=clip))
        end = torch.cat([p.flatten() for p in load_model(tmp_path / str(clip)).parameters()]).detach()
        moved[clip] = (end - start).detach()
    assert float(moved[0.01].norm()) == pytest.approx(0.01, rel=1e-3)
    assert torch.equal(moved[1e6], moved[None])
    torch.testing.assert_close(moved[0.01] / 0.01, moved[None] / moved[None].norm(), atol=1e-4, rtol=0)


def test_the_rate_rises_then_drops() -> None:
    config = RunConfig.for_task("rotmnist", lr=6.0, warmup=2, milestones=(3, 4))
    rates = [config.learning_rate(step, steps=3) for step in range(14)]
    assert rates == pytest.approx([1, 2, 3, 4, 5, 6, 6, 6, 6, 0.6, 0.6, 0.6, 0.06, 0.06])


def test_a_run_starts_from_given_weights(digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(small_run(tmp_path / "first", epochs=1))
    state = load_model(tmp_path / "first").state_dict()
    torch.save(state, tmp_path / "state.pt")
    for weights in ("first", "state.pt"):
        config = small_run(tmp_path / f"from-{weights}", epochs=1, lr=1e-30, weights=str(tmp_path / weights))
        train(config)
        for name, value in load_model(config.run_folder).named_parameters():
            assert torch.equal(value, state[name]), name
    other = small_run(tmp_path / "other", width=4, weights=str(tmp_path / "state.pt"))
    with pytest.raises(DataError, match=r"state\.pt does not fit the network of this run, gc-p4cnn-small: "):
        train(other)
    with pytest.raises(DataError, match="nowhere cannot be read"):
        train(small_run(tmp_path / "another", weights="nowhere"))


def test_folders_of_older_versions_are_read_and_gone_on_with(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        before_step(patch, partial(pytest.fail, "as if killed"), 3 * STEPS)
        with pytest.raises(pytest.fail.Exception):
            train(small_run(tmp_path))
    younger = {"warmup", "clip", "devices", "nodes", "strategy", "sync_batchnorm", "weights"}
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in younger}))
    saved = read_checkpoint(tmp_path)
    del saved["precision"], saved["run"]["totals"], saved["run"]["seconds"]
    torch.save(saved | {"loops": {}, "callbacks": {}, "lr_schedulers": [{"last_epoch": 3}]}, tmp_path / "last.ckpt")
    result = train(small_run(tmp_path))
    assert same(outcome(tmp_path), whole)
    values = json.loads((tmp_path / "result.json").read_text())
    del values["revision"]
    (tmp_path / "result.json").write_text(json.dumps(values))
    assert read_result(tmp_path).revision == ""
    assert train(small_run(tmp_path)).test_loss == result.test_loss == evaluate(tmp_path).loss


def test_a_batch_too_small_for_batch_norm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"batch_size \(=47\) leaves 1 of 48 images .* need 2"):
        train(small_run(tmp_path / "run", model="z2cnn", batch_size=47))
    assert not (tmp_path / "run").exists()


def test_the_revision_is_that_of_the_files(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=Test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert revision_of(tmp_path) == ""
    try:
        git("init", "-q")
    except FileNotFoundError:
        pytest.skip("there is no git")
    (tmp_path / "file").write_text("one")
    assert revision_of(tmp_path) == ""
    git("add", "file")
    git("commit", "-qm", "one")
    assert revision_of(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("two")
    assert revision_of(tmp_path) == git("rev-parse", "HEAD") + "-dirty"
