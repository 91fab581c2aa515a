from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from sepgroupy.training import RunConfig

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
PAPER = {"rotmnist": RunConfig.for_task("rotmnist"), "cifar": RunConfig.for_task("cifar10")}


@pytest.fixture(params=PAPER)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def configured(name: str, *arguments: str) -> RunConfig:
    """Return the configuration that a command line means."""
    module: dict[str, Any] = runpy.run_path(str(EXPERIMENTS / name / "main.py"))
    seen: list[RunConfig] = []
    module["main"].__globals__["run"] = seen.append
    assert module["main"](arguments) == 0
    return seen[0]
