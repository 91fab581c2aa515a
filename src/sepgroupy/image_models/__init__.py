"""Networks for images and volumes of any size, channels and classes: built in, or from timm and torchvision.

The package stands above ``conversion``, which ``models`` must not import.
"""

from ._build import ImageModel as ImageModel
from ._build import build_image_model as build_image_model
from ._builtin import model_dimension as model_dimension
from ._register_timm import register_timm as register_timm

__all__ = ["ImageModel", "build_image_model", "model_dimension", "register_timm"]
