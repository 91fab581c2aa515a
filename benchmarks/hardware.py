"""The hardware: its name, for every row, and its rates of multiplying and copying, for the limits."""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from .measure import seconds


def describe(device: torch.device) -> dict[str, str | int | None]:
    """Return the columns that name the hardware, the software and the day."""
    return {
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


@dataclass(frozen=True)
class Rates:
    """The highest rates that the present number of threads reaches, in float32."""

    macs: float
    """Multiply-accumulates a second in a large matrix product."""
    bytes: float
    """Bytes a second, read and written together, in a copy that no cache holds."""

    @classmethod
    def measure(cls, device: torch.device, rounds: int = 5, width: int = 1536, megabytes: int = 256) -> Rates:
        """Take the best of several rounds."""
        a, b = (torch.randn(width, width, device=device) for _ in range(2))
        product = torch.empty_like(a)
        source = torch.ones(megabytes * 2**20 // 4, device=device)
        target = torch.empty_like(source)
        times = [
            (seconds(lambda: torch.mm(a, b, out=product), device), seconds(lambda: target.copy_(source), device))
            for _ in range(rounds + 1)
        ]
        return cls(
            macs=width**3 / min(products for products, _ in times),
            bytes=2 * source.nbytes / min(copies for _, copies in times),
        )


def cpu_name() -> str:
    """Return the name of the processor."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
