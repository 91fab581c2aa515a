"""The patterns of calls that one kernel can compute, in a graph of torch.fx."""

from __future__ import annotations

import math
import operator
from typing import Any, TypeGuard

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from ..backends import max_pool_window, merge_group, split_group
from ..nn import GroupConv2d, GroupConvolution, LiftingConv2d, PerElement
from .steps import FusedConv, FusedPool
from .tracing import is_bypassable

Node = torch.fx.Node


class Patterns:
    """Find the calls before a node that a fused step can replace.

    Args:
        graph: the calls of the model.
        modules: its modules by name.
        called: modules that are not fused.
    """

    def __init__(self, graph: torch.fx.Graph, modules: dict[str, nn.Module], called: set[nn.Module]) -> None:
        self._graph, self._modules, self._called = graph, modules, called

    def _module(self, node: Any, *classes: type[nn.Module]) -> Any:
        """Return the module that a node calls, if it is of one of the classes and may be fused."""
        if not (isinstance(node, Node) and node.op == "call_module"):
            return None
        module = self._modules[str(node.target)]
        plain = isinstance(module, classes) and is_bypassable(module) and module not in self._called
        return module if plain else None

    def fused_conv(self, node: Node) -> tuple[FusedConv, set[Node]] | None:
        """Return the fused convolution that computes a node, and the nodes that it replaces."""
        clamped = self._clamped(node)
        total, bounds = (node, None) if clamped is None else clamped
        for summand, residual in ((total, None), *_summands(total)):
            after = self._module(summand, nn.BatchNorm2d)
            result = summand if after is None else _only_argument(summand)
            if result is None or (after is not None and not _is_read_once(result)):
                continue
            if bounds is not None and after is None:
                continue
            found_conv = self._conv(result)
            if found_conv is None or (residual is not None and not _takes_more(found_conv[0])):
                continue
            conv, x, conv_nodes, merged = found_conv
            nodes, before, names = {node, total, summand, *conv_nodes}, None, [str(conv_nodes[0].target)]
            if _takes_more(conv) and (found := self._norm_before_relu(x)) is not None:
                before, x, earlier_nodes, earlier_names = found
                nodes, names = nodes | earlier_nodes, [*earlier_names, *names]
            if after is not None:
                names.append(str(summand.target))
            if bounds is not None and node.op == "call_module":
                names.append(str(node.target))
            if (residual is x and before is None) or self._is_written_among(nodes):
                return None
            return FusedConv(node, x, conv, before, after, residual, bounds, merged, False, False, tuple(names)), nodes
        return None

    def _conv(self, node: Node) -> tuple[GroupConvolution, Node, list[Node], bool] | None:
        """Return the convolution that computes a node, its input, the nodes, and whether both are merged."""
        merged = node.op == "call_function" and node.target is merge_group
        conv_node = node.args[0] if merged else node
        conv = self._module(conv_node, GroupConv2d, LiftingConv2d)
        x = _only_argument(conv_node)
        if not isinstance(conv_node, Node) or conv is None or x is None:
            return None
        if not merged:
            return conv, x, [conv_node], False
        if not _is_read_once(conv_node):
            return None
        if isinstance(conv, LiftingConv2d):
            return conv, x, [conv_node, node], True
        splits = x.op == "call_function" and x.target is split_group and x.args[1:] == (conv.group.order,)
        if not (splits and _is_read_once(x) and isinstance(x.args[0], Node)):
            return None
        return conv, x.args[0], [conv_node, node, x], True

    def fused_pool(self, node: Node) -> tuple[FusedPool, set[Node]] | None:
        """Return the fused pooling that computes a node, and the nodes that it replaces."""
        x = _only_argument(node)
        if node.op != "call_module" or x is None:
            return None
        pool = self._modules[str(node.target)]
        inner = pool.module if type(pool) is PerElement and pool not in self._called else pool
        window = max_pool_window(inner)
        if window is None or not is_bypassable(inner) or pool in self._called or inner in self._called:
            return None
        names: tuple[str, ...] = (str(node.target), *(() if inner is pool else (f"{node.target}.module",)))
        nodes, norm, relu = {node}, None, False
        if _is_of_2x2(inner) and (found := self._norm_before_relu(x)) is not None:
            norm, x, nodes, earlier = found
            relu, nodes, names = True, {node, *nodes}, (*earlier, *names)
        elif (before := self._before_relu(x)) is not None:
            relu, nodes, names = True, {node, x}, (*((str(x.target),) if x.op == "call_module" else ()), *names)
            x = before
        if self._is_written_among(nodes):
            return None
        return FusedPool(node, x, norm, relu, pool, window, names), nodes

    def _is_written_among(self, nodes: set[Node]) -> bool:
        """Whether a tensor may be written in place after the first of the nodes and before the last one.

        A fused step computes all of them at the place of the last one.
        """
        ordered = list(self._graph.nodes)
        places = sorted(ordered.index(node) for node in nodes)
        return any(n not in nodes and self._may_write(n) for n in ordered[places[0] : places[-1]])

    def _may_write(self, node: Node) -> bool:
        if node.op == "call_module":
            module = self._modules[str(node.target)]
            known = type(module).__module__.startswith(("torch.nn.", "sepgroupy."))
            return not known or any(getattr(part, "inplace", False) for part in module.modules())
        if node.op == "call_method":
            return str(node.target).endswith("_")
        name = getattr(node.target, "__name__", "")
        in_place = name.endswith("_") or (getattr(operator, name, None) is node.target and name.startswith("i"))
        asked = "out" in node.kwargs or "inplace" in node.kwargs or any(a is True for a in node.args)
        return node.op == "call_function" and (in_place or asked)

    def _norm_before_relu(self, node: Any) -> tuple[nn.BatchNorm2d, Node, set[Node], tuple[str, ...]] | None:
        """Return the batch norm of relu(norm(x)), x, the two nodes and the names of their modules."""
        norm_node = self._before_relu(node)
        norm, x = self._module(norm_node, nn.BatchNorm2d), _only_argument(norm_node)
        if norm_node is None or norm is None or x is None:
            return None
        names = (str(norm_node.target), *((str(node.target),) if node.op == "call_module" else ()))
        return norm, x, {node, norm_node}, names

    def _clamped(self, node: Node) -> tuple[Node, tuple[float, float]] | None:
        """Return the input of a ReLU or ReLU6 that alone reads it, and the bounds of the output."""
        module = self._module(node, nn.ReLU, nn.ReLU6)
        x = _only_argument(node)
        if not _is_read_once(x):
            return None
        if isinstance(module, nn.ReLU6):
            return x, (0.0, 6.0)
        if module is not None or (node.op == "call_function" and node.target in (F.relu, torch.relu)):
            return x, (0.0, math.inf)
        return None

    def _before_relu(self, node: Any) -> Node | None:
        """Return the input of a ReLU, if input and output of the ReLU have no other reader."""
        if not _is_read_once(node):
            return None
        is_module = self._module(node, nn.ReLU) is not None
        is_function = node.op == "call_function" and node.target in (F.relu, torch.relu) and not node.kwargs
        x = _only_argument(node)
        return x if (is_module or is_function) and _is_read_once(x) else None


def _takes_more(conv: GroupConvolution) -> bool:
    """Whether a kernel computes such a convolution together with a norm before and a residual after it."""
    return isinstance(conv, GroupConv2d) and conv.groups == 1


def _summands(node: Node) -> list[tuple[Node, Node]]:
    """Return the two summands of an addition, in both orders, if the first has no other reader."""
    adds = node.op == "call_function" and node.target in (operator.add, operator.iadd, torch.add)
    if not adds or len(node.args) != 2 or node.kwargs:
        return []
    pairs = (node.args, node.args[::-1])[: 1 if node.target is operator.iadd else 2]  # which writes to the first
    return [(a, b) for a, b in pairs if _is_read_once(a) and isinstance(b, Node)]


def _only_argument(node: Any) -> Node | None:
    """Return the only argument of a node, if it is a node."""
    plain = isinstance(node, Node) and len(node.args) == 1 and not node.kwargs and isinstance(node.args[0], Node)
    return node.args[0] if plain else None


def _is_read_once(node: Any) -> TypeGuard[Node]:
    return isinstance(node, Node) and len(node.users) == 1


def _is_of_2x2(pool: nn.Module) -> bool:
    """Whether it pools blocks of 2×2 pixels."""
    settings = (pool.kernel_size, pool.stride, pool.padding)
    return all(value in (n, (n, n)) for value, n in zip(settings, (2, 2, 0), strict=True))
