"""Importing the core is cheap and needs torch and numpy alone."""

from __future__ import annotations

import subprocess
import sys

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


def run(code: str) -> list[str]:
    """Run code in a Python of its own, where a warning is an error, and return the words that it prints."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_nothing_is_imported_that_torch_and_numpy_do_not_import() -> None:
    code = (
        "import sys, numpy, torch, torch.nn.functional; before = set(sys.modules);"
        f"import {CORE}; print(*{{name.partition('.')[0] for name in set(sys.modules) - before}})"
    )
    assert set(run(code)) - set(sys.stdlib_module_names) - {"numpy", "torch"} == {"sepgroupy"}


def test_importing_alone_leaves_everything_as_it_was() -> None:
    code = (
        "import numpy, random, sys, torch; states = lambda: (str(random.getstate()), str(numpy.random.get_state()),"
        "torch.random.get_rng_state().tolist(), torch.get_num_threads(), torch.get_default_dtype(), sys.path[:]);"
        f"before = states(); import {CORE}; assert states() == before;"
        "print(sepgroupy.__version__, *(name for name in sepgroupy.__all__ if not hasattr(sepgroupy, name)),"
        f"*{{name.partition('.')[0] for name in sys.modules}} & set({EXTRAS}))"
    )
    version, *surprises = run(code)
    assert version[0].isdigit()
    assert not surprises  # neither names that are promised and missing nor extras


def test_no_name_shadows_a_module() -> None:
    code = (
        "import importlib, pkgutil, sepgroupy;"
        "names = [m.name for m in pkgutil.iter_modules(sepgroupy.__path__) if not m.name.startswith('_')];"
        "modules = {n: importlib.import_module(f'sepgroupy.{n}') for n in ('auditing', 'compression', 'conversion',"
        "'exporting', 'functional', 'groups', 'models', 'nn', 'testing')};"
        "print(*(n for n in names if hasattr(sepgroupy, n) and type(getattr(sepgroupy, n)) is not type(pkgutil)));"
        "print(*(n for n, m in modules.items() if getattr(sepgroupy, n) is not m))"
    )
    assert run(code) == []
