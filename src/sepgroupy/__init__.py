"""Separable group-equivariant convolutions for PyTorch.

>>> import torch
>>> from sepgroupy.nn import LiftingConv2d, GroupConv2d
>>> net = torch.nn.Sequential(
...     LiftingConv2d(3, 16, 3, padding=1, group="p4m"), torch.nn.ReLU(),
...     GroupConv2d(16, 32, 3, padding=1, group="p4m", kind="gc"))
>>> from sepgroupy.testing import assert_equivariant
>>> assert_equivariant(net, "p4m", torch.randn(1, 3, 15, 15))
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from . import backends as backends
from . import functional as functional
from . import groups as groups
from . import nn as nn
from .backends import ConvSpec as ConvSpec
from .backends import available_backends as available_backends
from .backends import empty_cache as empty_cache
from .errors import ArgumentError as ArgumentError
from .errors import DataError as DataError
from .errors import SepgroupyError as SepgroupyError
from .fusion import fuse as fuse
from .groups import PointGroup as PointGroup
from .groups import as_group as as_group
from .models import build_model as build_model
from .models import list_weights as list_weights
from .models import load_published as load_published
from .models import model_names as model_names
from .nn import GroupBatchNorm1d as GroupBatchNorm1d
from .nn import GroupBatchNorm2d as GroupBatchNorm2d
from .nn import GroupBatchNorm3d as GroupBatchNorm3d
from .nn import GroupConv1d as GroupConv1d
from .nn import GroupConv2d as GroupConv2d
from .nn import GroupConv3d as GroupConv3d
from .nn import GroupConvTranspose1d as GroupConvTranspose1d
from .nn import GroupConvTranspose2d as GroupConvTranspose2d
from .nn import GroupConvTranspose3d as GroupConvTranspose3d
from .nn import GroupPool as GroupPool
from .nn import LiftingConv1d as LiftingConv1d
from .nn import LiftingConv2d as LiftingConv2d
from .nn import LiftingConv3d as LiftingConv3d
from .nn import PerElement as PerElement
from .nn import cached_filters as cached_filters
from .testing import assert_equivariant as assert_equivariant
from .testing import equivariance_error as equivariance_error

if _TYPE_CHECKING:
    from .auditing import audit as audit
    from .compression import compress as compress
    from .conversion import convert as convert
    from .exporting import export as export

__version__ = "0.1.0"

__all__ = [  # what `from sepgroupy import *` brings: no names of packages, which would hide torch's nn
    "ArgumentError",
    "ConvSpec",
    "DataError",
    "GroupBatchNorm1d",
    "GroupBatchNorm2d",
    "GroupBatchNorm3d",
    "GroupConv1d",
    "GroupConv2d",
    "GroupConv3d",
    "GroupConvTranspose1d",
    "GroupConvTranspose2d",
    "GroupConvTranspose3d",
    "GroupPool",
    "LiftingConv1d",
    "LiftingConv2d",
    "LiftingConv3d",
    "PerElement",
    "PointGroup",
    "SepgroupyError",
    "as_group",
    "assert_equivariant",
    "audit",
    "available_backends",
    "build_model",
    "cached_filters",
    "compress",
    "convert",
    "empty_cache",
    "equivariance_error",
    "export",
    "fuse",
    "list_weights",
    "load_published",
    "model_names",
]

_TOOLS = {"audit": "auditing", "compress": "compression", "convert": "conversion", "export": "exporting"}


def __getattr__(name: str) -> _Any:
    """Import the tools for whole networks when they are first used: ``import sepgroupy`` is twice as fast without."""
    if name in _TOOLS:
        return getattr(_import_module(f".{_TOOLS[name]}", __name__), name)
    if name in _TOOLS.values():
        return _import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
