"""The networks of the paper, by name or by group, kind and width."""

from ._build import build_model as build_model
from ._build import model_names as model_names
from ._checkpoint import load_published as load_published
from ._resnet import ResNet as ResNet
from ._rotmnist import RotMNISTNet as RotMNISTNet

__all__ = ["ResNet", "RotMNISTNet", "build_model", "load_published", "model_names"]
