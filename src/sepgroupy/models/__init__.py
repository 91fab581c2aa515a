"""The networks of the paper and a U-Net, by name or by group, kind and width."""

from ._build import build_model as build_model
from ._build import model_names as model_names
from ._checkpoint import load_published as load_published
from ._resnet import ResNet as ResNet
from ._rotmnist import RotMNISTNet as RotMNISTNet
from ._unet import UNet as UNet

__all__ = ["ResNet", "RotMNISTNet", "UNet", "build_model", "load_published", "model_names"]
