"""What belongs to a release and can be checked from the sources."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import sepgroupy
from sepgroupy.info import environment_report

ROOT = Path(__file__).parent.parent


def test_all_files_name_the_same_version() -> None:
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert citation
    assert project
    assert citation[1] == project[1] == sepgroupy.__version__


def test_the_environment_report_names_what_an_issue_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEPGROUPY_BUFFER_POOL_MIB", "64")
    lines = environment_report().splitlines()
    for start in ("sepgroupy ", "Python ", "torch ", "numpy ", "devices ", "SEPGROUPY_BUFFER_POOL_MIB "):
        assert sum(line.startswith(start) for line in lines) == 1
    assert [line.split()[1] for line in lines if line.startswith("backend ")] == list(sepgroupy.available_backends())
    assert str(Path.home()) not in environment_report()
