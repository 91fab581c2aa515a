"""Batch norm after a convolution, folded into its filters and bias."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..backends import Backend, Filters, can_bypass_dispatcher
from ..nn import GroupConvolution


def can_fold(conv: GroupConvolution, norm: nn.BatchNorm2d, x: Tensor) -> bool:
    """Whether ``norm(conv(x))`` is a convolution with other filters: in inference, with fixed statistics."""
    if torch.is_grad_enabled() or norm.training or norm.running_mean is None or norm.running_var is None:
        return False
    tensors = (*conv.parameters(), norm.weight, norm.bias, norm.running_mean, norm.running_var)
    same = all(t is None or (t.dtype == x.dtype and t.device == x.device) for t in tensors)
    return same and norm.num_features == conv.out_channels and can_bypass_dispatcher(x)


def fold(
    conv: GroupConvolution, norm: nn.BatchNorm2d | None, backend: Backend, x: Tensor
) -> tuple[Filters, Tensor | None]:
    """Return filters, as a backend reads them, and bias of ``norm(conv(x))``; without a norm, those of ``conv(x)``.

    ``s = gamma/√(var + eps)`` scales each output channel: filters become ``s·w``, the bias ``s·(b - mean) + beta``.
    """
    if norm is None:
        return conv.expanded_filters(backend, x), conv.bias
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    scale = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    bias = -mean * scale if conv.bias is None else (conv.bias - mean) * scale
    if norm.bias is not None:
        bias = bias + norm.bias
    parameters = {name: getattr(conv, name) for name in conv.filter_names}
    rows = conv.filter_names[-1]  # the whole filter or its pointwise factor: a row for each output channel

    def scaled() -> Mapping[str, Tensor]:
        weight = parameters[rows]
        return {**parameters, rows: weight * scale.view(-1, *(1,) * (weight.ndim - 1))}

    return conv.reused_filters(backend, x, {**parameters, "scale": scale}, scaled), bias
