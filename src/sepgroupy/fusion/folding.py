"""Batch norm after a convolution, folded into its filters and bias."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..backends import Backend, Filters, can_bypass_dispatcher
from ..backends.native import Native, parameter_dtype
from ..nn import GroupConvolution


def can_fold(conv: GroupConvolution, norm: nn.BatchNorm2d, x: Tensor) -> bool:
    """Whether ``norm(conv(x))`` is a convolution with other filters: in inference, with fixed statistics."""
    if torch.is_grad_enabled() or norm.training or norm.running_mean is None or norm.running_var is None:
        return False
    tensors = (*conv.parameters(), norm.weight, norm.bias, norm.running_mean, norm.running_var)
    dtype = norm.running_mean.dtype if torch.is_autocast_enabled(x.device.type) else x.dtype
    same = all(t is None or (t.dtype == dtype and t.device == x.device) for t in tensors)
    return same and norm.num_features == conv.out_channels and can_bypass_dispatcher(x)


def fold(
    conv: GroupConvolution, norm: nn.BatchNorm2d | None, backend: Backend, x: Tensor
) -> tuple[Filters, Tensor | None]:
    """Return filters, as a backend reads them, and bias of ``norm(conv(x))``; without a norm, those of ``conv(x)``.

    ``s = gamma/√(var + eps)`` scales each output channel: filters become ``s·w``, the bias ``s·(b - mean) + beta``.
    They are computed in float32 if the parameters are bfloat16, and rounded for backends that read bfloat16.
    """
    if norm is None:
        return conv.expanded_filters(backend, x), conv.bias
    parameters = {name: getattr(conv, name) for name in conv.filter_names}
    rows = conv.filter_names[-1]  # the whole filter or its pointwise factor: a row for each output channel
    given = parameters[rows].dtype
    computed = parameter_dtype(given)
    dtype = computed if isinstance(backend, Native) else given
    tensors = (norm.running_mean, norm.running_var, norm.weight, norm.bias, conv.bias)
    mean, var, gamma, beta, bias = (None if t is None else t.to(computed) for t in tensors)
    assert mean is not None
    assert var is not None
    scale = torch.rsqrt(var + norm.eps)
    if gamma is not None:
        scale = scale * gamma
    bias = -mean * scale if bias is None else (bias - mean) * scale
    if beta is not None:
        bias = bias + beta

    def scaled() -> Mapping[str, Tensor]:
        factors = {name: factor.to(dtype) for name, factor in parameters.items()}
        return {**factors, rows: (parameters[rows] * scale.view(-1, *(1,) * (parameters[rows].ndim - 1))).to(dtype)}

    return conv.reused_filters(backend, x, {**parameters, "scale": scale}, scaled), bias.to(dtype)
