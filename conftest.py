"""Leave out tests and pages that this machine cannot run, and warnings of other packages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

NEEDS = {
    "accelerate.md": ("accelerate",),
    "captum.md": ("captum",),
    "grad-cam.md": ("pytorch_grad_cam",),
    "hugging-face.md": ("huggingface_hub", "safetensors"),
    "lightning.md": ("lightning",),
    "nifti.md": ("nibabel",),
    "onnx-runtime.md": ("onnx", "onnxruntime", "onnxscript"),
    "timm.md": ("timm",),
}
"""Packages of the pages in ``integrations``, beside those of the extra ``train``."""

_MISSING = {page: [name for name in names if find_spec(name) is None] for page, names in NEEDS.items()}

collect_ignore = [str(Path("docs", "integrations", page)) for page, missing in _MISSING.items() if missing]


def pytest_report_header() -> list[str]:
    """Name the pages that are left out."""
    return [f"docs/integrations/{page}: not run, needs {', '.join(names)}" for page, names in _MISSING.items() if names]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let other packages warn on the pages about them; skip what needs a CUDA device where there is none."""
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if item.path.parent.name == "integrations":
            item.add_marker(pytest.mark.filterwarnings("default"))
