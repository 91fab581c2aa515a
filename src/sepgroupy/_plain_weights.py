"""The weights of a layer as its next call would use them, also if a reparametrization recomputes them.

Weight norm, spectral norm, pruning and other reparametrizations recompute a weight from other tensors: at each access
(``torch.nn.utils.parametrize``) or in a forward pre-hook, so that the attribute is stale until the layer is called.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .errors import ArgumentError
from .nn import GroupConvolution

_REMOVERS: dict[type, Any] = {
    WeightNorm: remove_weight_norm,
    SpectralNorm: remove_spectral_norm,
    prune.BasePruningMethod: prune.remove,
}


def copy_with_plain_weights(model: nn.Module) -> nn.Module:
    """Return a deep copy in which every reparametrized tensor is a plain one with its current value in inference.

    Parametrizations and the pre-hooks of ``weight_norm``, ``spectral_norm`` and ``prune`` are removed from the copy. A
    tensor requires a gradient if one of its sources did. The model does not change.

    Raises:
        ArgumentError: a layer is lazy and has not been initialized.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():  # copy.deepcopy refuses results of operations, such as recomputed weights
        for value in (*vars(module).values(), *module._buffers.values()):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ArgumentError(f"model has no values yet in {name}: call it once on an input")
    copied = copy.deepcopy(model, memo)
    modes = {module: module.training for module in copied.modules()}
    copied.eval()  # spectral norm in training changes its estimate at every access
    for module in list(copied.modules()):
        _remove_hooks(module)
        _remove_parametrizations(module)
    for module in copied.modules():
        module.training = modes[module]
    return copied


def _remove_hooks(module: nn.Module) -> None:
    for hook in reversed(list(module._forward_pre_hooks.values())):
        for kind, remove in _REMOVERS.items():
            if isinstance(hook, kind):
                name = getattr(hook, "_tensor_name", None) or hook.name  # type: ignore[attr-defined]
                needs_gradient = any(p.requires_grad for key, p in module._parameters.items() if p is not None and
                                     key.startswith(f"{name}_"))  # fmt: skip
                remove(module, name)
                module.get_parameter(name).requires_grad_(needs_gradient)


def _remove_parametrizations(module: nn.Module) -> None:
    # Not with torch's own function, which deletes the property from a class that the copy shares with the model.
    if not parametrize.is_parametrized(module):
        return
    parametrizations: Any = module.parametrizations
    tensors = {}
    for name in parametrizations:
        originals = [*parametrizations[name].parameters(recurse=False), *parametrizations[name].buffers(recurse=False)]
        tensors[name] = (getattr(module, name).detach().clone(), originals)
    original_class = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module.__class__ = original_class
    for name, (value, originals) in tensors.items():
        if isinstance(originals[0], nn.Parameter):
            needs_gradient = any(original.requires_grad for original in originals)
            module.register_parameter(name, nn.Parameter(value, requires_grad=needs_gradient))
        else:
            module.register_buffer(name, value)


def call_on_probe(name: str, layer: nn.Module) -> tuple[Tensor, Any]:
    """Call a convolution, plain or on a group, on a small random input; return input and output.

    The call runs the user's pre-hooks that recompute weights, so that the attributes of the layer are current.

    Args:
        name: of the layer, for errors.
        layer: a layer of a copy in inference mode, since its hooks may change it.

    Raises:
        ArgumentError: the call fails.
    """
    x = _draw_input(layer)
    try:
        with torch.no_grad():
            return x, layer(x.clone())
    except Exception as error:  # the user's hooks can raise anything
        raise ArgumentError(f"{name} ({type(layer).__name__}) fails on an input {tuple(x.shape)}: {error}") from error


def nearly_equal(found: Any, expected: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and nearly the same finite values.

    Values may differ by ``max(1e-3, 8·eps)`` of the largest expected one. On the meta device there are no values to
    compare.
    """
    if not isinstance(found, Tensor) or found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if found.is_meta:
        return True
    finite = found.isfinite() & expected.isfinite()  # of infinite weights, algorithms compute infinity or NaN
    found, expected = found[finite], expected[finite]
    tolerance = max(1e-3, 8 * torch.finfo(expected.dtype).eps)
    return not len(found) or bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _draw_input(layer: Any) -> Tensor:
    if isinstance(layer, GroupConvolution):
        spec = layer.spec
        shape = [layer.in_channels] if spec.kind == "lifting" else [layer.in_channels, spec.group.order]
        kernel, dilation, padding = spec.kernel_size, spec.dilation, spec.padding[::2]
    else:
        shape, kernel, dilation = [layer.in_channels], layer.kernel_size, layer.dilation
        padding = (0,) * len(kernel) if isinstance(layer.padding, str) else layer.padding
    sizes = [d * (k - 1) + 2 * p + 2 for k, d, p in zip(kernel, dilation, padding, strict=True)]
    x = torch.randn(2, *shape, *sizes, generator=torch.Generator().manual_seed(0))
    return x.to(next(layer.parameters()))
