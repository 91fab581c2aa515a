"""The networks of the paper and a U-Net, by name or by group, kind and width."""

from ._build import build_model as build_model
from ._build import model_names as model_names
from ._build import published_model_names as published_model_names
from ._checkpoint import load_published as load_published
from ._layers import check_images as check_images
from ._resnet import ResNet as ResNet
from ._rotmnist import RotMNISTNet as RotMNISTNet
from ._unet import UNet as UNet

__all__ = [
    "ResNet",
    "RotMNISTNet",
    "UNet",
    "build_model",
    "check_images",
    "load_published",
    "model_names",
    "published_model_names",
]
