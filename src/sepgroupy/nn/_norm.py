"""Batch norm and ReLU, fused with what follows them where that saves passes and memory."""

from __future__ import annotations

from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import _native, fold, unfold
from ..functional._affine import Affine
from ..functional._plan import kernels_pay


def norm_relu(norm: nn.Module, x: Tensor) -> Tensor:
    """Return relu(norm(x)) of a map on the group, the planar norm applied with the group axis folded."""
    return unfold(F.relu(norm(fold(x))), x.shape[2])


def norm_relu_pool(norm: nn.Module, x: Tensor, kernels: bool = True) -> Tensor:
    """Return max_pool2d(relu(norm(x)), 2) of folded maps (N, C, Y, X), by kernels without the maps between."""
    direct = kernels and _native.is_direct(x) and x.numel() > 0 and min(x.shape[-2:]) > 1 and kernels_pay(x)
    if direct and is_plain(norm) and (norm.weight is None or norm.weight.dtype == x.dtype):
        used = read_norm(norm, x)
        y: Tensor = _native.NormReluPool.apply(x, used.gamma, used.beta, used.mean, used.var, used.eps, used.batch)
        return y
    return F.relu(F.max_pool2d(norm(x), 2))  # as the other way round, on a quarter of the pixels


def is_plain(norm: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Whether the module is a batch norm that nobody watches by hooks, so that its call may be fused."""
    return type(norm) is nn.BatchNorm2d and not is_watched(norm)


def is_watched(module: nn.Module) -> bool:
    """Whether the module has hooks."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def read_norm(norm: nn.BatchNorm2d, x: Tensor) -> Affine:
    """Return what the norm would use on x, and update its running statistics as its call would.

    Args:
        norm: in evaluation or training.
        x: maps (N, C, Y, X), or a map on the group, whose group axis is folded.
    """
    if not norm.training and norm.running_mean is not None and norm.running_var is not None:
        mean, var = norm.running_mean, norm.running_var
        if torch.is_grad_enabled():  # they may move before the backward pass
            mean, var = mean.clone(), var.clone()
        return Affine(mean, var, norm.weight, norm.bias, norm.eps, batch=False)
    momentum = norm.momentum
    running_mean, running_var = (norm.running_mean, norm.running_var) if norm.training else (None, None)
    if running_mean is not None and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    with torch.no_grad():
        maps = fold(x) if x.ndim == 5 else x
        if not (_native.kernels() and _native.takes(maps) and maps.is_contiguous()):
            mean, var = torch.batch_norm_update_stats(maps, running_mean, running_var, momentum or 0.0)
        else:
            mean, var = _native.statistics(maps)
            if running_mean is not None and running_var is not None:
                count = maps.numel() // maps.shape[1]
                running_mean.lerp_(mean.to(running_mean.dtype), momentum or 0.0)
                running_var.lerp_(var.to(running_var.dtype) * (count / max(1, count - 1)), momentum or 0.0)
    return Affine(mean, var, norm.weight, norm.bias, norm.eps, batch=True)
