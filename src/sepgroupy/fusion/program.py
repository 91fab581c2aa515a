"""A network as a list of steps that run one after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.fx.node import map_arg

from .patterns import Patterns
from .steps import Call, FusedConv, FusedPool, Step, Values

Node = torch.fx.Node


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
        self._modules = modules
        self.steps = _with_sharing(self._steps(graph, Patterns(graph, modules, called)))
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

    def _steps(self, graph: torch.fx.Graph, patterns: Patterns) -> list[Step]:
        steps: list[Step] = []
        replaced: set[Node] = set()
        for node in reversed(graph.nodes):
            if node.op in ("placeholder", "output") or node in replaced:
                continue
            fused = patterns.fused_conv(node) or patterns.fused_pool(node)
            if fused is None:
                steps.append(Call(node, self._function(node)))
            else:
                steps.append(fused[0])
                replaced |= fused[1]
        return steps[::-1]

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


def _with_sharing(steps: list[Step]) -> list[Step]:
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


def _method(name: str) -> Callable[..., Any]:
    return lambda owner, *args, **kwargs: getattr(owner, name)(*args, **kwargs)
