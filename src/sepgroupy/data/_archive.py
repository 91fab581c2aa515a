"""Known files out of an archive from outside, which gets to choose neither their names nor their size."""

from __future__ import annotations

import gzip
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._files import atomic
from ..errors import DataError

MAX_UNPACKED_BYTES = 400 * 2**20
"""Bytes that an archive may grow to; that of CIFAR-10 has 186 million."""


def unpack(archive: Path, folder: Path, names: Sequence[str]) -> None:
    """Write these files of a ``.tar.gz`` into a folder, each whole or not at all, and nothing else that it holds.

    Args:
        archive: the file.
        folder: where to put them, under their names.
        names: their names in the archive.

    Raises:
        DataError: the archive cannot be read or is larger than :data:`MAX_UNPACKED_BYTES`, or one of the files is
            missing, a link or anything but an ordinary file.
    """
    missing = list(names)
    try:
        with gzip.open(archive) as plain:
            limited: Any = _Limited(plain, MAX_UNPACKED_BYTES)
            members = tarfile.open(fileobj=limited, mode="r|")  # noqa: SIM115 - it holds nothing but the file
            for member in members:
                if member.name not in missing:
                    continue
                content = members.extractfile(member) if member.isreg() and not member.issparse() else None
                if content is None:
                    raise ValueError(f"{member.name} is not an ordinary file")
                with atomic(folder / member.name) as temporary, temporary.open("wb") as file:
                    shutil.copyfileobj(content, file)
                missing.remove(member.name)
    except Exception as error:  # a broken archive can raise nearly anything
        raise DataError(f"{archive} cannot be unpacked into {folder} ({error!s:.200}): fetch it again") from None
    if missing:
        raise DataError(f"{archive} holds no {', '.join(missing)}: fetch it again")


class _Limited:
    """A file that raises an error instead of returning more than ``limit`` bytes."""

    def __init__(self, file: Any, limit: int) -> None:
        self.file, self.left = file, limit

    def read(self, size: int) -> bytes:
        content = self.file.read(min(size, self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            raise ValueError("it is too large")
        return content
