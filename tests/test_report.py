from __future__ import annotations

import csv
import html
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from browser import BROWSER, open_page
from sepgroupy.data import Split, rotate
from sepgroupy.errors import ArgumentError, DataError
from sepgroupy.paper import RunConfig, save_run_weights
from sepgroupy.paper.report import write_report
from sepgroupy.paper.report._figures import style_of
from sepgroupy.paper.report._rotation_curve import ANGLES, errors_by_angle
from sepgroupy.paper.report._rotations import error_averaged
from sepgroupy.paper.report._run_groups import group_runs
from sepgroupy.paper.report._sections import order
from sepgroupy.paper.sweep import Run, find_runs, grid, sweep
from sepgroupy.training import Result, evaluate, load_model, score
from stress.small import few_digits, use_digits_in_reports


@pytest.fixture(scope="module")
def few() -> Iterator[None]:
    """Let every run and report of these tests read few digits."""
    with pytest.MonkeyPatch.context() as patch:
        use_digits_in_reports(patch, few_digits(24, 20), few_digits(24, 20, rotated=False))
        yield


@pytest.fixture(scope="module")
def runs(few: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a tiny sweep, two models at two numbers of images, and two runs more."""
    folder = tmp_path_factory.mktemp("runs")
    shared: dict[str, Any] = {"epochs": 1, "batch_size": 12, "device": "cpu"}
    sweep(grid("rotmnist", ["z2cnn", "p4cnn"], samples=[12, None], seeds=[1, 2], **shared), folder)
    sweep(grid("rotmnist", ["gc-p4cnn-small"], seeds=[1, 2], **shared | {"epochs": 2}), folder)
    next(run for run in find_runs([folder]) if run.config.epochs == 2).folder.joinpath("result.json").unlink()
    return folder


@pytest.fixture(scope="module")
def report(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert write_report([runs], folder) == folder / "report.html"
    return folder


def made_up(error: float, **changes: Any) -> Run:
    config = RunConfig.for_task("rotmnist", **changes)
    return Run(Path("nowhere"), config, Result(error, 0.0, 0.0, 0.0, 60.0, 1000, "digits", "0", {}, "train"))


def test_runs_that_differ_in_their_seed_alone_are_one_group(few: None) -> None:
    runs = [
        made_up(5.0, model="p4cnn", seed=1),
        made_up(7.0, model="p4cnn", seed=2, samples=24, device="cpu"),  # 24 are all there are
        made_up(9.0, model="p4cnn", seed=3, folder="somewhere"),
        made_up(20.0, model="p4cnn", samples=6),
        made_up(4.0, model="gc-p4cnn"),
        made_up(1.0, model="gc-p4cnn", width=7),
        made_up(8.0, model="z2cnn", epochs=7),
    ]
    paper, other = group_runs([runs[-1], *runs[:-1]])
    assert [(g.label, g.train_images, len(g.runs)) for g in paper.groups] == [
        ("p4cnn", 6, 1), ("p4cnn", 24, 3), ("gc-p4cnn", 24, 1), ("gc-p4cnn, w=7", 24, 1)
    ]  # fmt: skip
    assert [g.label for g in paper.main] == ["p4cnn", "gc-p4cnn", "gc-p4cnn, w=7"]
    group = paper.groups[1]
    assert (group.mean, group.sd) == (7.0, stdev([5.0, 7.0, 9.0]))
    assert paper.groups[2].sd is None
    assert group.paper_error == "2.23 ± 0.061"
    assert paper.groups[3].paper_error is None
    assert (paper.changes, other.changes) == ({}, {"epochs": 7})


def test_a_width_of_a_published_network_is_that_network(few: None) -> None:
    runs = [made_up(3.0, model="g-p4cnn", width=10), made_up(4.0, model="g-p4cnn-small", seed=2)]
    (group,) = group_runs([*runs, made_up(5.0, model="g-p4cnn-small", width=10, seed=3)])[0].groups
    assert (group.label, group.paper_error, len(group.runs)) == ("g-p4cnn-small", "2.60 ± 0.098", 3)


@pytest.mark.parametrize(
    ("augmentation", "printed"),
    [((0, False), "6.72"), ((4, True), "5.43"), ((4, False), None), ((0, True), None), ((2, True), None)],
)
def test_only_the_paper_s_augmentation_has_the_paper_s_figure(
    augmentation: tuple[int, bool], printed: str | None
) -> None:
    crop, hflip = augmentation
    run = Run(Path("x"), RunConfig.for_task("cifar10", samples=9, crop=crop, hflip=hflip), made_up(1).result)
    assert group_runs([run])[0].groups[0].paper_error == printed


def test_each_step_of_the_paper_s_order_is_compared_seed_by_seed() -> None:
    names = {"gc": "gc-p4cnn", "p4": "p4cnn", "small": "gc-p4cnn-small", "z2": "z2cnn"}

    def compared(**errors: dict[int, float]) -> tuple[str, dict[str, list[str]]]:
        runs = []
        for short, values in errors.items():
            for seed, error in values.items():
                run = made_up(error, model=names[short], seed=seed, samples=9)
                assert run.result is not None
                size = 300 if short == "small" else 1000
                runs.append(replace(run, result=replace(run.result, parameters=size)))
        text, table = order(group_runs(runs)[0].main)
        return " ".join(text), {} if table is None else {str(row[0]): list(row[1:]) for row in table.rows}

    text, steps = compared(z2={1: 9}, gc={1: 3}, p4={1: 4})
    assert text.startswith("The paper's order is gc-p4cnn < p4cnn < z2cnn. The table")
    assert steps == {
        "gc-p4cnn < p4cnn": ["1.00", "1", "open"],
        "p4cnn < z2cnn": ["5.00", "1", "open"],
    }
    text, steps = compared(z2={1: 9, 2: 9.5}, small={1: 10, 2: 10}, gc={1: 5.5, 2: 6.5, 3: 90}, p4={1: 4, 2: 5.5, 4: 0})
    assert "Among networks of about 1,000 parameters it is gc-p4cnn < p4cnn < z2cnn." in text
    assert steps == {
        "gc-p4cnn < p4cnn": ["-1.25 ± 0.25", "2", "reversed"],
        "p4cnn < z2cnn": ["4.50 ± 0.50", "2", "the same"],
        "p4cnn < gc-p4cnn-small": ["5.25 ± 0.75", "2", "the same"],
        "gc-p4cnn-small < z2cnn": ["-0.75 ± 0.25", "2", "reversed"],
    }
    assert compared(gc={1: 4, 2: 6}, p4={1: 4, 2: 7})[1] == {"gc-p4cnn < p4cnn": ["0.50 ± 0.50", "2", "open"]}
    assert compared(gc={1: 4}, p4={2: 7})[1] == {"gc-p4cnn < p4cnn": ["", "0", "open"]}
    assert compared(gc={1: 3}) == ("", {})


def test_errors_by_angle_are_those_of_rotated_upright_digits_and_are_stored(runs: Path) -> None:
    run = next(run for run in find_runs([runs]) if run.config.model == "p4cnn")
    (run.folder / "angles.csv").unlink(missing_ok=True)
    errors = errors_by_angle(run)
    test, model = few_digits(24, 20, rotated=False).test, load_model(run.folder)
    for angle, error in zip(ANGLES, errors, strict=True):
        assert score(model, Split(rotate(test.images, math.radians(angle)), test.labels)).error == error
    assert errors[:4] == errors[4:8] == errors[8:12]
    path = run.folder / "angles.csv"
    path.write_text(path.read_text().replace(f"0.0,{errors[0]}\n", "0.0,12.5\n", 1))
    assert errors_by_angle(run) == [12.5, *errors[1:]]  # not measured again
    for broken in ("", "angle_degrees,test_error_percent\n0,1\n", "\0"):
        path.write_text(broken)
        assert errors_by_angle(run) == errors


def test_the_tables_say_what_the_runs_say(runs: Path, report: Path) -> None:
    text = (report / "report.md").read_text()
    for model, parameters, paper in (("z2cnn", "25,210", "5.20 ± 0.110"), ("p4cnn", "24,810", "2.23 ± 0.061")):
        errors = {
            count: [run.result.test_error for run in find_runs([runs])
                    if run.result and (run.config.model, run.config.samples) == (model, count)]
            for count in (12, None)
        }  # fmt: skip
        cells = {n: f"{sum(some) / 2:.2f} ± {stdev(some):.2f}" for n, some in errors.items()}
        assert f"| {model} | {parameters} | 2 | {cells[None]} | {paper} |" in text
        assert f"| {model} | {cells[12]} | {cells[None]} |" in text
    assert "1 more run is unfinished" in text
    assert "9 runs, trained with sepgroupy" in text
    for heading in ("parameters", "training images", "angle", "Redundancy of p4cnn", "Cost"):
        assert re.search(rf"^### .*{heading}", text, re.MULTILINE), heading
    assert "batch_size 12" in text
    rows = (report / "runs.csv").read_text().splitlines()
    assert len(rows) == 10


def test_the_error_averaged_over_rotations_is_measured_once(runs: Path, tmp_path: Path) -> None:
    write_report([runs], tmp_path, rotations=2)
    text = (tmp_path / "report.md").read_text()
    for model in ("z2cnn", "p4cnn"):
        found = [run for run in find_runs([runs]) if (run.config.model, run.config.samples) == (model, None)]
        errors = [evaluate(run.folder, "cpu", rotations=2).error for run in found]
        plain = [run.result.test_error for run in found if run.result]
        cells = [f"{sum(values) / 2:.2f} ± {stdev(values):.2f}" for values in (plain, errors)]
        assert f" | 2 | {cells[0]} | {cells[1]} | " in text
    assert "k·45°, k = 0..1" in text
    path = found[0].folder / "rotations-2.json"
    path.write_text('{"test_error": 12.5}')
    assert error_averaged(found[0], 2) == 12.5  # not measured again
    for broken in ("", "[]", "{}", '{"test_error": "low"}'):
        path.write_text(broken)
        assert error_averaged(found[0], 2) == errors[0]
    with pytest.raises(ArgumentError, match="rotations"):
        write_report([runs], tmp_path, rotations=0)


def test_a_table_of_runs_says_what_the_runs_say(runs: Path, report: Path, tmp_path: Path) -> None:
    """A committed table and the parameters of some runs make the report again, without the folders of the runs."""
    table = shutil.copy(report / "runs.csv", tmp_path / "runs.csv")
    found, rows = [run for run in find_runs([runs]) if run.result], find_runs([table])
    assert [run.identity for run in rows] == [run.identity for run in found]
    assert [run.result for run in rows] == [run.result for run in found]
    assert not any(run.has_parameters for run in rows)
    write_report([table], tmp_path / "without", rotations=2)
    text = (tmp_path / "without" / "report.md").read_text()
    assert "### Cost" in text
    assert "Redundancy" not in text
    assert "against angle" not in text

    trained = next(run for run in found if (run.config.model, run.config.samples) == ("p4cnn", None))
    row = next(run for run in rows if run.identity == trained.identity)
    row.folder.mkdir()
    save_run_weights(trained.folder, row.folder / "p4cnn.npz")
    torch.testing.assert_close(row.load_model().state_dict(), trained.load_model().state_dict(), rtol=0, atol=0)
    assert not row.load_model().training
    write_report([table], tmp_path / "with", rotations=2)
    text = (tmp_path / "with" / "report.md").read_text()
    assert f" | {evaluate(trained.folder, 'cpu', rotations=2).error:.2f} (1 of 2) | " in text
    assert "Redundancy of p4cnn" in text
    assert f"| p4cnn (1 of 2) | {errors_by_angle(trained)[0]:.2f} | " in text.split("against angle")[1]


@pytest.mark.parametrize(
    ("column", "text"), [("epochs", "many"), ("model", "resnet44"), ("test_error", ""), ("schedule", "slow")]
)
def test_a_broken_row_of_a_table_is_named_and_left_out(
    column: str, text: str, report: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (report / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[3][column] = text
    with (tmp_path / "runs.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    assert len(find_runs([tmp_path / "runs.csv"])) == len(rows) - 1
    assert f"left out: a row of {tmp_path / 'runs.csv'} is not that of a run" in caplog.text


def test_html_and_markdown_have_the_same_tables(report: Path) -> None:
    page = (report / "report.html").read_text()
    cells = [html.unescape(cell) for cell in re.findall(r"<t[dh]\b[^>]*>(.*?)</t[dh]>", page)]
    lines = [line for line in (report / "report.md").read_text().splitlines() if line.startswith("| ")]
    expected = [cell.strip() for line in lines if not line.startswith("| :--") for cell in line.split("|")[1:-1]]
    assert cells == expected
    assert len(cells) > 100


def test_figures_stand_alone_too(report: Path) -> None:
    links = re.findall(r"\]\((.*?)\)", (report / "report.md").read_text())
    assert sorted(links) == sorted(path.name for path in report.glob("*.svg"))
    for link in links:
        texts = " ".join(ElementTree.parse(report / link).getroot().itertext())
        assert "(%)" in texts
        assert "<script" not in (report / link).read_text()


def test_the_page_needs_nothing_else_and_is_always_the_same(runs: Path, report: Path, tmp_path: Path) -> None:
    page = (report / "report.html").read_text()
    ids = re.findall(r'\bid="(.*?)"', page)
    assert len(ids) == len(set(ids)) > 50
    assert set(re.findall(r'(?:url\(|href=")#(.*?)["\)]', page)) <= set(ids)
    assert not re.findall(r'(?:src|href)="(?!#|data:,")[^"]*"', page)
    write_report([runs], tmp_path)
    assert (tmp_path / "report.html").read_text() == page


def test_names_are_escaped(report: Path) -> None:
    from sepgroupy.pages import Chapter, Page, Section, Table, to_html

    page = to_html(Page("a < b", ["<i>"], [Chapter("&", [], [Section("s", tables=[Table(["<b>"], [["x"]])])])]))
    assert "a &lt; b" in page
    assert not {"<i>", "<b>"} & set(re.findall(r"<\w>", page))


def test_models_of_a_kind_look_alike_and_kinds_do_not() -> None:
    kinds = ["z2cnn", "c-z2cnn", "p4cnn", "g-p4cnn", "gc-p4cnn"]
    for name in ("color", "marker"):
        assert len({style_of(model)[name] for model in kinds}) == 5
    assert style_of("gc-p4cnn, w=9") == style_of("gc-p4m-resnet44") == style_of("gc-p4cnn")
    assert style_of("resnet44") == style_of("z2cnn")
    assert style_of("gc-p4cnn-small") != style_of("gc-p4cnn")


def test_there_is_nothing_to_report_on_without_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished run"):
        write_report([tmp_path])


@pytest.mark.skipif(BROWSER is None, reason="there is no browser: install chromium")
@pytest.mark.parametrize("width", [390, 1200])  # a phone and a desk
def test_opens_in_a_browser(report: Path, tmp_path: Path, width: int) -> None:
    page = (report / "report.html").read_text()
    found = open_page(page, width, tmp_path)
    assert found["failures"] == found["fetched"] == []
    inner, scrolled = found["page"]
    assert inner == width
    assert scrolled <= inner, "the page is wider than the screen"
    assert len(found["figures"]) == page.count("<svg") >= 6
    for figure in found["figures"]:
        assert 300 < figure["width"] <= width
        assert figure["height"] > 200
    assert min(found["letters"]) > 8  # pixels
    assert found["rows"] == page.count("<tr>") - page.count("<thead>")
