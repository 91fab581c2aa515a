"""The baseline of every benchmark: the published code's implementation, on today's PyTorch.

Feature maps lie in memory as their shape says, (B, C, |H|, Y, X). Filters are expanded in every forward pass by plain
indexing. A gc layer is a 1×1 convolution with its expanded matrix, then a depthwise one. A g layer multiplies its
factors out, as the published experiments did (``separable=False``). Batch norm is ``BatchNorm3d``; ReLU is a separate
pass.
"""

from __future__ import annotations

import copy
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepgroupy.groups import PointGroup, action_table
from sepgroupy.models import ResNet, RotMNISTNet
from sepgroupy.nn import GroupConv2d, GroupConvTranspose2d, LiftingConv2d


class BaselineConv(nn.Module):
    """A lifting or group convolution as the baseline computes it, with the parameters of a sepgroupy layer.

    The published code has no transposed layers: they are one transposed convolution with the expanded filters.
    """

    def __init__(self, layer: LiftingConv2d | GroupConv2d | GroupConvTranspose2d) -> None:
        super().__init__()
        self.spec = layer.spec
        self.bias: nn.Parameter | None
        self.weight: nn.Parameter
        self.depthwise_weight: nn.Parameter
        self.pointwise_weight: nn.Parameter
        for name in ("weight", "depthwise_weight", "pointwise_weight", "bias"):
            self.register_parameter(name, copy.deepcopy(getattr(layer, name, None)))

    def forward(self, x: Tensor, filters: Tensor | None = None) -> Tensor:
        """Convolve (B, I, |H|, Y, X), or (B, I, Y, X) to lift it; with expanded filters if they are passed."""
        order, merged = self.spec.group.order, x.flatten(1, -3)
        bias = None if self.bias is None else self.bias.repeat_interleave(order)
        if self.spec.transposed:
            filters = self.expanded_filters() if filters is None else filters
            y = F.conv_transpose2d(merged, filters, bias, self.spec.stride, self.spec.padding[::2])
        elif self.spec.kind == "gc":
            merged = F.conv2d(merged, self.expand(self.pointwise_weight))
            filters = self.expand(self.depthwise_weight) if filters is None else filters
            y = self._convolve(merged, filters, bias, filters.shape[0])
        else:
            y = self._convolve(merged, self.expanded_filters() if filters is None else filters, bias, 1)
        return y.unflatten(1, (-1, order))

    def expanded_filters(self) -> Tensor:
        """Return all transformed filters, (O·|H|, I·|H|, k, k); of a transposed layer (I·|H|, O·|H|, k, k)."""
        if self.spec.kind == "g":
            return self.expand(self.pointwise_weight * self.depthwise_weight.unsqueeze(2))
        if self.spec.kind == "gc":
            return self.expand(self.pointwise_weight * self.depthwise_weight)
        return self.expand(self.weight)

    def expand(self, weight: Tensor) -> Tensor:
        """Return all transformed copies of (O, I, |H| or 1, k, k)."""
        table = _table(self.spec.group, tuple(weight.shape[-2:]), weight.shape[2] > 1, weight.device)
        copies = weight.flatten(2)[:, :, table].transpose(1, 2)  # (O, |H|, I, |H|·k²)
        return copies.reshape(weight.shape[0] * len(table), -1, *weight.shape[-2:])

    def _convolve(self, x: Tensor, filters: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        return F.conv2d(x, filters, bias, self.spec.stride, self.spec.padding[::2], self.spec.dilation, groups)


def baseline(model: nn.Module) -> nn.Module:
    """Return a copy of one of the paper's networks that computes the same as the published code does."""
    model = copy.deepcopy(model)
    if getattr(model, "group", None) is None:
        return model
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LiftingConv2d | GroupConv2d):
                setattr(parent, name, BaselineConv(child))
            elif isinstance(child, nn.BatchNorm2d):
                norm = nn.BatchNorm3d(child.num_features).to(child.weight)
                norm.load_state_dict(child.state_dict())
                setattr(parent, name, norm)
    return _Baseline(model).train(model.training)


class _Baseline(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        model = self.model
        if isinstance(model, RotMNISTNet):
            for index in range(1, 8):
                x = F.relu(getattr(model, f"bn{index}")(getattr(model, f"conv{index}")(x)))
                if index == 2:
                    x = F.max_pool3d(x, (1, 2, 2))
            return F.log_softmax(model.fc(x.amax(2).flatten(1)), dim=1)
        assert isinstance(model, ResNet)
        x = model.conv1(x)
        for block in (*model.layer1, *model.layer2, *model.layer3):
            y = block.conv1(F.relu(block.bn1(x)))
            y = block.conv2(F.relu(block.bn2(y)))
            x = y + (x if block.downsample is None else block.downsample(x))
        return model.fc(F.relu(model.bn1(x)).mean((-2, -1)).flatten(1))


@lru_cache(maxsize=64)
def _table(group: PointGroup, kernel: tuple[int, ...], on_group: bool, device: torch.device) -> Tensor:
    return torch.tensor(action_table(group, kernel, on_group), device=device)
