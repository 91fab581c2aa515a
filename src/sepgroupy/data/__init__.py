"""Data sets, read into memory as :class:`ImageData`."""

from __future__ import annotations

from ._amat import AMAT_FILES as AMAT_FILES
from ._amat import load_amat as load_amat
from ._augment import RandomAffine as RandomAffine
from ._augment import RandomCropFlip as RandomCropFlip
from ._cifar import load_cifar10 as load_cifar10
from ._idx import IdxFiles as IdxFiles
from ._idx import read_idx as read_idx
from ._rotate import rotate as rotate
from ._split import ImageData as ImageData
from ._split import Split as Split
from ._synthetic import load_synthetic_cifar10 as load_synthetic_cifar10
from ._synthetic import write_synthetic_cifar10 as write_synthetic_cifar10
from ._whiten import ZCA as ZCA
from ._whiten import contrast_normalize as contrast_normalize

__all__ = [
    "AMAT_FILES",
    "ZCA",
    "IdxFiles",
    "ImageData",
    "RandomAffine",
    "RandomCropFlip",
    "Split",
    "contrast_normalize",
    "load_amat",
    "load_cifar10",
    "load_synthetic_cifar10",
    "read_idx",
    "rotate",
    "write_synthetic_cifar10",
]
