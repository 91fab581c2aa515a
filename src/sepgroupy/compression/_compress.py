"""From the finding to its use: a trained dense network becomes a separable one."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..nn import GroupConv2d, GroupConvTranspose2d

_Layer = GroupConv2d | GroupConvTranspose2d


@dataclass(frozen=True)
class CompressedLayer:
    """What compression does to one layer.

    Args:
        name: of the layer, as in ``named_modules``.
        error: ``‖w - w̃‖ / ‖w‖`` over all its filters, w̃ the separable ones; 0 loses nothing.
        before: free parameters of the dense layer, bias among them.
        after: free parameters of the separable layer.
    """

    name: str
    error: float
    before: int
    after: int


class Compression(NamedTuple):
    """A separable network, and what each of its layers has lost."""

    model: nn.Module
    layers: list[CompressedLayer]


@torch.no_grad()
def compress(model: nn.Module, kind: str = "gc") -> Compression:
    """Turn a network with dense group convolutions into a separable one whose filters are the nearest there are.

    Each filter is replaced by its best approximation of rank 1 in the least-squares sense, from the singular value
    decomposition ``w = Σ_r s_r·u_r·v_rᵀ``: ``pw = √s₁·u₁`` and ``dw = √s₁·v₁``. For g the matrix is ``w[o,i]``,
    |H| × k², one for each pair of channels (``w[o,i,h] ≈ pw[o,i,h]·dw[o,i]``); for gc it is ``w[o]``, I·|H| × k², one
    for each output channel (``w[o,i,h] ≈ pw[o,i,h]·dw[o]``). Filters that are separable already are kept to rounding.

    The copy can be trained like any network; a short training makes good for most of what was lost.

    Args:
        model: the network; it stays as it is. 1×1 layers, in which there is nothing to separate, stay dense, and so do
            layers that are separable already.
        kind: "g" or "gc".

    Returns:
        The separable network, of the model's class and in its mode, and a row for each layer that was exchanged.

    Raises:
        ArgumentError: the kind is unknown, the network has no layer to compress, or a filter is not finite.

    Source: the redundancy that this uses was found by Lengyel & van Gemert (2021).

    >>> dense = GroupConv2d(4, 4, 3, group="p4")
    >>> net, layers = compress(dense, "g")
    >>> layers[0].before, layers[0].after
    (580, 212)
    """
    if kind not in ("g", "gc"):
        raise ArgumentError(f"kind (={kind!r}) must be g or gc")
    model = copy.deepcopy(model)
    rows: list[CompressedLayer] = []
    new: dict[nn.Module, nn.Module] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, _Layer) and layer.kind == "dense" and not layer.spec.pointwise:
            dense: Any = layer.weight
            weight = dense.double()
            if not weight.isfinite().all():
                raise ArgumentError(f"model has filters in {name} that are not finite")
            pointwise, depthwise = _nearest(weight, kind)
            error = float((pointwise * depthwise - weight).norm() / weight.norm().clamp(min=1e-300))
            new[layer] = thin = _separable(layer, kind)
            thin.pointwise_weight.copy_(pointwise)
            thin.depthwise_weight.copy_(depthwise.reshape(thin.depthwise_weight.shape))
            rows.append(CompressedLayer(name, error, _count(layer), _count(thin)))
    if not rows:
        raise ArgumentError("model has no dense group convolution larger than 1×1 to compress")
    for module in list(model.modules()):
        for key, child in list(module._modules.items()):
            if child in new:
                setattr(module, key, new[child])
    return Compression(new.get(model, model), rows)


def _nearest(
    weight: Tensor,  # (O, I, |H|, k, k)
    kind: str,
) -> tuple[Tensor, Tensor]:
    """Return the factors of the nearest separable filter: (O, I, |H|, 1, 1), and (O, I or 1, 1, k, k)."""
    rows, columns, order, *kernel = weight.shape
    matrices = weight.reshape(rows, columns if kind == "g" else 1, -1, math.prod(kernel))
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    scale = values[..., :1].sqrt()
    pointwise, depthwise = scale * left[..., 0], scale * right[..., 0, :]
    return pointwise.reshape(rows, columns, order, 1, 1), depthwise.reshape(rows, -1, 1, *kernel)


def _separable(layer: Any, kind: str) -> Any:
    """Make the separable layer that takes a dense one's place."""
    weight, transposed = layer.weight, layer.spec.transposed
    own = {"output_padding": layer.output_padding} if transposed else {"padding_mode": layer.padding_mode}
    thin = type(layer)(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding if len(layer.padding) == 2 else "same",
        dilation=layer.dilation,
        groups=layer.groups,
        bias=layer.bias is not None,
        group=layer.group,
        kind=kind,
        device=weight.device,
        dtype=weight.dtype,
        **own,
    ).requires_grad_(weight.requires_grad)
    thin.bias = layer.bias
    return thin.train(layer.training)


def _count(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())
