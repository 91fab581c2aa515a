"""The page to play with: what it computes, compared with PyTorch, and real clicks, touches and keys."""

from __future__ import annotations

import base64
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import sepgroupy
from browser import BROWSER
from browser_page import Page
from sepgroupy.cli import app
from sepgroupy.data import rotate
from sepgroupy.errors import ArgumentError
from sepgroupy.models import RotMNISTNet, build_model
from sepgroupy.paper import load_digits
from sepgroupy.play import build_page, describe_network, save_page, serve, shipped_networks

in_browser = pytest.mark.skipif(BROWSER is None, reason="there is no browser: install chromium")
BARS = """[...document.querySelectorAll("#cards .card")].map(
    (card) => [...card.querySelectorAll(".bar")].map((bar) => +bar.dataset.probability))"""
CHANGES = "[...document.querySelectorAll('.change')].map(e => +e.dataset.change)"


@cache
def first_test_images() -> torch.Tensor:
    """Return the first upright test image of each class, (10, 1, 28, 28)."""
    test = load_digits(rotated=False).test
    return torch.stack([test.images[test.labels == label][0] for label in range(10)])


def test_the_digits_are_the_first_test_images_of_each_class() -> None:
    stored = json.loads((Path(sepgroupy.__file__).parent / "play" / "digits.json").read_text())["digits"]
    for label, digit in enumerate(stored):
        pixels = np.frombuffer(base64.b64decode(digit["pixels"]), np.uint8).reshape(1, 28, 28)
        assert digit["label"] == label
        torch.testing.assert_close(torch.from_numpy(pixels / np.float32(255)), first_test_images()[label])


def test_the_page_is_one_file_and_replaces_none(tmp_path: Path) -> None:
    path = tmp_path / "play.html"
    save_page(path)
    text = path.read_text()
    assert "{{" not in text
    assert "src=" not in text
    assert text.count("href=") == text.count('href="https://arxiv.org') + text.count('href="data:,"')
    assert len(text) < 1_000_000
    with pytest.raises(ArgumentError, match="exists already"):
        save_page(path)
    with pytest.raises(ArgumentError, match=r"must end in \.html"):
        save_page(tmp_path / "play")


def test_names_of_networks_cannot_end_the_script() -> None:
    name = "</script><script>alert(1)</script>{{ style }}"
    page = build_page({name: build_model("gc-p4cnn-small").eval()})
    assert "alert(1)</script>" not in page


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.Flatten(), nn.Linear(4 * 13 * 13, 10)), "step _0 .*stride"),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Sigmoid()), "Sigmoid"),
        (nn.Conv2d(1, 10, 3), "must return class scores"),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 6000)), "exported weights"),
    ],
)
def test_refuses_networks_that_it_cannot_run(network: nn.Module, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        describe_network("mine", network.eval())


def test_shows_one_to_four_networks() -> None:
    with pytest.raises(ArgumentError, match="0 entries"):
        build_page({})


def test_serves_the_page_and_nothing_else() -> None:
    found: list[str] = []
    ready = threading.Event()

    def started(address: str) -> None:
        found.append(address)
        ready.set()

    threading.Thread(target=serve, args=("<p>Ω</p>", 0, started), daemon=True).start()
    assert ready.wait(10)
    with urllib.request.urlopen(found[0]) as answer:
        assert answer.read().decode() == "<p>Ω</p>"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(found[0] + "etc/passwd")


def test_the_command_saves_a_page_with_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sepgroupy.training.load_model", lambda run: build_model("gc-p4cnn-small").eval())
    result = CliRunner().invoke(app, ["play", "runs/mine", "--save", str(tmp_path / "mine.html")])
    assert result.exit_code == 0, result.output
    assert '"name":"runs/mine"' in (tmp_path / "mine.html").read_text()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("play")
    save_page(folder / "play.html")
    with Page((folder / "play.html").as_uri(), folder / "profile") as page:
        yield page


def probabilities(page: Page) -> torch.Tensor:
    return torch.tensor(page.evaluate(BARS), dtype=torch.float64)  # (networks, classes)


@in_browser
def test_rotating_by_90_degrees_changes_only_the_plain_network(page: Page) -> None:
    page.click("[data-digit='7']")
    before = probabilities(page)
    page.click("#on")
    change = (probabilities(page) - before).abs().amax(1)
    assert change[0] > 0.01
    assert change[1] < 1e-4
    page.wait("document.querySelectorAll('.change')[1].dataset.change")
    assert page.evaluate(CHANGES)[1] < 1e-4
    page.click("#back")
    assert page.evaluate("document.getElementById('angle').value") == "0"


@in_browser
@pytest.mark.parametrize(("digit", "degrees", "flip"), [(7, 37, False), (2, 233, True)])
def test_computes_what_pytorch_computes(page: Page, digit: int, degrees: int, flip: bool) -> None:
    page.click(f"[data-digit='{digit}']")
    page.evaluate(f"change({{angle: {degrees}, reflected: {str(flip).lower()}}})")
    image = first_test_images()[digit : digit + 1]
    image = rotate(image.flip(-1) if flip else image, np.deg2rad(degrees))
    with torch.no_grad():
        expected = torch.cat([network(image).exp() for network in shipped_networks().values()])
    torch.testing.assert_close(probabilities(page).float(), expected, atol=1e-5, rtol=0)
    page.evaluate("change({angle: 0, reflected: false})")


@in_browser
def test_the_keyboard_the_curve_and_the_layers(page: Page) -> None:
    page.click("[data-digit='4']")
    page.evaluate("document.getElementById('angle').focus()")
    for _ in range(3):
        page.press("ArrowRight")
    assert page.evaluate("document.getElementById('angle-text').textContent") == "3°"
    page.wait("queue.length === 0")
    plain, equivariant = page.evaluate("[...document.querySelectorAll('.repeat')].map(e => +e.dataset.difference)")
    assert plain > 0.1
    assert equivariant < 1e-4
    points = page.evaluate("document.querySelectorAll('#curve polyline')[1].getAttribute('points')").split()
    heights = np.array([float(point.split(",")[1]) for point in points])
    assert np.ptp(heights) > 10  # pixels: the period can be seen
    assert np.abs(heights[18:] - heights[:-18]).max() <= 0.1 + 1e-9
    page.drag([page.position("#curve", across=0.5)])
    assert abs(float(page.evaluate("document.getElementById('angle').value")) - 180) < 12
    errors = "[...document.querySelectorAll('.net p')].map(e => +e.dataset.error)"
    for layer in (2, 5):
        page.evaluate(f"change({{layer: {layer}}})")
        page.evaluate("new Promise((done) => setTimeout(done, 300))")
        plain, equivariant = page.evaluate(errors)
        assert plain > 0.1
        assert equivariant < 1e-6
    assert page.failures == []


@in_browser
def test_reads_a_drawing(page: Page) -> None:
    page.click("#clear")
    page.drag([page.position("#pad", 0.5, y) for y in np.linspace(0.2, 0.8, 7)])  # a 1
    page.wait("state.digit === -1 && state.image.some((value) => value > 0.5)")
    page.evaluate("new Promise((done) => setTimeout(done, 300))")
    image = np.reshape(page.evaluate("[...state.image]"), (28, 28)) > 0.5
    rows, columns = image.any(1).sum(), image.any(0).sum()
    assert 18 <= rows <= 22
    assert columns < 8
    assert probabilities(page).argmax(1).tolist() == [1, 1]


@in_browser
def test_fits_a_phone_and_answers_to_touch(tmp_path: Path) -> None:
    group = RotMNISTNet("g", 2, group="p4m").eval()
    save_page(tmp_path / "play.html", {"p4m": group, "none": RotMNISTNet("plain", 2).eval()})
    with Page((tmp_path / "play.html").as_uri(), tmp_path / "profile", (360, 740)) as page:
        page.send("Emulation.setTouchEmulationEnabled", enabled=True)
        page.tap("#reflect")
        page.wait("document.getElementById('reflect').getAttribute('aria-pressed') === 'true'")
        page.wait("document.querySelector('.net p').dataset.error")
        assert page.evaluate("document.querySelectorAll('.net p')[0].dataset.error < 1e-6")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.requests == [(tmp_path / "play.html").as_uri()]
        assert page.failures == []
