"""Networks for images of any size, channels and classes: built in, or converted from timm and torchvision by name.

The package stands above ``conversion``, which ``models`` must not import.
"""

from ._build import ImageModel as ImageModel
from ._build import build_image_model as build_image_model
from ._register_timm import register_timm as register_timm

__all__ = ["ImageModel", "build_image_model", "register_timm"]
