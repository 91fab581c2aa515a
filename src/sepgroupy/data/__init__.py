"""Data sets, read into memory as :class:`ImageData`."""

from __future__ import annotations

from ._amat import AMAT_FILES as AMAT_FILES
from ._amat import load_amat as load_amat
from ._augment import RandomAffine as RandomAffine
from ._augment import RandomCropFlip as RandomCropFlip
from ._cifar import load_cifar10 as load_cifar10
from ._digits import load_digits as load_digits
from ._idx import load_idx as load_idx
from ._rotate import rotate as rotate
from ._rotmnist import load_rotmnist as load_rotmnist
from ._split import ImageData as ImageData
from ._split import Split as Split
from ._synthetic import load_synthetic_cifar10 as load_synthetic_cifar10
from ._synthetic import write_synthetic_cifar10 as write_synthetic_cifar10
from ._whiten import ZCA as ZCA
from ._whiten import contrast_normalize as contrast_normalize

__all__ = [
    "AMAT_FILES",
    "ZCA",
    "ImageData",
    "RandomAffine",
    "RandomCropFlip",
    "Split",
    "contrast_normalize",
    "load_amat",
    "load_cifar10",
    "load_digits",
    "load_idx",
    "load_rotmnist",
    "load_synthetic_cifar10",
    "rotate",
    "write_synthetic_cifar10",
]
