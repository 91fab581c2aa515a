"""A network as a list of steps: calls of modules and functions, and fused kernels that replace several of these.

A fused step passes the batch statistics of its output to the next step as a separate value. At every run it checks its
modules and its input, and calls the modules one by one if no kernel supports them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.node import map_arg

from ..backends import (
    BatchNormReLU,
    Window,
    can_bypass_dispatcher,
    has_windows,
    max_pool,
    max_pool_window,
    merge_group,
    native_for,
    select_backend,
    split_group,
)
from ..backends.native import Native, batch_statistics, norm_relu_max_pool
from ..nn import GroupConv2d, GroupConvolution, LiftingConv2d, PerElement
from .folding import can_fold, fold
from .tracing import is_bypassable

Node = torch.fx.Node
Stats = tuple[Tensor, Tensor]


@dataclass
class Values:
    """The values of the graph's nodes so far."""

    of: dict[Node, Any] = field(default_factory=dict)
    stats: dict[Node, Stats] = field(default_factory=dict)
    """Mean and biased variance of each channel, where a fused step has computed them."""

    def free(self, nodes: tuple[Node, ...]) -> None:
        """Forget values that no later step reads."""
        for node in nodes:
            self.of.pop(node, None)
            self.stats.pop(node, None)


@dataclass(frozen=True)
class Call:
    """One node of the graph of torch.fx."""

    node: Node
    function: Callable[..., Any]

    def __call__(self, values: Values) -> None:
        """Compute the node."""
        node = self.node
        args, kwargs = map_arg((node.args, node.kwargs), values.of.__getitem__)
        values.of[node] = self.function(*args, **kwargs)

    @property
    def reads(self) -> list[Node]:
        """The nodes that this step reads."""
        return self.node.all_input_nodes


@dataclass(frozen=True)
class FusedConv:
    """``after(conv(relu(before(x)))) + residual``, where each norm, the ReLU and the residual are optional.

    One kernel computes ``conv(relu(before(x))) + residual``. In inference ``after`` is folded into the filters, see
    :func:`fold`. All values but the convolution's may have the group axis merged into the batch.
    """

    node: Node  # the node whose value the step computes
    x: Node
    conv: GroupConvolution
    before: nn.BatchNorm2d | None
    after: nn.BatchNorm2d | None
    residual: Node | None
    merged: bool
    feeds_norm: bool  # whether a fused step reads the statistics of the result
    shares_x: bool  # whether later steps read x
    names: tuple[str, ...]

    def __call__(self, values: Values) -> None:
        """Compute the node."""
        conv, before, after = self.conv, self.before, self.after
        x = self._split(values.of[self.x], conv.spec.kind == "lifting")
        residual = None if self.residual is None else self._split(values.of[self.residual])
        conv.spec.check_input(x, conv.in_channels, getattr(conv, conv.filter_names[0]))
        folded = after if after is not None and can_fold(conv, after, x) else None
        called = after if folded is None else None
        backend = select_backend(conv.spec, x, conv.backend)
        if isinstance(backend, Native) and self._fits(x, residual):
            filters, bias = fold(conv, folded, backend, x)
            affine = None if before is None else batch_norm_parameters(before, x, values.stats.get(self.x))
            training = torch.is_grad_enabled() and conv.training
            added = residual if called is None else None
            y, x, stats = backend.run_fused(
                conv.spec,
                x,
                filters,
                bias,
                affine,
                added,
                return_stats=self.feeds_norm and called is None and training,
                share_x=self.shares_x and training,
            )
            if self.shares_x:
                values.of[self.x] = self._merge(x) if x.ndim == 5 else x
            if stats is not None:
                values.stats[self.node] = stats
        else:
            added = None
            if before is not None:
                x = self._split(F.relu(before(values.of[self.x])))
            y = conv(x) if folded is None else backend.run(conv.spec, x, *fold(conv, folded, backend, x))
        y = self._merge(y)
        if called is not None:
            y = called(y)
        if residual is not None and added is None:
            y = y + self._merge(residual)
        values.of[self.node] = y

    def _split(self, x: Tensor, lifting: bool = False) -> Tensor:
        return split_group(x, self.conv.spec.group.order) if self.merged and not lifting else x

    def _merge(self, x: Tensor) -> Tensor:
        return merge_group(x) if self.merged else x

    def _fits(self, x: Tensor, residual: Tensor | None) -> bool:
        """Whether the kernel can read these tensors without a copy."""
        spec, norm = self.conv.spec, self.before
        if not can_bypass_dispatcher(x) or (norm is not None and not _has_kernel(norm, x)):
            return False
        if norm is not None and spec.pads_separately:
            return False
        if residual is None:
            return True
        shape = (x.shape[0], self.conv.out_channels, spec.group.order, *spec.output_size(*x.shape[-spec.dimension :]))
        return residual.shape == shape and residual.dtype == x.dtype and can_bypass_dispatcher(residual)

    @property
    def reads(self) -> list[Node]:
        """The nodes that this step reads."""
        return [self.x] if self.residual is None else [self.x, self.residual]


@dataclass(frozen=True)
class FusedPool:
    """``max_pool(relu(norm(x)))``, where norm and ReLU are optional.

    One kernel computes all of it for 2×2 pixels after a norm. Otherwise pooling comes before the ReLU, which then has
    fewer values, in inference by :func:`sepgroupy.backends.max_pool`.
    """

    node: Node
    x: Node
    norm: nn.BatchNorm2d | None
    relu: bool
    pool: nn.Module
    window: Window
    names: tuple[str, ...]

    def __call__(self, values: Values) -> None:
        """Compute the node."""
        x, norm = values.of[self.x], self.norm
        if norm is None or not (native_for(x) and _has_kernel(norm, x) and min(x.shape[-2:]) > 1):
            y = x if norm is None else norm(x)
            by_slices = not torch.is_grad_enabled() and can_bypass_dispatcher(y) and y.is_cpu
            by_slices = by_slices and has_windows(y, self.window)
            y = max_pool(y, *self.window) if by_slices else self.pool(y)
            values.of[self.node] = F.relu(y) if self.relu else y
            return
        affine = batch_norm_parameters(norm, x, values.stats.get(self.x))
        if x.ndim == 4:
            values.of[self.node] = norm_relu_max_pool(x, affine)
        else:
            values.of[self.node] = split_group(norm_relu_max_pool(merge_group(x), affine), x.shape[2])

    @property
    def reads(self) -> list[Node]:
        """The nodes that this step reads."""
        return [self.x]


Step = Call | FusedConv | FusedPool


class Program:
    """The steps of one model in one state: the modules to check, and the training mode of each.

    Args:
        graph: the calls of the model.
        modules: its modules by name.
        called: modules that are not fused.
    """

    def __init__(self, graph: torch.fx.Graph, modules: dict[str, nn.Module], called: set[nn.Module]) -> None:
        (self.input,) = (node for node in graph.nodes if node.op == "placeholder")
        (output,) = (node for node in graph.nodes if node.op == "output")
        self.output = output.args[0]
        self._graph, self._modules, self._called = graph, modules, called
        self.steps = self._steps(graph)
        reads: list[list[Node]] = []
        map_arg(self.output, lambda node: reads.append([node]))
        last = {node: len(self.steps) for nodes in reads for node in nodes}
        for index in reversed(range(len(self.steps))):
            for node in self.steps[index].reads:
                last.setdefault(node, index)
        self._free = [tuple(n for n, at in last.items() if at == index) for index in range(len(self.steps))]

    @property
    def fused(self) -> list[FusedConv | FusedPool]:
        """The fused steps."""
        return [step for step in self.steps if not isinstance(step, Call)]

    def __call__(self, x: Tensor) -> Any:
        """Run all steps."""
        values = Values({self.input: x})
        for step, free in zip(self.steps, self._free, strict=True):
            step(values)
            values.free(free)
        return map_arg(self.output, values.of.__getitem__)

    def _steps(self, graph: torch.fx.Graph) -> list[Step]:
        steps: list[Step] = []
        replaced: set[Node] = set()
        for node in reversed(graph.nodes):
            if node.op in ("placeholder", "output") or node in replaced:
                continue
            fused = self._fused_conv(node) or self._fused_pool(node)
            if fused is None:
                steps.append(Call(node, self._function(node)))
            else:
                steps.append(fused[0])
                replaced |= fused[1]
        steps.reverse()
        return self._with_sharing(steps)

    def _function(self, node: Node) -> Callable[..., Any]:
        if node.op == "call_module":
            return self._modules[str(node.target)]
        if node.op == "call_method":
            return _method(str(node.target))
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            module = self._modules[owner]
            return lambda: getattr(module, name)
        assert callable(node.target)
        return node.target

    def _with_sharing(self, steps: list[Step]) -> list[Step]:
        """Mark fused steps whose input is also read later, and those whose output a fused norm reads."""
        pools = {step.x for step in steps if isinstance(step, FusedPool) and step.norm}
        normed = pools | {step.x for step in steps if isinstance(step, FusedConv) and step.before}
        later: set[Node] = set()
        marked: list[Step] = []
        for step in reversed(steps):
            if isinstance(step, FusedConv):
                step = replace(step, shares_x=step.x in later, feeds_norm=step.node in normed)
            later.update(step.reads)
            marked.append(step)
        return marked[::-1]

    # ---- patterns -------------------------------------------------------------------------------------------------

    def _module(self, node: Any, *classes: type[nn.Module]) -> Any:
        """Return the module that a node calls, if it is of one of the classes and may be fused."""
        if not (isinstance(node, Node) and node.op == "call_module"):
            return None
        module = self._modules[str(node.target)]
        plain = isinstance(module, classes) and is_bypassable(module) and module not in self._called
        return module if plain else None

    def _fused_conv(self, node: Node) -> tuple[FusedConv, set[Node]] | None:
        for summand, residual in ((node, None), *_summands(node)):
            after = self._module(summand, nn.BatchNorm2d)
            result = summand if after is None else _only_argument(summand)
            if result is None or (after is not None and not _is_read_once(result)):
                continue
            found_conv = self._conv(result)
            if found_conv is None or (residual is not None and not isinstance(found_conv[0], GroupConv2d)):
                continue
            conv, x, conv_nodes, merged = found_conv
            nodes, before, names = {node, summand, *conv_nodes}, None, [str(conv_nodes[0].target)]
            if isinstance(conv, GroupConv2d) and (found := self._norm_before_relu(x)) is not None:
                before, x, earlier_nodes, earlier_names = found
                nodes, names = nodes | earlier_nodes, [*earlier_names, *names]
            if after is not None:
                names.append(str(summand.target))
            if (residual is x and before is None) or self._is_written_among(nodes):
                return None
            return FusedConv(node, x, conv, before, after, residual, merged, False, False, tuple(names)), nodes
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

    def _fused_pool(self, node: Node) -> tuple[FusedPool, set[Node]] | None:
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

    def _before_relu(self, node: Any) -> Node | None:
        """Return the input of a ReLU, if input and output of the ReLU have no other reader."""
        if not _is_read_once(node):
            return None
        is_module = self._module(node, nn.ReLU) is not None
        is_function = node.op == "call_function" and node.target in (F.relu, torch.relu) and not node.kwargs
        x = _only_argument(node)
        return x if (is_module or is_function) and _is_read_once(x) else None


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


def _method(name: str) -> Callable[..., Any]:
    return lambda owner, *args, **kwargs: getattr(owner, name)(*args, **kwargs)


def _is_read_once(node: Any) -> TypeGuard[Node]:
    return isinstance(node, Node) and len(node.users) == 1


def _is_of_2x2(pool: nn.Module) -> bool:
    """Whether it pools blocks of 2×2 pixels."""
    settings = (pool.kernel_size, pool.stride, pool.padding)
    return all(value in (n, (n, n)) for value, n in zip(settings, (2, 2, 0), strict=True))


def _has_kernel(norm: nn.BatchNorm2d, x: Tensor) -> bool:
    """Whether the kernels support such a norm of x. torch refuses statistics of a single value."""
    if not can_bypass_dispatcher(x) or not x.numel() or x.shape[1] != norm.num_features:
        return False
    own_stats = norm.training or norm.running_mean is None
    if (own_stats and x.numel() <= x.shape[1]) or (norm.running_mean is None) != (norm.running_var is None):
        return False
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return all(t is None or (t.dtype == x.dtype and t.device == x.device) for t in tensors)


def batch_norm_parameters(norm: nn.BatchNorm2d, x: Tensor, stats: Stats | None = None) -> BatchNormReLU:
    """Return the parameters that the norm applies to x, and update its running statistics like a call.

    Args:
        norm: in training or inference mode.
        x: (N, C, Y, X), or a group feature map (B, C, |H|, Y, X).
        stats: mean and biased variance of x by channel, if known.
    """
    if not norm.training and norm.running_mean is not None and norm.running_var is not None:
        mean, var = norm.running_mean, norm.running_var
        if torch.is_grad_enabled():  # they may change before the backward pass
            mean, var = mean.clone(), var.clone()
        return BatchNormReLU(mean, var, norm.weight, norm.bias, norm.eps, batch_stats=False)
    momentum = norm.momentum
    tracks = norm.training and norm.track_running_stats
    running_mean, running_var = (norm.running_mean, norm.running_var) if tracks else (None, None)
    if tracks and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    with torch.no_grad():
        merged = merge_group(x) if x.ndim == 5 else x
        if stats is None:
            stats = batch_statistics(merged.detach().contiguous())
        mean, var = stats
        if running_mean is not None and running_var is not None:
            count = merged.numel() // merged.shape[1]
            running_mean.lerp_(mean, momentum or 0.0)
            running_var.lerp_(var * (count / max(1, count - 1)), momentum or 0.0)
    return BatchNormReLU(mean, var, norm.weight, norm.bias, norm.eps, batch_stats=True)
