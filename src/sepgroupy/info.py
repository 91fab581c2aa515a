"""A report about this installation, to paste into an issue: ``python -m sepgroupy.info``."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch

from .backends import available_backends

__all__ = ["environment_report"]

_PACKAGES = ("torchvision", "lightning-fabric", "onnx", "onnxruntime", "timm", "escnn")
_VARIABLES = ("SEPGROUPY_", "OMP_", "MKL_", "CUDA_VISIBLE_DEVICES", "PYTORCH_")


def environment_report() -> str:
    """Return versions, processor, devices, backends and settings, one a line; no path and no name of a user.

    >>> environment_report().splitlines()[0].split()[0]
    'sepgroupy'
    """
    lines = {
        "sepgroupy": _version("sepgroupy") or "not installed: run from a checkout",
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}, {torch.get_num_threads()} threads",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "numpy": np.__version__,
        "devices": ", ".join(_devices()),
    }
    lines |= {f"backend {name}": state for name, state in available_backends().items()}
    lines |= {name: found for name in _PACKAGES if (found := _version(name))}
    lines |= {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)}
    width = max(map(len, lines)) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in lines.items())


def _devices() -> list[str]:
    found = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [*found, *(["mps"] if torch.backends.mps.is_available() else []), f"cpu ({os.cpu_count()} cores)"]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(environment_report())
