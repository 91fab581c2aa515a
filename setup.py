"""Compile the kernels of csrc/ where there is a C++ compiler; without one the package installs without them."""

from __future__ import annotations

import copy
import platform
import subprocess
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

CSRC = Path("csrc")
FLAGS = [
    "-std=gnu++17", "-O2", "-g0", "-ftree-vectorize", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi",
    "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden",
]  # fmt: skip
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
        """Ask for OpenMP if it is there. Link as C: the kernels need no C++ library."""
        candidates = [getattr(self.compiler, name, ["c++"]) for name in ("compiler_so", "compiler_so_cxx")]
        works = [command for command in candidates if self._compiles(command)]  # one driver may know C++ and lack c++
        if works:
            self.compiler.compiler_so_cxx = works[0]
            threads = ["-fopenmp"] if self._compiles([*works[0], "-fopenmp"]) else []
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

    def _compiles(self, command: list[str]) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            source, program = Path(folder, "empty.cpp"), Path(folder, "empty")
            source.write_text("#include <math.h>\nint main() { if constexpr (true) return 0; }\n")
            try:
                compile_it = [*command, "-std=gnu++17", str(source), "-o", str(program)]
                return subprocess.run(compile_it, capture_output=True, check=False).returncode == 0
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
            [str(CSRC / "kernels.cpp")],
            depends=[str(path) for path in sorted(CSRC.iterdir())],
            extra_compile_args=FLAGS + flags,
            language="c",  # of linking
            optional=True,
        )
        for name, flags in VARIANTS.items()
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": BuildWheel},
)
