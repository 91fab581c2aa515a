"""Export a network on a group as a plain one: standard convolutions, the group axis merged into the channels.

``torch.fx`` traces the network, with the layers of :mod:`sepgroupy.nn` as single nodes. A new graph is written from the
traced one. In it a group feature map has the shape (B, |H|·C, *spatial), which a convolution with the expanded filters
reads and returns. Pointwise and channelwise operations are applied to it directly. For any other operation it is first
reshaped to its shape in the original network, so that the operation need not be known.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .. import functional
from ..errors import ArgumentError
from ..models import check_images
from ..nn import GroupConvolution, GroupPool
from ._expand_layers import CONV_TRANSPOSES, CONVS, check_pool, expand_convolution, repeat_norm
from ._tracer import BATCH_NORMS, describe_location, describe_module, is_hooked, origin_outside_torch, trace

_VALUEWISE = {
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "silu", "mish", "gelu", "sigmoid", "tanh", "softplus"),
    *("hardtanh", "hardswish", "hardsigmoid", "logsigmoid", "identity", "dropout", "clone", "contiguous"),
    *("dropout1d", "dropout2d", "dropout3d"),
    *("add", "sub", "mul", "div", "truediv", "neg", "abs", "square", "sqrt", "exp", "clamp", "pow"),
}
_POOLINGS = ("max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool", "zeropad")
_SPATIAL = {"interpolate", "upsample"} | {
    f"{name}{dimension}d" for pool in _POOLINGS for name in (pool, pool.replace("_", "")) for dimension in (1, 2, 3)
}
"""Pointwise and channelwise functions, methods and modules, by their names in lower case."""


def export(model: nn.Module) -> fx.GraphModule:
    """Return an equivalent plain network of standard modules and operations of torch, equal to rounding.

    A group convolution becomes ``nn.Conv2d`` (or ``nn.ConvTranspose2d``, or 1d or 3d) with the expanded filters and the
    channels (g, o). A gc layer becomes a 1×1 and a depthwise one where that takes fewer multiplications. A batch norm
    directly after a convolution is folded into the filters; other batch norms are repeated for every group element.
    Batch norm, activation and pooling act on the merged channels; all other operations do not change.

    The result does not need sepgroupy to run, to be pickled, traced or exported. It is for inference: it is
    in inference mode, and its parameters require no gradient. Weight norm, spectral norm, pruning and other
    reparametrizations are replaced by the weights that they compute.

    Args:
        model: compositions of the layers of :mod:`sepgroupy.nn`, standard modules and everything that ``torch.fx`` can
            trace, such as the networks of :mod:`sepgroupy.models`. It does not change.

    Raises:
        ArgumentError: a module cannot be traced, calls functions that are not part of torch, or is a group layer with a
            hook that changes its output. The message names the module.

    >>> from sepgroupy import GroupBatchNorm2d, GroupConv2d
    >>> net = nn.Sequential(GroupConv2d(4, 8, 3, padding=1, group="p4"), GroupBatchNorm2d(8), nn.ReLU()).eval()
    >>> plain, x = export(net), torch.randn(2, 4, 4, 7, 7)
    >>> torch.testing.assert_close(plain(x), net(x))
    >>> [type(module).__name__ for module in plain.children()]
    ['Conv2d', 'ReLU']
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
    root, graph = trace(model)
    with torch.no_grad():
        return _GraphWriter(root, graph).module(type(model).__name__)


@dataclass(frozen=True)
class _MergedMap:
    """A group feature map as (B, |H|·C, *spatial); it has another shape in the original network."""

    node: fx.Node
    order: int
    channels: int
    in_batch: bool
    """Whether its original shape is (B·|H|, C, *spatial), and not (B, C, |H|, *spatial)."""


class _GraphWriter:
    """Writes the graph of a network with the group axis of its feature maps merged into the channels."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.root, self.old, self.graph = root, graph, fx.Graph()
        self.values: dict[fx.Node, Any] = {}  # the result of each step of the old graph: a node or a merged map
        self.parts: dict[str, Any] = {}  # modules and tensors, by the names that the new graph has for them
        self.built: dict[tuple[nn.Module, int], dict[str, nn.Module]] = {}

    def module(self, name: str) -> fx.GraphModule:
        """Write every step and return the new network."""
        for node in self.old.nodes:
            self.values[node] = self.write(node)
        self.fuse_norms()
        return fx.GraphModule(self.parts, self.graph, name).eval()

    def write(self, node: fx.Node) -> Any:
        """Write one step and return its result."""
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            if isinstance(module, GroupConvolution):
                return self.convolve(node, module)
            return self.pool(node, module) if isinstance(module, GroupPool) else self.copy_step(node, module)
        if node.op == "get_attr":
            return self.copy_step(node, operator.attrgetter(str(node.target))(self.root))
        if node.target is check_images:
            return self.values[node.all_input_nodes[0]]
        if node.target is functional.merge_group:
            return self.merge_into_batch(node)
        if node.target is functional.split_group:
            return self.split_from_batch(node)
        if node.op == "call_function" and (origin := origin_outside_torch(node.target)):
            raise ArgumentError(
                f"{describe_location(node)} calls {node.name} of {origin}, which is not part of torch: an exported "
                "network may need nothing else"
            )
        return self.copy_step(node)

    def copy_step(self, node: fx.Node, part: nn.Module | Tensor | None = None) -> fx.Node | _MergedMap:
        """Copy an operation: on merged channels if it treats them alike, otherwise on the original shape."""
        inputs = [self.values[n] for n in node.all_input_nodes]
        maps = [value for value in inputs if isinstance(value, _MergedMap)]
        alike = len(maps) == len(inputs) and len({(m.order, m.channels, m.in_batch) for m in maps}) == 1
        alike = alike and not (isinstance(part, nn.Module) and is_hooked(part))  # a hook expects the network's shapes
        name = (
            type(part).__name__ if isinstance(part, nn.Module) else getattr(node.target, "__name__", str(node.target))
        )
        if alike and _has_fixed_affine(part) and maps[0].in_batch:
            norm = self.build(part, maps[0].order, lambda: {"": repeat_norm(part, maps[0].order)})
            return replace(maps[0], node=self.call(node, norm, maps[0].node))
        merged = alike and _treats_channels_alike(name.lower(), part, node, maps[0].in_batch)
        if maps and not merged and node.op == "call_method" and name.endswith("_") and not name.endswith("__"):
            raise ArgumentError(
                f"{describe_location(node)} calls {name} in place on a group feature map and another tensor: use "
                f"{name[:-1]}"
            )
        new = self.graph.node_copy(node, lambda n: self.values[n].node if merged else self.as_traced(self.values[n]))
        new.type = None  # an annotation, which a pickle may not find
        if part is not None:
            new.target = self.name(str(node.target), part)
        return replace(maps[0], node=new) if merged else new

    def convolve(self, node: fx.Node, layer: GroupConvolution) -> _MergedMap:
        """Write standard convolutions in place of a group convolution."""
        spec, value = layer.spec, self.values[node.all_input_nodes[0]]
        order, groups = spec.group.order, spec.groups
        x = self.as_traced(value) if spec.kind == "lifting" else self.merge_into_channels(value)
        if groups > 1 and spec.kind != "lifting":
            x = self.exchange(x, (order, groups, layer.in_channels // groups))
        name = describe_module(str(node.target))
        x = self.call(node, self.build(layer, order, lambda: expand_convolution(name, layer)), x)
        if groups > 1:
            x = self.exchange(x, (groups, order, layer.out_channels // groups))
        return _MergedMap(x, order, layer.out_channels, in_batch=False)

    def pool(self, node: fx.Node, layer: GroupPool) -> fx.Node:
        """Write a pooling over the group."""
        check_pool(describe_module(str(node.target)), layer)
        value, function = self.values[node.all_input_nodes[0]], "amax" if layer.mode == "max" else "mean"
        if isinstance(value, _MergedMap) and not value.in_batch:
            return self.method(function, self.method("unflatten", value.node, 1, (value.order, value.channels)), 1)
        return self.method(function, self.as_traced(value), 2)

    def merge_into_batch(self, node: fx.Node) -> fx.Node | _MergedMap:
        """Write the merging of the group axis into the batch."""
        value = self.values[node.all_input_nodes[0]]
        if isinstance(value, _MergedMap) and not value.in_batch:
            return replace(value, in_batch=True)
        return self.method("flatten", self.method("transpose", self.as_traced(value), 1, 2), 0, 1)

    def split_from_batch(self, node: fx.Node) -> fx.Node | _MergedMap:
        """Write its inverse; the order is a number, or a group feature map that has it."""
        value, order = self.values[node.all_input_nodes[0]], [*node.args, *node.kwargs.values()][1]
        if isinstance(order, fx.Node):
            like = self.values[order]
            order = like.order if isinstance(like, _MergedMap) else self.method("size", like, 2)
        if isinstance(value, _MergedMap) and value.in_batch and value.order == order:
            return replace(value, in_batch=False)
        return self.method("transpose", self.method("unflatten", self.as_traced(value), 0, (-1, order)), 1, 2)

    def as_traced(self, value: fx.Node | _MergedMap) -> fx.Node:
        """Write a value in its original shape."""
        if not isinstance(value, _MergedMap):
            return value
        split = self.method("unflatten", value.node, 1, (value.order, value.channels))
        return self.method("flatten", split, 0, 1) if value.in_batch else self.method("transpose", split, 1, 2)

    def merge_into_channels(self, value: fx.Node | _MergedMap) -> fx.Node:
        """Write a group feature map, (B, C, |H|, *spatial), with its group axis merged into the channels."""
        if isinstance(value, _MergedMap) and not value.in_batch:
            return value.node
        return self.method("flatten", self.method("transpose", self.as_traced(value), 1, 2), 1, 2)

    def exchange(self, x: fx.Node, sizes: tuple[int, int, int]) -> fx.Node:
        """Write an exchange of the outer two of three axes that are merged into the channels."""
        return self.method("flatten", self.method("transpose", self.method("unflatten", x, 1, sizes), 1, 2), 1, 3)

    def method(self, name: str, x: fx.Node, *args: Any) -> fx.Node:
        """Write a call of a tensor's method."""
        return self.graph.call_method(name, (x, *args))

    def build(self, old: nn.Module, order: int, new: Callable[[], dict[str, nn.Module]]) -> dict[str, nn.Module]:
        """Return the modules that replace an old one, the same in every call."""
        if (old, order) not in self.built:
            self.built[old, order] = new()
        return self.built[old, order]

    def call(self, node: fx.Node, modules: dict[str, nn.Module], x: fx.Node) -> fx.Node:
        """Write calls of new modules, in order, under the old one's name."""
        for suffix, module in modules.items():
            x = self.graph.call_module(self.name(str(node.target) + suffix, module), (x,))
        return x

    def name(self, name: str, part: nn.Module | Tensor) -> str:
        """Register a module or tensor under a unique name and return the name."""
        name = name if isinstance(part, nn.Module) else name.replace(".", "_")
        while self.parts.setdefault(name, part) is not part:
            name += "_"
        return name

    def fuse_norms(self) -> None:
        """Fold every batch norm that directly follows a convolution into its filters."""
        calls = Counter(node.target for node in self.graph.nodes if node.op == "call_module")
        for node in list(self.graph.nodes):
            norm = self.parts.get(str(node.target))
            if node.op != "call_module" or not _has_fixed_affine(norm) or is_hooked(norm):
                continue
            (before,) = node.all_input_nodes
            convolution: Any = self.parts.get(str(before.target))
            transposed = type(convolution) in CONV_TRANSPOSES.values()
            if not (transposed or type(convolution) in CONVS.values()) or is_hooked(convolution):
                continue
            if transposed and convolution.groups > 1:
                continue
            if len(before.users) == calls[before.target] == 1:
                exact, affine = copy.deepcopy(convolution).double(), copy.deepcopy(norm).double()
                fused = fuse_conv_bn_eval(exact, affine, transposed)
                self.parts[str(before.target)] = fused.to(convolution.weight.dtype)
                node.replace_all_uses_with(before)
                self.graph.erase_node(node)


def _has_fixed_affine(module: object) -> TypeGuard[_BatchNorm]:
    """Whether a module is a batch norm that multiplies and adds constants in inference, and nothing else."""
    return type(module) in BATCH_NORMS.values() and module.running_mean is not None  # type: ignore[attr-defined]


def _treats_channels_alike(name: str, part: nn.Module | Tensor | None, node: fx.Node, in_batch: bool) -> bool:
    """Whether an operation is pointwise or channelwise, so that the group axis can be merged into the channels."""
    if name in _SPATIAL:
        return in_batch and not getattr(part, "return_indices", node.kwargs.get("return_indices", False))
    return name.rstrip("_") in _VALUEWISE
