"""What convolutions can be computed with here."""

from __future__ import annotations

import torch

from . import _native


def backends() -> dict[str, str]:
    """Say what there is to compute with, and where something is missing, why.

    >>> sorted(backends())
    ['cuda', 'native', 'torch']
    """
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "no device, or a PyTorch without CUDA"
    return {
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "native": _native.kernels().summary,
        "cuda": cuda,
    }
