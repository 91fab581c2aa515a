"""Results that the paper reports for its eleven models."""

from __future__ import annotations

from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class PaperResult:
    """What Lengyel & van Gemert (2021) print of a model, to the digits that they print.

    Args:
        shape: of an image, (channels, rows, columns).
        width: channels of the convolutions, or of the three stages.
        test_error: percent; for CIFAR-10 without and with augmentation.
        parameters: free parameters.
        macs: multiply-accumulates an image.
        memory: bytes of the first forward and backward pass of two images on their GPU. They print MiB as "MB".
    """

    shape: Shape
    width: str
    test_error: str
    parameters: float
    macs: float
    memory: float


_DIGIT, _PHOTO = (1, 28, 28), (3, 32, 32)

PAPER_RESULTS = {
    "z2cnn": PaperResult(_DIGIT, "20", "5.20 ± 0.110", 25.21e3, 2.98e6, 0.84 * 2**20),
    "c-z2cnn": PaperResult(_DIGIT, "57", "4.64 ± 0.126", 25.60e3, 4.14e6, 2.60 * 2**20),
    "p4cnn": PaperResult(_DIGIT, "10", "2.23 ± 0.061", 24.81e3, 11.67e6, 2.03 * 2**20),
    "g-p4cnn-small": PaperResult(_DIGIT, "10", "2.60 ± 0.098", 8.91e3, 4.37e6, 5.23 * 2**20),
    "g-p4cnn": PaperResult(_DIGIT, "17", "1.97 ± 0.044", 25.26e3, 12.34e6, 13.84 * 2**20),
    "gc-p4cnn-small": PaperResult(_DIGIT, "10", "2.88 ± 0.169", 3.42e3, 1.80e6, 1.88 * 2**20),
    "gc-p4cnn": PaperResult(_DIGIT, "30", "1.74 ± 0.070", 24.64e3, 13.01e6, 5.83 * 2**20),
    "resnet44": PaperResult(_PHOTO, "32, 64, 128", "13.10 / 7.66", 2.64e6, 0.39e9, 23.19 * 2**20),
    "p4m-resnet44": PaperResult(_PHOTO, "11, 23, 45", "8.06 / 5.78", 2.62e6, 3.08e9, 141.77 * 2**20),
    "g-p4m-resnet44": PaperResult(_PHOTO, "19, 38, 76", "7.60 / 6.09", 1.78e6, 2.07e9, 1141.31 * 2**20),
    "gc-p4m-resnet44": PaperResult(_PHOTO, "28, 56, 112", "6.72 / 5.43", 1.88e6, 2.17e9, 197.84 * 2**20),
}
"""The models of the paper's two tables, the plain network first in each."""
