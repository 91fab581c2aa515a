"""Atomic writing of files, and safe reading of untrusted files."""

from __future__ import annotations

import io
import os
import secrets
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .errors import ArgumentError, DataError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; the file there is renamed to ``path`` unless an exception is raised.

    The folder is created if it is missing. The temporary name is hidden and has the same suffix. The content is on the
    disk before the file is renamed, so that a loss of power does not leave an incomplete file. The file has the
    permissions of any new file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors puts a file in its place that nobody else may read
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_existing(name: str, path: Path) -> None:
    """Refuse an argument that is the path of a file, a folder or a link that exists.

    Raises:
        ArgumentError: it exists.
    """
    if os.path.lexists(path):
        raise ArgumentError(f"{name} (={str(path)!r}) exists already: delete it, or choose another")


def remove_leftovers(path: Path) -> None:
    """Delete temporary files of killed processes that were writing ``path``. No process may be writing it."""
    for temporary in path.parent.glob(f".{path.stem}.{'[0-9a-f]' * 8}{path.suffix}"):
        temporary.unlink(missing_ok=True)


def load_tensors(path: Path) -> Any:
    """Read a file of ``torch.save``, with tensors on the CPU. No code from the file is executed.

    Raises:
        DataError: the file is missing or broken, or holds more than tensors and plain values.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    try:
        refuse_compressed_archive(io.BytesIO(content))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice is to trust the file
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # which one depends on where the file is broken
        raise DataError(f"{path} is broken, or holds more than tensors and plain values") from None


def refuse_compressed_archive(file: Any) -> None:
    """Refuse compressed archives: torch and numpy save without compression.

    Raises:
        ValueError: it is a zip archive whose parts are compressed, or larger together than the file.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(p.file_size for p in parts) > size:
        raise ValueError("the archive would grow as it is unpacked")
