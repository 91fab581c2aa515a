"""One image file: decoded to numbers in 0..1, refused with a reason, cropped and resized."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

MAX_VALUES = 2**27
"""Values that one image may have; a whole slide has to be cut into tiles first."""

MAX_ASPECT_RATIO = 8
"""Largest ratio of an image's sides."""

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_OBJECT = re.compile(r" ?<[\w.]+ object at 0x[0-9a-f]+>")  # which Pillow writes where the name of a file would be
_CHANNEL_AXES = "CSIQ"  # tifffile's names: channels, samples, a sequence of images, unknown


class UnusableError(Exception):
    """An image that cannot be used; the message is the reason, without the file's name."""


def read_image(content: bytes) -> Tensor:
    """Decode an image file of any format that tifffile or Pillow reads.

    Integers are scaled to 0..1 by the range of their type (8 bits: ``x/255``, 16 bits: ``x/65535``, signed types from
    their smallest value); floating-point values stay as they are. Palettes become RGB, alpha is multiplied in (the
    background is black), and the orientation that a camera has noted is applied. A TIFF may have any number of
    channels. Of a PNG with 16 bits in several channels Pillow reads 8: save such images as TIFF.

    Returns:
        float32, shape (C, Y, X).

    Raises:
        UnusableError: the file is broken, truncated, not an image, a stack of images, too large, too small or too
            elongated, or holds NaN or infinite values.
    """
    image = _scale(_decode(content, _read_tiff, _read_other))
    if not image.isfinite().all():
        raise UnusableError("it holds NaN or infinite values")
    rows, columns = image.shape[1:]
    if min(rows, columns) < 2 or max(rows, columns) > MAX_ASPECT_RATIO * min(rows, columns):
        raise UnusableError(
            f"unsupported size of {rows}×{columns} pixels: each side must be at least 2 pixels, "
            f"the aspect ratio at most {MAX_ASPECT_RATIO}:1"
        )
    return image


def read_mask(content: bytes) -> Tensor:
    """Decode a mask: one whole number for each pixel, of a palette its index.

    Returns:
        int64, shape (Y, X).

    Raises:
        UnusableError: the file is broken, has several channels, holds no whole numbers, or is a JPEG, which is lossy.
    """
    mask = _decode(content, _read_tiff, _read_palette_index)
    if mask.shape[0] != 1 or mask.dtype.kind not in "bui":
        raise UnusableError(f"a mask has one channel of whole numbers, not {mask.shape[0]} of {mask.dtype}")
    return torch.from_numpy(mask[0].astype(np.int64))


def with_channels(image: Tensor, channels: int) -> Tensor:
    """Return an image (C, Y, X) with this number of channels; a gray image becomes RGB by repetition.

    Raises:
        UnusableError: it has another number.
    """
    if len(image) == channels:
        return image
    if len(image) == 1 and channels == 3:
        return image.expand(3, -1, -1)
    raise UnusableError(f"it has {len(image)} channels, not {channels}")


def fit(image: Tensor, size: int) -> Tensor:
    """Crop an image (C, Y, X) to the square in its middle, and resize it: bilinear, antialiased.

    A volume (C, Z, Y, X) is cropped to the cube in its middle, and resized along every axis in the same manner.
    """
    image = _middle(image, image.ndim - 1)
    if image.shape[-1] == size:
        return image.contiguous()
    if image.ndim == 3:
        return _resize(image, size, size)
    slices = _resize(image.flatten(0, 1), size, size).view(*image.shape[:2], -1)
    return _resize(slices, size, slices.shape[-1]).view(len(image), size, size, size)


def fit_mask(mask: Tensor, size: int) -> Tensor:
    """Crop and resize a mask (Y, X) as :func:`fit` does its image, each pixel to the nearest."""
    mask = _middle(mask, 2)
    if mask.shape[-1] == size:
        return mask.contiguous()
    return F.interpolate(mask[None, None].double(), (size, size), mode="nearest-exact")[0, 0].long()


def read_file(path: Path) -> bytes:
    """Read a file whole.

    Raises:
        UnusableError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UnusableError("there is no such file") from None
    except OSError as error:
        raise UnusableError(f"it cannot be read: {error.strerror or error}") from None


def _middle(image: Tensor, axes: int) -> Tensor:
    """Return the square, or the cube, in the middle of the last axes."""
    side = min(image.shape[-axes:])
    for axis in range(-axes, 0):
        image = image.narrow(axis, (image.shape[axis] - side) // 2, side)
    return image


def _resize(image: Tensor, rows: int, columns: int) -> Tensor:
    return F.interpolate(image[None], (rows, columns), mode="bilinear", antialias=True, align_corners=False)[0]


def _decode(content: bytes, read_tiff: Any, read_other: Any) -> NDArray[Any]:
    """Return (C, Y, X) in the type of the file."""
    try:
        return read_tiff(content, read_other) if content.startswith(_TIFF) else read_other(content)
    except UnusableError:
        raise
    except Exception as error:  # which one depends on the format and on where the file is broken
        found = _OBJECT.sub("", str(error)) or type(error).__name__
        raise UnusableError(f"it is broken, truncated or no image ({found:.100})") from None


def _read_tiff(content: bytes, read_other: Any) -> NDArray[Any]:
    from tifffile import TiffFile

    with TiffFile(io.BytesIO(content)) as file:
        series, page = file.series[0], file.pages[0]
        photometric, bits = int(page.photometric), int(page.bitspersample)  # type: ignore[union-attr]
        if photometric == 3:  # a palette
            return read_other(content)  # type: ignore[no-any-return]
        if int(np.prod(series.shape)) > MAX_VALUES:
            raise UnusableError(f"it has {'×'.join(map(str, series.shape))} values: cut it into tiles")
        try:
            array = series.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            if bits <= 8 or page.samplesperpixel == 1:  # type: ignore[union-attr]
                return read_other(content)  # type: ignore[no-any-return]
            raise UnusableError(f"its compression {page.compression!r} needs the package imagecodecs") from None  # type: ignore[union-attr]
        axes = series.axes
    array = array.reshape([n for n, axis in zip(array.shape, axes, strict=True) if n > 1 or axis in "YX"])
    axes = "".join(axis for n, axis in zip(series.shape, axes, strict=True) if n > 1 or axis in "YX")
    others = axes.replace("Y", "").replace("X", "")
    if len(axes) - len(others) != 2 or len(others) > 1 or not set(others) <= set(_CHANNEL_AXES):
        sizes = "×".join(map(str, array.shape))
        raise UnusableError(f"it is a stack of images ({axes}, {sizes}): save each image in a file of its own")
    array = np.moveaxis(array, axes.index(others), 0) if others else array[None]
    if photometric == 0 and array.dtype.kind == "u":  # white is zero
        array = np.iinfo(array.dtype).max - array
    return array


def _read_other(content: bytes) -> NDArray[Any]:
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content)) as opened:
        _check_values(opened.width * opened.height)
        wide = opened.mode == "I"  # 16 bits in 32
        image = ImageOps.exif_transpose(opened)
        if image.mode == "P":
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        elif image.mode in ("PA", "La", "RGBa"):
            image = image.convert({"PA": "RGBA", "La": "LA", "RGBa": "RGBA"}[image.mode])
        elif image.mode not in ("1", "L", "F", "I", "LA", "RGB", "RGBA") and not image.mode.startswith("I;16"):
            image = image.convert("RGB")
        array = np.asarray(image)
    if wide:
        array = array.clip(0, 65535).astype(np.uint16)
    return _multiply_alpha(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def _read_palette_index(content: bytes) -> NDArray[Any]:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        _check_values(image.width * image.height)
        if image.format in ("JPEG", "MPO"):
            raise UnusableError("a mask in a JPEG has lost its exact values: save it as PNG")
        array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _check_values(pixels: int) -> None:
    if 3 * pixels > MAX_VALUES:
        raise UnusableError(f"it has {pixels:,} pixels: cut it into tiles")


def _multiply_alpha(array: NDArray[Any]) -> NDArray[Any]:
    """Remove the last of two or four channels, which is how opaque a pixel is."""
    if len(array) not in (2, 4):
        return array
    colors, alpha = array[:-1], array[-1:]
    most = np.iinfo(array.dtype).max
    if (alpha == most).all():
        return colors
    return (colors * (alpha / most)).round().astype(array.dtype)


def _scale(array: NDArray[Any]) -> Tensor:
    kind = array.dtype.kind
    if kind == "f":
        with np.errstate(over="ignore"):  # values that float32 cannot hold become infinite, and are refused
            return torch.from_numpy(np.ascontiguousarray(array, np.float32))
    if kind not in "bui":
        raise UnusableError(f"its values are {array.dtype}, not real numbers")
    least, most = (0, 1) if kind == "b" else (np.iinfo(array.dtype).min, np.iinfo(array.dtype).max)
    if array.dtype.itemsize == 1 or array.dtype == np.uint16:
        scaled = (array.astype(np.float32) - least) / np.float32(most - least)
    else:
        scaled = ((array.astype(np.float64) - least) / (most - least)).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled))
