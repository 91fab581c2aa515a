"""Export the network of a run to a file."""

from __future__ import annotations

from pathlib import Path

from ..errors import ArgumentError
from ..exporting import FORMATS, save
from ._parameters import restore


def export_run(folder: Path, file_format: str, path: Path | None = None) -> Path:
    """Write the network of a run as :func:`sepgroupy.exporting.save` does, and return the path.

    Args:
        folder: the folder of the run.
        file_format: "onnx", "torch" or "safetensors".
        path: the file; by default one named after the model in the folder.

    Raises:
        ArgumentError: the format is unknown, or the file exists already or has another suffix.
        DataError: the folder has no run or no checkpoint, or they are broken.
    """
    if file_format not in FORMATS:
        raise ArgumentError(f"file_format (={file_format!r}) must be one of {', '.join(FORMATS)}")
    config, facts, model, _ = restore(folder)
    path = folder / f"{config.model.replace('/', '-')}{FORMATS[file_format]}" if path is None else path
    save(model, path, file_format, config.input_shape(facts), config.export_metadata(facts))
    return path
