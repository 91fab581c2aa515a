"""Where the kernels are missing, switched off or broken, layers work all the same and say why."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from ctypes import c_int64
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sepgroupy
from sepgroupy.backends import dispatch, native_for
from sepgroupy.backends.native import backend, library
from sepgroupy.backends.native.library import kernels
from sepgroupy.errors import ArgumentError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Look for the libraries in an empty folder."""
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    monkeypatch.delenv("SEPGROUPY_NATIVE", raising=False)
    kernels.cache_clear()
    dispatch._candidates.cache_clear()
    yield tmp_path
    kernels.cache_clear()
    dispatch._candidates.cache_clear()


def assert_works_without(reason: str) -> None:
    assert not kernels()
    assert reason in kernels().summary
    assert sepgroupy.available_backends()["native"] == f"unavailable: {kernels().summary}"
    layer = sepgroupy.GroupConv2d(3, 4, 3, padding=1, group="p4m")
    x = torch.randn(2, 3, 8, 40, 40)
    expected = sepgroupy.GroupConv2d(3, 4, 3, padding=1, group="p4m", backend="reference")
    expected.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), expected(x), rtol=1e-4, atol=1e-4)
    layer(x).sum().backward()
    with torch.no_grad(), sepgroupy.cached_filters(layer):
        torch.testing.assert_close(layer(x), expected(x), rtol=1e-4, atol=1e-4)
    pool = sepgroupy.PerElement(torch.nn.MaxPool2d(2))
    norms = sepgroupy.GroupBatchNorm2d(3), sepgroupy.GroupBatchNorm2d(4)
    net = torch.nn.Sequential(norms[0], torch.nn.ReLU(), layer, norms[1], torch.nn.ReLU(), pool)
    y = net(x)
    torch.testing.assert_close(sepgroupy.fuse(net)(x), y)
    sepgroupy.empty_cache()
    with pytest.raises(ArgumentError, match=r"backend \(='native'\) is unavailable") as refused:
        sepgroupy.GroupConv2d(3, 4, 3, group="p4m", backend="native")
    assert reason in str(refused.value)


def test_without_a_library(folder: Path) -> None:
    assert_works_without("not compiled: pip install sepgroupy where there is a C++ compiler")


def test_garbage_in_place_of_a_library(folder: Path) -> None:
    for name in library.VARIANTS:
        Path(folder, f"_{name}.so").write_bytes(b"\x7fELF and nothing else")
    assert_works_without(str(folder / "_baseline.so"))


def test_another_library_in_its_place(folder: Path) -> None:
    spec = importlib.util.find_spec("_ctypes")
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        pytest.skip("this Python has no library to put there")
    for name in library.VARIANTS:
        shutil.copy(spec.origin, folder / f"_{name}.so")
    assert_works_without("version")


@pytest.mark.parametrize("what", ["Problem", "VERSION"])
def test_a_library_of_another_version(what: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = Path(library.__file__).with_name("_baseline.so")
    if not baseline.exists():
        pytest.skip("the kernels are not compiled")
    shutil.copy(baseline, folder)
    other = {"Problem": type("Problem", (library.Problem,), {"_fields_": [("more", c_int64)]}), "VERSION": 1}[what]
    monkeypatch.setattr(library, what, other)
    assert_works_without("is of another version: install sepgroupy again")


def test_a_library_of_narrower_vectors_serves_where_the_wider_is_broken(folder: Path) -> None:
    baseline = Path(library.__file__).with_name("_baseline.so")
    if not baseline.exists():
        pytest.skip("not compiled")
    for wider in library.VARIANTS[:-1]:
        (folder / f"_{wider}.so").write_bytes(b"")
    shutil.copy(baseline, folder)
    assert kernels().summary == "C++ kernels, baseline"


def test_kernels_of_one_thread_leave_more_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = kernels()
    if not loaded:
        pytest.skip(loaded.summary)
    monkeypatch.setattr(backend, "kernels", lambda: replace(loaded, threaded=False))
    x, threads = torch.randn(2, 8, 8, 6, 6), torch.get_num_threads()
    try:
        for count in (1, 2, 8):
            torch.set_num_threads(count)
            assert (native_for(x) is not None) == (count < 3)
    finally:
        torch.set_num_threads(threads)


def test_compiled_without_threads(folder: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("clang")
    if not compiler or sys.platform != "linux":
        pytest.skip("no compiler")
    source, path = ROOT / "csrc" / "kernels.cpp", folder / "_baseline.so"
    command = [compiler, "-std=gnu++17", "-fno-exceptions", "-fno-rtti", "-O0", "-w", "-shared", "-fPIC"]
    subprocess.run([*command, str(source), "-o", str(path)], check=True)
    assert kernels().summary == "C++ kernels, baseline, one thread: compiled without OpenMP"
    assert not kernels().threaded


def test_switched_off() -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_native_missing as tests; "
    code += "tests.assert_works_without('switched off by SEPGROUPY_NATIVE=0')"
    environment = os.environ | {"SEPGROUPY_NATIVE": "0"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, check=True)


def test_installing_the_sources_without_a_compiler(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77")
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info"))
    subprocess.run([sys.executable, "setup.py", "-q", "sdist"], cwd=tree, capture_output=True, check=True)
    (source,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(source) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir()} <= packed
    command = [sys.executable, "-m", "pip", "wheel", source, "--no-deps", "--no-build-isolation", "--no-index"]
    environment = os.environ | {"CC": "/bin/false", "CXX": "/bin/false"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tree.glob("sepgroupy-*.whl")
    assert wheel.name.split("-")[2:4] == ["py3", "none"]  # one for every Python
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith((".so", ".cpp", ".h"))]
