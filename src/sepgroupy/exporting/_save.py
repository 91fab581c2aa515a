"""Files for other programs: ONNX, programs of torch.export, and safetensors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._files import atomic, refuse_existing
from ..errors import ArgumentError
from ._export import export

FORMATS = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
"""The formats that :func:`save` writes, with the suffix that a file of each has."""


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    file_format: str,
    shape: Sequence[int],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a network to a file, atomically; an existing file is never replaced.

    ==============  =====================================================================================
    format          content
    ==============  =====================================================================================
    "onnx"          the exported network, input "image", output "output", for onnxruntime and others
    "torch"         the exported network, for ``torch.export.load(path).module()``
    "safetensors"   the state dict of the network itself, for ``safetensors.torch.load_file``
    ==============  =====================================================================================

    An exported network, see :func:`export`, does not need sepgroupy. It takes batches of any size, in its parameters'
    dtype.

    Args:
        model: the network, of one input.
        path: the file; its folder is created if it is missing.
        file_format: one of ``FORMATS``.
        shape: of an input without the batch, such as (3, 32, 32).
        metadata: strings to be saved with "safetensors".

    Raises:
        ArgumentError: the format is unknown, the path has another suffix or exists already, or the network
            cannot be exported, does not take such an input, or has an operation that the format does not support.
    """
    if file_format not in FORMATS:
        raise ArgumentError(f"file_format (={file_format!r}) must be one of {', '.join(FORMATS)}")
    file = Path(os.fspath(path))
    if file.suffix != FORMATS[file_format]:
        raise ArgumentError(
            f"path (={str(file)!r}) must end in {FORMATS[file_format]} for file_format (={file_format!r})"
        )
    refuse_existing("path", file)
    try:
        with atomic(file) as temporary:
            _WRITERS[file_format](model, temporary, shape, metadata or {})
            refuse_existing("path", file)  # again: writing takes time
    except ImportError as error:
        raise ArgumentError(f"file_format (={file_format!r}) needs sepgroupy[export]: {error}") from error


def _write_safetensors(model: nn.Module, path: Path, shape: Sequence[int], metadata: Mapping[str, str]) -> None:
    from safetensors.torch import save_model

    save_model(model, str(path), dict(metadata))


def _write_program(model: nn.Module, path: Path, shape: Sequence[int], metadata: Mapping[str, str]) -> None:
    torch.export.save(_trace(model, shape), path)


def _write_onnx(model: nn.Module, path: Path, shape: Sequence[int], metadata: Mapping[str, str]) -> None:
    program = _trace(model, shape)
    options: dict[str, Any] = {"dynamo": True, "external_data": False, "verbose": False}
    try:
        torch.onnx.export(program, (), path, input_names=["image"], output_names=["output"], **options)
    except torch.onnx.OnnxExporterError as error:
        raise ArgumentError(
            f"model has an operation that ONNX does not support: {error.__cause__ or error!s:.200}"
        ) from error


_WRITERS = {"onnx": _write_onnx, "torch": _write_program, "safetensors": _write_safetensors}


def _trace(model: nn.Module, shape: Sequence[int]) -> torch.export.ExportedProgram:
    """Export the network and trace it with a batch of any size."""
    plain = export(model)
    like = next(plain.parameters(), torch.empty(0))
    example = torch.zeros(2, *shape, dtype=like.dtype, device=like.device)
    try:
        return torch.export.export(plain, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # an error of any layer that the input does not fit
        raise ArgumentError(f"model does not take an input of shape (={tuple(shape)}): {error!s:.200}") from error
