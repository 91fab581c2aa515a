"""Compress a trained dense network to a separable one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._plain_weights import call_on_probe, copy_with_plain_weights, nearly_equal
from ..errors import ArgumentError
from ..nn import GROUP_CONV_TRANSPOSES, GROUP_CONVS, GroupConv, GroupConvTranspose

_Layer = GroupConv | GroupConvTranspose


@dataclass(frozen=True)
class CompressedLayer:
    """The effect of compression on one layer.

    Args:
        name: of the layer, as in ``named_modules``.
        error: ``‖w - w̃‖ / ‖w‖`` over all its filters, w̃ the separable ones; 0 for filters that do not change.
        before: free parameters of the dense layer, including its bias.
        after: free parameters of the separable layer.
    """

    name: str
    error: float
    before: int
    after: int


class Compression(NamedTuple):
    """A separable network, and the error of each of its layers."""

    model: nn.Module
    layers: list[CompressedLayer]


@torch.no_grad()
def compress(model: nn.Module, kind: str = "gc") -> Compression:
    """Compress a network with dense group convolutions to a separable one with the nearest filters.

    Each filter is replaced by its best approximation of rank 1 in the least-squares sense, from the singular value
    decomposition ``w = Σ_r s_r·u_r·v_rᵀ``: ``pw = √s₁·u₁`` and ``dw = √s₁·v₁``. For g the matrix is ``w[o,i]``,
    |H| × k², one for each pair of channels (``w[o,i,h] ≈ pw[o,i,h]·dw[o,i]``); for gc it is ``w[o]``, I·|H| × k², one
    for each output channel (``w[o,i,h] ≈ pw[o,i,h]·dw[o]``). Separable filters do not change, to
    rounding.

    The copy can be trained like any network; a short training recovers most of the loss. Weight norm, spectral norm,
    pruning and other reparametrizations are replaced by the weights that they compute.

    Args:
        model: the network; it does not change. 1×1 layers remain dense, and separable layers are copied.
        kind: "g" or "gc".

    Returns:
        The separable network, of the model's class and in its mode, and a row for each layer that was replaced.

    Raises:
        ArgumentError: the kind is unknown, the network has no layer to compress, a filter is not finite, or a layer has
            a hook or a patched forward that changes the result.

    Source of the redundancy: Lengyel & van Gemert (2021).

    >>> from sepgroupy import GroupConv2d
    >>> dense = GroupConv2d(4, 4, 3, group="p4")
    >>> net, layers = compress(dense, "g")
    >>> layers[0].before, layers[0].after
    (580, 212)
    """
    if kind not in ("g", "gc"):
        raise ArgumentError(f"kind (={kind!r}) must be g or gc")
    model = copy_with_plain_weights(model)
    rows: list[CompressedLayer] = []
    new: dict[nn.Module, nn.Module] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, _Layer) and layer.kind == "dense" and not layer.spec.pointwise:
            weight = _read_filters(name, layer)
            pointwise, depthwise = _nearest(weight, kind)
            error = float((pointwise * depthwise - weight).norm() / weight.norm().clamp(min=1e-300))
            new[layer] = separable = _with_kind(layer, kind)
            separable.pointwise_weight.copy_(pointwise)
            separable.depthwise_weight.copy_(depthwise.reshape(separable.depthwise_weight.shape))
            rows.append(CompressedLayer(name, error, _count(layer), _count(separable)))
    if not rows:
        raise ArgumentError("model has no dense group convolution larger than 1×1 to compress")
    for module in list(model.modules()):
        for key, child in list(module._modules.items()):
            if child in new:
                setattr(module, key, new[child])
    return Compression(new.get(model, model), rows)


def _read_filters(name: str, layer: Any) -> Tensor:
    """Return the filters of a layer's next call in float64, and refuse a layer that computes anything else."""
    training = layer.training
    x, expected = call_on_probe(name or "model", layer.eval())
    layer.train(training)
    if not layer.weight.isfinite().all():
        raise ArgumentError(f"model has filters in {name} that are not finite")
    dense = _with_kind(layer, "dense")
    dense.weight.copy_(layer.weight)
    if not nearly_equal(expected, dense.eval()(x)):
        raise ArgumentError(
            f"{name or 'model'} ({type(layer).__name__}) computes something else than its weights say, by a hook or "
            "its own forward, which the separable layer would not run: remove it before compression"
        )
    return layer.weight.double()


def _nearest(
    weight: Tensor,  # (O, I, |H|, k, …)
    kind: str,
) -> tuple[Tensor, Tensor]:
    """Return the factors of the nearest separable filter: (O, I, |H|, 1, …), and (O, I or 1, 1, k, …)."""
    rows, columns, order, *kernel = weight.shape
    matrices = weight.reshape(rows, columns if kind == "g" else 1, -1, math.prod(kernel))
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    scale = values[..., :1].sqrt()
    pointwise, depthwise = scale * left[..., 0], scale * right[..., 0, :]
    return pointwise.reshape(rows, columns, order, *(1,) * len(kernel)), depthwise.reshape(rows, -1, 1, *kernel)


def _with_kind(layer: Any, kind: str) -> Any:
    """Build a layer of another kind with the arguments and the bias of a dense one."""
    weight, transposed = layer.weight, layer.spec.transposed
    key, value = ("output_padding", layer.output_padding) if transposed else ("padding_mode", layer.padding_mode)
    classes: Any = GROUP_CONV_TRANSPOSES if transposed else GROUP_CONVS
    new: Any = classes[layer.dimension](
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding if len(layer.padding) == layer.dimension else "same",  # never in a transposed layer
        dilation=layer.dilation,
        groups=layer.groups,
        bias=layer.bias is not None,
        group=layer.group,
        kind=kind,
        device=weight.device,
        dtype=weight.dtype,
        **{key: value},
    ).requires_grad_(any(p.requires_grad for p in layer.parameters()))
    if layer.bias is not None:
        new.bias.copy_(layer.bias)
        new.bias.requires_grad_(layer.bias.requires_grad)
    return new.train(layer.training)


def _count(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())
