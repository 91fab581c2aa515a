"""Compile the kernels where there is a C compiler; without one the package installs all the same (see backends())."""

from __future__ import annotations

import copy
import platform
import subprocess
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = Path("src/sepgroupy/backends/native")
FLAGS = ["-std=gnu11", "-O2", "-g0", "-ftree-vectorize", "-Wno-psabi", "-fno-math-errno"]
VARIANTS: dict[str, list[str]] = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    VARIANTS["avx2"] = ["-march=x86-64-v3"]
    VARIANTS["avx512"] = ["-march=x86-64-v4", "-mprefer-vector-width=256"]


class BuildKernels(build_ext):
    """Build libraries that are loaded by path, not imported; all at once, with threads where the compiler has them."""

    def finalize_options(self) -> None:
        """Compile the variants side by side."""
        super().finalize_options()
        self.parallel = True

    def build_extensions(self) -> None:
        """Ask for OpenMP if it is there."""
        threads = ["-fopenmp"] if self._compiles("-fopenmp") else []
        for extension in self.extensions:
            extension.extra_compile_args += threads
            extension.extra_link_args += threads
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        """Compile in a folder of its own."""
        command = copy.copy(self)
        command.build_temp = str(Path(self.build_temp, ext.name))  # all variants have one source and its object's name
        build_ext.build_extension(command, ext)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Export no module."""
        return []

    def get_ext_filename(self, fullname: str) -> str:
        """Name no version of Python."""
        return str(Path(*fullname.split("."))) + ".so"

    def _compiles(self, flag: str) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            source, program = Path(folder, "empty.c"), Path(folder, "empty")
            source.write_text("int main(void) { return 0; }\n")
            compiler = getattr(self.compiler, "compiler_so", ["cc"])
            try:
                command = [*compiler, flag, str(source), "-o", str(program)]
                return subprocess.run(command, capture_output=True, check=False).returncode == 0
            except OSError:
                return False


class BuildWheel(bdist_wheel):
    """Build one wheel for every Python of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Ask for a platform alone."""
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[
        Extension(
            f"sepgroupy.backends.native._{name}",
            [str(SOURCES / "kernels.c")],
            depends=[str(path) for path in SOURCES.glob("*.inl")],
            extra_compile_args=FLAGS + flags,
            optional=True,
        )
        for name, flags in VARIANTS.items()
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": BuildWheel},
)
