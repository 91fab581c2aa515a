"""Data sets: research data in memory as :class:`ImageData`, user images streamed as :class:`ImageSplits`."""

from __future__ import annotations

from ._amat import AMAT_FILES as AMAT_FILES
from ._amat import load_amat as load_amat
from ._augment import RandomAffine as RandomAffine
from ._augment import RandomCropFlip as RandomCropFlip
from ._augment import smooth_field as smooth_field
from ._cifar import load_cifar10 as load_cifar10
from ._idx import IdxFiles as IdxFiles
from ._idx import read_idx as read_idx
from ._image_list import ImageList as ImageList
from ._image_list import open_image_files as open_image_files
from ._images import Images as Images
from ._images import ImageSplits as ImageSplits
from ._microscopy import MICROSCOPY_CLASSES as MICROSCOPY_CLASSES
from ._microscopy import write_microscopy as write_microscopy
from ._open_images import open_images as open_images
from ._rotate import rotate as rotate
from ._solids import SOLIDS as SOLIDS
from ._solids import load_solids as load_solids
from ._split import ImageData as ImageData
from ._split import Split as Split
from ._synthetic import load_synthetic_cifar10 as load_synthetic_cifar10
from ._synthetic import write_synthetic_cifar10 as write_synthetic_cifar10
from ._whiten import ZCA as ZCA
from ._whiten import contrast_normalize as contrast_normalize

__all__ = [
    "AMAT_FILES",
    "MICROSCOPY_CLASSES",
    "SOLIDS",
    "ZCA",
    "IdxFiles",
    "ImageData",
    "ImageList",
    "ImageSplits",
    "Images",
    "RandomAffine",
    "RandomCropFlip",
    "Split",
    "contrast_normalize",
    "load_amat",
    "load_cifar10",
    "load_solids",
    "load_synthetic_cifar10",
    "open_image_files",
    "open_images",
    "read_idx",
    "rotate",
    "smooth_field",
    "write_microscopy",
    "write_synthetic_cifar10",
]
