"""Files are written whole or not at all, and read as what they are: data, possibly from a stranger."""

from __future__ import annotations

import io
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .errors import DataError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; what was written there becomes ``path`` if nothing is raised.

    The folder is made if it is missing. The temporary name is hidden and keeps the suffix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_tensors(path: Path) -> Any:
    """Read what ``torch.save`` wrote, tensors to the CPU; no code that the file may hold is run.

    Raises:
        DataError: the file is missing or broken, or holds more than tensors and plain values.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice is to trust the file
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # which one depends on where the file is broken
        raise DataError(f"{path} is broken, or holds more than tensors and plain values") from None
