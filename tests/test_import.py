"""Importing the core is cheap and needs torch and numpy alone."""

from __future__ import annotations

import subprocess
import sys

EXTRAS = ("lightning", "torchvision", "typer", "matplotlib", "mlxtend", "pandas", "scipy", "rich", "tensorboard")
CORE = "sepgroupy, sepgroupy.gconv.splitgconv2d, sepgroupy.gconv.g_splitgconv2d, sepgroupy.gconv.gc_splitgconv2d"
CORE += ", sepgroupy.gconv.pooling, sepgroupy.testing, sepgroupy.models"


def run(code: str) -> list[str]:
    """Run code in a Python of its own, where a warning is an error, and return the words that it prints."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_no_extra_is_imported() -> None:
    names = run(f"import sys, {CORE}; print(*{{name.partition('.')[0] for name in sys.modules}})")
    assert "torch" in names
    assert not set(names) & set(EXTRAS)


def test_nothing_is_imported_that_torch_and_numpy_do_not_import() -> None:
    code = (
        "import sys, numpy, torch, torch.nn.functional; before = set(sys.modules);"
        f"import {CORE}; print(*{{name.partition('.')[0] for name in set(sys.modules) - before}})"
    )
    assert set(run(code)) - set(sys.stdlib_module_names) - {"numpy", "torch"} == {"sepgroupy"}


def test_importing_draws_no_random_numbers_and_prints_nothing() -> None:
    code = (
        "import numpy, random, torch; states = lambda: (str(random.getstate()), str(numpy.random.get_state()),"
        f"torch.random.get_rng_state().tolist()); before = states(); import {CORE}; assert states() == before"
    )
    assert run(code) == []


def test_the_names_that_it_promises_are_there() -> None:
    code = "import sepgroupy as s; print(*(name for name in s.__all__ if not hasattr(s, name)), s.__version__)"
    missing = run(code)
    assert len(missing) == 1
    assert missing[0][0].isdigit()
