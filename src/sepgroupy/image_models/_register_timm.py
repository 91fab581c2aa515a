"""The built-in ResNets for ``timm.create_model``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..errors import ArgumentError
from ..models import ResNet

DEPTHS = (8, 14, 20, 32, 44)


class TimmResNet(ResNet):
    """A :class:`sepgroupy.models.ResNet` with the attributes and methods that timm's networks have."""

    def __init__(self, kind: str, depth: int, width: int, group: str, in_chans: int, num_classes: int) -> None:
        super().__init__(
            kind, depth, (width, 2 * width, 4 * width), group, in_chans, max(1, num_classes), "invariant", "equivariant"
        )
        self.num_features = self.head_hidden_size = 4 * width
        self.reset_classifier(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes), or features if there are no classes."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return features (B, C, Y, X), averaged over the group: they are transformed like the image."""
        x = self.relu(self.bn1(self.layer3(self.layer2(self.layer1(self.conv1(x))))))
        return x if self.group is None else x.mean(2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits of features, or with ``pre_logits`` their average over space (B, C)."""
        x = x.mean((-2, -1))
        return x if pre_logits else self.fc(x)

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by one of this many classes; 0 for none."""
        if global_pool not in (None, "avg"):
            raise ArgumentError(f"global_pool (={global_pool!r}) must be 'avg'")
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()  # type: ignore[assignment]


def register_timm() -> tuple[str, ...]:
    """Register the built-in ResNets with timm, for ``timm.create_model("p4m_resnet20", num_classes=…, in_chans=…)``.

    Options of ``create_model``: width (16), kind ("gc"), group ("p4m"). Images of a size that 4 divides are exact. A
    second call changes nothing.

    Returns:
        The names.

    Raises:
        ArgumentError: timm is not installed.
    """
    try:
        from timm.models import is_model, register_model
    except ImportError:
        raise ArgumentError("timm is not installed: pip install 'sepgroupy[timm]'") from None
    names = tuple(f"p4m_resnet{depth}" for depth in DEPTHS)
    for name, depth in zip(names, DEPTHS, strict=True):
        if not is_model(name):
            default_cfgs[name] = {
                "url": "",
                "input_size": (3, 32, 32),
                "pool_size": None,
                "classifier": "fc",
                "first_conv": "conv1",
            }
            register_model(_entry(name, depth))
    return names


default_cfgs: dict[str, dict[str, Any]] = {}
"""Where timm looks for the configuration of the networks that a module registers."""


def _entry(name: str, depth: int) -> Callable[..., nn.Module]:
    def create(
        pretrained: bool = False,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        width: int = 16,
        kind: str = "gc",
        group: str = "p4m",
        **options: Any,
    ) -> nn.Module:
        if pretrained:
            raise ArgumentError(f"pretrained (=True): there are no weights for {name}")
        if unknown := options.keys() - {"pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}:
            raise ArgumentError(
                f"option {', '.join(sorted(unknown))} is unknown to {name}: it has width, kind and group"
            )
        model: Any = TimmResNet(kind, depth, width, group, in_chans, num_classes)
        model.pretrained_cfg = {**default_cfgs[name], "architecture": name, "num_classes": num_classes}
        model.default_cfg = model.pretrained_cfg
        return model

    create.__name__ = create.__qualname__ = name
    return create
