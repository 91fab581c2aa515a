"""Importing the core is cheap and needs torch and numpy alone."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

EXTRAS = (
    "lightning",
    "lightning_fabric",
    "pydantic",
    "torchvision",
    "typer",
    "matplotlib",
    "mlxtend",
    "pandas",
    "scipy",
    "rich",
    "tensorboard",
)
CORE = "sepgroupy, sepgroupy.gconv.splitgconv2d, sepgroupy.gconv.g_splitgconv2d, sepgroupy.gconv.gc_splitgconv2d"
CORE += ", sepgroupy.gconv.pooling, sepgroupy.testing, sepgroupy.models"


CODE = f"""
import importlib, json, numpy, pkgutil, random, sys, torch, torch.nn.functional

def states():
    return (str(random.getstate()), str(numpy.random.get_state()), torch.random.get_rng_state().tolist(),
            torch.get_num_threads(), torch.get_default_dtype(), sys.path[:])

before = states()  # which imports numpy.random
modules = set(sys.modules)
import {CORE}
unchanged, imported = states() == before, {{name.partition(".")[0] for name in set(sys.modules) - modules}}
extras = {{name.partition(".")[0] for name in sys.modules}} & set({EXTRAS})
missing = [name for name in sepgroupy.__all__ if not hasattr(sepgroupy, name)]
names = [m.name for m in pkgutil.iter_modules(sepgroupy.__path__) if not m.name.startswith("_")]
shadowed = [n for n in names if hasattr(sepgroupy, n) and type(getattr(sepgroupy, n)) is not type(pkgutil)]
packages = ("auditing", "compression", "conversion", "exporting", "functional", "groups", "models", "nn", "testing")
shadowed += [n for n in packages if getattr(sepgroupy, n) is not importlib.import_module("sepgroupy." + n)]
print(json.dumps([unchanged, sorted(imported), sorted(extras), missing, shadowed]))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Import the core in a Python of its own, where a warning is an error, and return what has changed by it."""
    command = [sys.executable, "-W", "error", "-c", CODE]
    values = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return dict(zip(("unchanged", "imported", "extras", "missing", "shadowed"), values, strict=True))


def test_nothing_is_imported_that_torch_and_numpy_do_not_import(found: dict[str, Any]) -> None:
    assert set(found["imported"]) - set(sys.stdlib_module_names) - {"numpy", "torch"} == {"sepgroupy"}
    assert found["extras"] == []


def test_importing_leaves_random_numbers_threads_and_paths_as_they_were(found: dict[str, Any]) -> None:
    assert found["unchanged"]


def test_every_name_that_is_promised_is_there_and_shadows_no_module(found: dict[str, Any]) -> None:
    assert found["missing"] == found["shadowed"] == []
