"""Separable group-equivariant convolutions for PyTorch.

>>> import torch
>>> from sepgroupy.nn import LiftingConv2d, GroupConv2d
>>> net = torch.nn.Sequential(
...     LiftingConv2d(3, 16, 3, padding=1, group="p4m"), torch.nn.ReLU(),
...     GroupConv2d(16, 32, 3, padding=1, group="p4m", kind="gc"))
>>> from sepgroupy.testing import assert_equivariant
>>> assert_equivariant(net, "p4m", torch.randn(1, 3, 15, 15))
"""

from . import functional as functional
from . import groups as groups
from . import nn as nn
from .auditing import audit as audit
from .compression import compress as compress
from .conversion import convert as convert
from .errors import ArgumentError as ArgumentError
from .errors import DataError as DataError
from .errors import SepgroupyError as SepgroupyError
from .exporting import export as export
from .functional import backends as backends
from .groups import PointGroup as PointGroup
from .groups import as_group as as_group
from .models import build_model as build_model
from .models import load_published as load_published
from .models import model_names as model_names
from .nn import Folded as Folded
from .nn import GroupConv2d as GroupConv2d
from .nn import GroupConvTranspose2d as GroupConvTranspose2d
from .nn import GroupPool as GroupPool
from .nn import LiftingConv2d as LiftingConv2d
from .testing import assert_equivariant as assert_equivariant
from .testing import equivariance_error as equivariance_error

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "DataError",
    "Folded",
    "GroupConv2d",
    "GroupConvTranspose2d",
    "GroupPool",
    "LiftingConv2d",
    "PointGroup",
    "SepgroupyError",
    "as_group",
    "assert_equivariant",
    "audit",
    "backends",
    "build_model",
    "compress",
    "convert",
    "equivariance_error",
    "export",
    "functional",
    "groups",
    "load_published",
    "model_names",
    "nn",
]
