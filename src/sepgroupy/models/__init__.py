"""The networks of the paper and a U-Net, by name or by group, kind and width."""

from ._build import build_model as build_model
from ._build import model_names as model_names
from ._build import published_model_names as published_model_names
from ._checkpoint import find_state as find_state
from ._checkpoint import load_published as load_published
from ._checkpoint import state_dict_differences as state_dict_differences
from ._layers import DEFAULT_GROUPS as DEFAULT_GROUPS
from ._layers import check_choice as check_choice
from ._layers import check_counts as check_counts
from ._layers import check_images as check_images
from ._resnet import ResNet as ResNet
from ._rotmnist import RotMNISTNet as RotMNISTNet
from ._unet import UNet as UNet
from ._weights import WeightsCard as WeightsCard
from ._weights import WeightSet as WeightSet
from ._weights import list_weights as list_weights
from ._weights import load_weights as load_weights
from ._weights import save_weights as save_weights

__all__ = [
    "ResNet",
    "RotMNISTNet",
    "UNet",
    "WeightSet",
    "WeightsCard",
    "build_model",
    "check_images",
    "list_weights",
    "load_published",
    "model_names",
    "published_model_names",
    "save_weights",
]
