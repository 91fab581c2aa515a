"""A network on a group as a plain one: ordinary convolutions, the group axis merged into the channels.

``torch.fx`` follows the network, the layers of :mod:`sepgroupy.nn` as single steps, and its graph is written anew. A
map on the group is carried as the (B, |H|·C, Y, X) that a convolution with the bank of all transformed filters gives
and reads. What treats values or planes each by itself is applied to it as it stands; for anything else it is first
reshaped to what the network has there, so that nothing needs to be known of that step.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .. import functional
from ..errors import ArgumentError
from ..models import check_images
from ..nn import GroupConvolution, GroupPool
from ._expand_layers import plain_convolutions, repeat_norm
from ._tracer import follow, foreign, named

_VALUEWISE = {
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "silu", "mish", "gelu", "sigmoid", "tanh", "softplus"),
    *("hardtanh", "hardswish", "hardsigmoid", "logsigmoid", "identity", "dropout", "dropout2d", "clone", "contiguous"),
    *("add", "sub", "mul", "div", "truediv", "neg", "abs", "square", "sqrt", "exp", "clamp", "pow"),
}
_SPATIAL = {
    *("max_pool2d", "avg_pool2d", "lp_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate"),
    *("maxpool2d", "avgpool2d", "lppool2d", "adaptiveavgpool2d", "adaptivemaxpool2d", "upsample", "zeropad2d"),
}
"""Functions, methods and modules, by their names in small letters, that act on each value or each plane apart."""


def export(model: nn.Module) -> fx.GraphModule:
    """Make a plain network of a network on a group: standard modules and operations of torch, equal to rounding.

    A convolution on the group becomes ``nn.Conv2d`` (or ``nn.ConvTranspose2d``) with the bank of all transformed
    filters, its channels (g, o); a gc layer a 1×1 and a depthwise one where that takes fewer multiplications. A batch
    norm is multiplied into the filters if it directly follows a convolution, and else repeated for every element. Norm,
    activation and pooling between them act on the merged channels; the rest of the network stays what it is.

    What comes back needs no sepgroupy: not to run, to pickle, to trace nor to export. It is for evaluation: in
    evaluation mode, no parameter wanting a gradient.

    Args:
        model: compositions of the layers of :mod:`sepgroupy.nn`, standard modules and whatever ``torch.fx`` can follow;
            the networks of :mod:`sepgroupy.models` among them. Left as it is.

    Raises:
        ArgumentError: a module cannot be followed, or calls what is not part of torch; it is named.

    >>> from sepgroupy import GroupBatchNorm2d, GroupConv2d
    >>> net = nn.Sequential(GroupConv2d(4, 8, 3, padding=1, group="p4"), GroupBatchNorm2d(8), nn.ReLU()).eval()
    >>> plain, x = export(net), torch.randn(2, 4, 4, 7, 7)
    >>> torch.testing.assert_close(plain(x), net(x))
    >>> [type(module).__name__ for module in plain.children()]
    ['Conv2d', 'ReLU']
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
    root, graph = follow(model)
    with torch.no_grad():
        return _Writer(root, graph).module(type(model).__name__)


@dataclass(frozen=True)
class _Map:
    """A map on the group as (B, |H|·C, Y, X), which the network has in another shape."""

    node: fx.Node
    order: int
    channels: int
    rows: bool
    """Whether the network has it folded, (B·|H|, C, Y, X), and not as (B, C, |H|, Y, X)."""


class _Writer:
    """Writes the graph of a network anew, its maps on the group merged."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.root, self.old, self.graph = root, graph, fx.Graph()
        self.values: dict[fx.Node, Any] = {}  # what a step of the old graph gives: a node of the new one, or a map
        self.parts: dict[str, Any] = {}  # modules and tensors, by the names that the new graph has for them
        self.made: dict[tuple[nn.Module, int], dict[str, nn.Module]] = {}

    def module(self, name: str) -> fx.GraphModule:
        """Write every step and return the new network."""
        for node in self.old.nodes:
            self.values[node] = self.write(node)
        self.fuse_norms()
        return fx.GraphModule(self.parts, self.graph, name).eval()

    def write(self, node: fx.Node) -> Any:
        """Write one step and return what it gives."""
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            if isinstance(module, GroupConvolution):
                return self.convolve(node, module)
            return self.pool(node, module) if isinstance(module, GroupPool) else self.keep(node, module)
        if node.op == "get_attr":
            return self.keep(node, operator.attrgetter(str(node.target))(self.root))
        if node.target is check_images:
            return self.values[node.all_input_nodes[0]]
        if node.target is functional.merge_group or node.target is functional.split_group:
            return self.fold(node) if node.target is functional.merge_group else self.unfold(node)
        if node.op == "call_function" and (origin := foreign(node.target)):
            raise ArgumentError(
                f"{named(node)} calls {node.name} of {origin}, which is not part of torch: a folded network "
                "may need nothing else"
            )
        return self.keep(node)

    def keep(self, node: fx.Node, part: nn.Module | Tensor | None = None) -> fx.Node | _Map:
        """Write a step as it is: on merged channels if it treats them alike, else on what the network has there."""
        inputs = [self.values[n] for n in node.all_input_nodes]
        maps = [value for value in inputs if isinstance(value, _Map)]
        alike = len(maps) == len(inputs) and len({(m.order, m.channels, m.rows) for m in maps}) == 1
        name = (
            type(part).__name__ if isinstance(part, nn.Module) else getattr(node.target, "__name__", str(node.target))
        )
        if alike and isinstance(part, nn.BatchNorm2d) and part.running_mean is not None and maps[0].rows:
            norm = self.make(part, maps[0].order, lambda: {"": repeat_norm(part, maps[0].order)})
            return replace(maps[0], node=self.call(node, norm, maps[0].node))
        merged = alike and _treats_channels_alike(name.lower(), part, node, maps[0].rows)
        if maps and not merged and node.op == "call_method" and name.endswith("_") and not name.endswith("__"):
            raise ArgumentError(
                f"{named(node)} calls {name} on a map on the group, in place and with what is no such map: "
                f"use {name[:-1]}"
            )
        new = self.graph.node_copy(node, lambda n: self.values[n].node if merged else self.plain(self.values[n]))
        new.type = None  # of an annotation, which a pickle need not find
        if part is not None:
            new.target = self.name(str(node.target), part)
        return replace(maps[0], node=new) if merged else new

    def convolve(self, node: fx.Node, layer: GroupConvolution) -> _Map:
        """Write ordinary convolutions for one of ours."""
        spec, value = layer.spec, self.values[node.all_input_nodes[0]]
        order, groups = spec.group.order, spec.groups
        x = self.plain(value) if spec.kind == "lifting" else self.merge(value)
        if groups > 1 and spec.kind != "lifting":
            x = self.exchange(x, (order, groups, layer.in_channels // groups))
        x = self.call(node, self.make(layer, order, lambda: plain_convolutions(layer)), x)
        if groups > 1:
            x = self.exchange(x, (groups, order, layer.out_channels // groups))
        return _Map(x, order, layer.out_channels, rows=False)

    def pool(self, node: fx.Node, layer: GroupPool) -> fx.Node:
        """Write a pooling over the group."""
        value, function = self.values[node.all_input_nodes[0]], "amax" if layer.mode == "max" else "mean"
        if isinstance(value, _Map) and not value.rows:
            return self.method(function, self.method("unflatten", value.node, 1, (value.order, value.channels)), 1)
        return self.method(function, self.plain(value), 2)

    def fold(self, node: fx.Node) -> fx.Node | _Map:
        """Write a folding of the group axis into the batch."""
        value = self.values[node.all_input_nodes[0]]
        if isinstance(value, _Map) and not value.rows:
            return replace(value, rows=True)
        return self.method("flatten", self.method("transpose", self.plain(value), 1, 2), 0, 1)

    def unfold(self, node: fx.Node) -> fx.Node | _Map:
        """Write what undoes it; the order is a number, or a map on the group that has it."""
        value, order = self.values[node.all_input_nodes[0]], [*node.args, *node.kwargs.values()][1]
        if isinstance(order, fx.Node):
            like = self.values[order]
            order = like.order if isinstance(like, _Map) else self.method("size", like, 2)
        if isinstance(value, _Map) and value.rows and value.order == order:
            return replace(value, rows=False)
        return self.method("transpose", self.method("unflatten", self.plain(value), 0, (-1, order)), 1, 2)

    def plain(self, value: fx.Node | _Map) -> fx.Node:
        """Write a map as the network has it."""
        if not isinstance(value, _Map):
            return value
        apart = self.method("unflatten", value.node, 1, (value.order, value.channels))
        return self.method("flatten", apart, 0, 1) if value.rows else self.method("transpose", apart, 1, 2)

    def merge(self, value: fx.Node | _Map) -> fx.Node:
        """Write a map on the group, (B, C, |H|, Y, X), with its group axis merged into the channels."""
        if isinstance(value, _Map) and not value.rows:
            return value.node
        return self.method("flatten", self.method("transpose", self.plain(value), 1, 2), 1, 2)

    def exchange(self, x: fx.Node, sizes: tuple[int, int, int]) -> fx.Node:
        """Write an exchange of the outer two of three axes that are merged into the channels."""
        return self.method("flatten", self.method("transpose", self.method("unflatten", x, 1, sizes), 1, 2), 1, 3)

    def method(self, name: str, x: fx.Node, *args: Any) -> fx.Node:
        """Write a call of a tensor's method."""
        return self.graph.call_method(name, (x, *args))

    def make(self, old: nn.Module, order: int, new: Callable[[], dict[str, nn.Module]]) -> dict[str, nn.Module]:
        """Return the modules that stand for an old one, the same whenever it is called."""
        if (old, order) not in self.made:
            self.made[old, order] = new()
        return self.made[old, order]

    def call(self, node: fx.Node, modules: dict[str, nn.Module], x: fx.Node) -> fx.Node:
        """Write calls of new modules, one after the other, under the old one's name."""
        for suffix, module in modules.items():
            x = self.graph.call_module(self.name(str(node.target) + suffix, module), (x,))
        return x

    def name(self, name: str, part: nn.Module | Tensor) -> str:
        """Keep a module or tensor under a name that nothing else has."""
        name = name if isinstance(part, nn.Module) else name.replace(".", "_")
        while self.parts.setdefault(name, part) is not part:
            name += "_"
        return name

    def fuse_norms(self) -> None:
        """Multiply every batch norm that directly follows a convolution into its filters."""
        calls = Counter(node.target for node in self.graph.nodes if node.op == "call_module")
        for node in list(self.graph.nodes):
            norm = self.parts.get(str(node.target))
            if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
                continue
            (before,) = node.all_input_nodes
            convolution = self.parts.get(str(before.target))
            if type(convolution) is not nn.Conv2d and not (
                type(convolution) is nn.ConvTranspose2d and convolution.groups == 1
            ):
                continue
            if len(before.users) == calls[before.target] == 1:
                exact, affine = copy.deepcopy(convolution).double(), copy.deepcopy(norm).double()
                fused = fuse_conv_bn_eval(exact, affine, isinstance(exact, nn.ConvTranspose2d))
                self.parts[str(before.target)] = fused.to(convolution.weight.dtype)
                node.replace_all_uses_with(before)
                self.graph.erase_node(node)


def _treats_channels_alike(name: str, part: nn.Module | Tensor | None, node: fx.Node, rows: bool) -> bool:
    """Whether a step treats values, or planes, each by itself, so that the group axis may lie in the channels."""
    if name in _SPATIAL:
        return rows and not getattr(part, "return_indices", node.kwargs.get("return_indices", False))
    return name.rstrip("_") in _VALUEWISE
