"""A network as a list of steps: calls of its modules and functions, and fused kernels in place of several of them.

A fused step hands the batch statistics of its output to the next one as a value of its own. It looks at its modules and
its input whenever it runs, and calls the modules one by one where no kernel does all of it.
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

from ..backends import BatchNormReLU, can_bypass_dispatcher, merge_group, native_for, select_backend, split_group
from ..backends.native import Native, batch_statistics, norm_relu_max_pool
from ..nn import GroupConv2d, GroupConvolution, LiftingConv2d, PerElement
from .tracing import is_bypassable

Node = torch.fx.Node
Stats = tuple[Tensor, Tensor]


@dataclass
class Values:
    """What the nodes of the graph have computed so far."""

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
    """One node of the graph, as torch.fx describes it."""

    node: Node
    function: Callable[..., Any]

    def __call__(self, values: Values) -> None:
        """Compute the node."""
        node = self.node
        args, kwargs = map_arg((node.args, node.kwargs), values.of.__getitem__)
        values.of[node] = self.function(*args, **kwargs)

    @property
    def reads(self) -> list[Node]:
        """The nodes whose values this step reads."""
        return self.node.all_input_nodes


@dataclass(frozen=True)
class FusedConv:
    """``conv(relu(norm(x))) + residual`` by one kernel; norm and residual may be missing."""

    node: Node  # whose value this is
    x: Node
    conv: GroupConvolution
    norm: nn.BatchNorm2d | None
    residual: Node | None
    feeds_norm: bool  # whether a fused step reads the statistics of the result
    shares_x: bool  # whether later steps read x
    names: tuple[str, ...]

    def __call__(self, values: Values) -> None:
        """Compute the node."""
        conv, norm, x = self.conv, self.norm, values.of[self.x]
        residual = None if self.residual is None else values.of[self.residual]
        conv.spec.check_input(x, conv.in_channels, getattr(conv, conv.filter_names[0]))
        backend = select_backend(conv.spec, x, conv.backend)
        if not (isinstance(backend, Native) and self._fits(x, residual)):
            y = conv(x if norm is None else F.relu(norm(x)))
            values.of[self.node] = y if residual is None else y + residual
            return
        affine = None if norm is None else batch_norm_parameters(norm, x, values.stats.get(self.x))
        training = torch.is_grad_enabled() and conv.training
        y, x, stats = backend.run_fused(
            conv.spec,
            x,
            conv.expanded_filters(backend, x),
            conv.bias,
            affine,
            residual,
            return_stats=self.feeds_norm and training,
            share_x=self.shares_x and training,
        )
        values.of[self.node] = y
        if self.shares_x:
            values.of[self.x] = x
        if stats is not None:
            values.stats[self.node] = stats

    def _fits(self, x: Tensor, residual: Tensor | None) -> bool:
        """Whether the kernel reads these tensors as they are."""
        spec, norm = self.conv.spec, self.norm
        if not can_bypass_dispatcher(x) or (norm is not None and not _has_kernel(norm, x)):
            return False
        if norm is not None and spec.pads_separately:
            return False
        if residual is None:
            return True
        shape = (x.shape[0], self.conv.out_channels, spec.group.order, *spec.output_size(*x.shape[-2:]))
        return residual.shape == shape and residual.dtype == x.dtype and can_bypass_dispatcher(residual)

    @property
    def reads(self) -> list[Node]:
        """The nodes whose values this step reads."""
        return [self.x] if self.residual is None else [self.x, self.residual]


@dataclass(frozen=True)
class FusedPool:
    """``max_pool(relu(norm(x)))`` of 2×2 pixels by one kernel."""

    node: Node
    x: Node
    norm: nn.BatchNorm2d
    pool: nn.Module
    names: tuple[str, ...]

    def __call__(self, values: Values) -> None:
        """Compute the node."""
        x, norm = values.of[self.x], self.norm
        if not (native_for(x) and _has_kernel(norm, x) and min(x.shape[-2:]) > 1):
            values.of[self.node] = F.relu(self.pool(norm(x)))  # in this order on a quarter of the pixels
            return
        affine = batch_norm_parameters(norm, x, values.stats.get(self.x))
        if x.ndim == 4:
            values.of[self.node] = norm_relu_max_pool(x, affine)
        else:
            values.of[self.node] = split_group(norm_relu_max_pool(merge_group(x), affine), x.shape[2])

    @property
    def reads(self) -> list[Node]:
        """The nodes whose values this step reads."""
        return [self.x]


Step = Call | FusedConv | FusedPool


class Program:
    """The steps of one model in one state: which modules are watched, and whether each is in training.

    Args:
        graph: the calls of the model.
        modules: its modules by name.
        called: modules that are to be called as they are.
    """

    def __init__(self, graph: torch.fx.Graph, modules: dict[str, nn.Module], called: set[nn.Module]) -> None:
        (self.input,) = (node for node in graph.nodes if node.op == "placeholder")
        (output,) = (node for node in graph.nodes if node.op == "output")
        self.output = output.args[0]
        self._modules, self._called = modules, called
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
        """Mark the fused steps whose input later steps read too, and those whose output a fused norm reads."""
        normed = {
            step.x for step in steps if isinstance(step, FusedPool) or (isinstance(step, FusedConv) and step.norm)
        }
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
        """Return the module that a node calls, if it is of one of the classes and a kernel may stand for it."""
        if not (isinstance(node, Node) and node.op == "call_module"):
            return None
        module = self._modules[str(node.target)]
        plain = isinstance(module, classes) and is_bypassable(module) and module not in self._called
        return module if plain else None

    def _fused_conv(self, node: Node) -> tuple[FusedConv, set[Node]] | None:
        conv_node, residual = node, None
        if node.op == "call_function" and node.target in (operator.add, torch.add) and len(node.args) == 2:
            if node.kwargs:
                return None
            for mine, other in (node.args, node.args[::-1]):
                if self._module(mine, GroupConv2d) is not None and _is_read_once(mine) and isinstance(other, Node):
                    conv_node, residual = mine, other
                    break
            else:
                return None
        conv = self._module(conv_node, GroupConv2d, LiftingConv2d)
        if conv is None or len(conv_node.args) != 1 or conv_node.kwargs:
            return None
        x, nodes, norm = conv_node.args[0], {conv_node}, None
        names: tuple[str, ...] = (str(conv_node.target),)
        if isinstance(conv, GroupConv2d) and (found := self._norm_before_relu(x)) is not None:
            norm, x, more, before = found
            nodes, names = nodes | more, (*before, *names)
        if not isinstance(x, Node) or (residual is x and norm is None):
            return None
        return FusedConv(node, x, conv, norm, residual, False, False, names), nodes

    def _fused_pool(self, node: Node) -> tuple[FusedPool, set[Node]] | None:
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            return None
        pool = self._modules[str(node.target)]
        inner = pool.module if type(pool) is PerElement and pool not in self._called else pool
        if not _is_max_pool(inner) or pool in self._called or inner in self._called:
            return None
        found = self._norm_before_relu(node.args[0])
        if found is None:
            return None
        norm, x, nodes, names = found
        name = str(node.target)
        inside = () if inner is pool else (f"{name}.module",)
        return FusedPool(node, x, norm, pool, (*names, name, *inside)), nodes

    def _norm_before_relu(self, node: Any) -> tuple[nn.BatchNorm2d, Node, set[Node], tuple[str, ...]] | None:
        """Return the batch norm of relu(norm(x)), x, the two nodes and the names of their modules."""
        if not _is_read_once(node):
            return None
        is_module = self._module(node, nn.ReLU) is not None
        is_function = node.op == "call_function" and node.target in (F.relu, torch.relu) and not node.kwargs
        if not (is_module or is_function) or len(node.args) != 1 or not _is_read_once(node.args[0]):
            return None
        norm_node = node.args[0]
        norm = self._module(norm_node, nn.BatchNorm2d)
        if norm is None or len(norm_node.args) != 1 or not isinstance(norm_node.args[0], Node):
            return None
        names = (str(norm_node.target), *((str(node.target),) if is_module else ()))
        return norm, norm_node.args[0], {node, norm_node}, names


def _method(name: str) -> Callable[..., Any]:
    return lambda owner, *args, **kwargs: getattr(owner, name)(*args, **kwargs)


def _is_read_once(node: Any) -> TypeGuard[Node]:
    return isinstance(node, Node) and len(node.users) == 1


def _is_max_pool(module: nn.Module) -> bool:
    """Whether it takes the maximum of each 2×2 pixels."""
    if not (isinstance(module, nn.MaxPool2d) and is_bypassable(module)):
        return False
    settings = (module.kernel_size, module.stride, module.padding, module.dilation)
    wanted = ((2, (2, 2)), (2, (2, 2)), (0, (0, 0)), (1, (1, 1)))
    same = all(value in known for value, known in zip(settings, wanted, strict=True))
    return same and not module.ceil_mode and not module.return_indices


def _has_kernel(norm: nn.BatchNorm2d, x: Tensor) -> bool:
    """Whether the kernels compute such a norm of x; torch refuses statistics of a single value, and half of them."""
    if not can_bypass_dispatcher(x) or not x.numel() or x.shape[1] != norm.num_features:
        return False
    own_stats = norm.training or norm.running_mean is None
    if (own_stats and x.numel() <= x.shape[1]) or (norm.running_mean is None) != (norm.running_var is None):
        return False
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return all(t is None or (t.dtype == x.dtype and t.device == x.device) for t in tensors)


def batch_norm_parameters(norm: nn.BatchNorm2d, x: Tensor, stats: Stats | None = None) -> BatchNormReLU:
    """Return what the norm would apply to x, and update its running statistics as its call would.

    Args:
        norm: in training or inference mode.
        x: (N, C, Y, X), or a group feature map (B, C, |H|, Y, X).
        stats: mean and biased variance of x by channel, if they are known.
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
