"""One process of ``compare``: measure what is asked for, with the version of the library that is on the path.

A request is a line of JSON on standard input, its answer a line on standard output. This file and what it imports run
with every version; the differences between versions are in ``APIS``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .cases import LayerCase, NetworkCase
from .measure import Run, Variant, seconds, warm_seconds

sepgroupy: Any = importlib.import_module("sepgroupy")
CPU = torch.device("cpu")


class NormArgument(nn.Module):
    """Batch norm, ReLU and a group convolution where the convolution takes the norm as an argument."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(conv.in_channels), conv  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve relu(norm(x))."""
        return self.conv(x, self.norm)


def fused_sequential(conv: nn.Module) -> nn.Module:
    """Return batch norm, ReLU and a group convolution, fused."""
    norm = sepgroupy.GroupBatchNorm2d(conv.in_channels)
    return sepgroupy.fuse(nn.Sequential(norm, nn.ReLU(), conv))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Api:
    """Calls that differ between versions of the library.

    Args:
        kernels: describe the kernels.
        prepare_network: make a network of the library's as fast as it can be.
        inference_context: the context of inference rows.
        after_norm: put batch norm and ReLU before a group convolution.
    """

    kernels: Callable[[], str]
    prepare_network: Callable[[nn.Module], nn.Module]
    inference_context: Callable[[nn.Module], AbstractContextManager[Any]]
    after_norm: Callable[[nn.Module], nn.Module]


APIS = {
    "fuse": lambda: Api(
        kernels=lambda: str(sepgroupy.available_backends()["native"]),
        prepare_network=sepgroupy.fuse,
        inference_context=sepgroupy.cached_filters,
        after_norm=fused_sequential,
    ),
    "Folded": lambda: Api(
        kernels=lambda: str(sepgroupy.backends()["native"]),
        prepare_network=lambda model: model,
        inference_context=nullcontext,
        after_norm=NormArgument,
    ),
}
"""By a name that the package has: fusion by one call, or fusion by arguments of layers."""


def api() -> Api:
    """Return the calls of the version on the path."""
    for name, make in APIS.items():
        if hasattr(sepgroupy, name):
            return make()
    raise RuntimeError(f"{sepgroupy.__file__} has none of {', '.join(APIS)}: add its calls to benchmarks/worker.py")


class Functional(nn.Module):
    """A call of ``sepgroupy.functional`` with a layer's parameters."""

    def __init__(self, case: LayerCase) -> None:
        super().__init__()
        self.layer, self.case = case.layer(), case
        functions = sepgroupy.functional
        self.function = {"lifting": functions.lifting_conv2d, "dense": functions.group_conv2d}.get(
            case.kind, functions.separable_group_conv2d
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        case = self.case
        return self.function(x, *self.layer.parameters(), stride=case.stride, padding=case.padding, group=case.group)


def build(subject: str, case: dict[str, Any]) -> Run:
    """Build a subject of ``SUBJECTS``; equal seeds draw equal parameters in all versions."""
    torch.manual_seed(0)
    return SUBJECTS[subject](case)


def _layer(case: LayerCase, module: nn.Module) -> Run:
    context = api().inference_context
    return Run(Variant("layer", module, group_outermost=True, inference_context=context), case.input(CPU))


def _network(case: NetworkCase, context: Callable[[nn.Module], AbstractContextManager[Any]]) -> Run:
    model = api().prepare_network(sepgroupy.build_model(case.model))
    return Run(Variant("network", model, inference_context=context), *case.images(CPU))


SUBJECTS: dict[str, Callable[[dict[str, Any]], Run]] = {
    "layer": lambda case: _layer(LayerCase(**case), LayerCase(**case).layer()),
    "norm-relu-layer": lambda case: _layer(LayerCase(**case), api().after_norm(LayerCase(**case).layer())),
    "small layer": lambda case: _layer(LayerCase(**case), LayerCase(**case).layer()),
    "function": lambda case: _layer(LayerCase(**case), Functional(LayerCase(**case))),
    "network": lambda case: _network(NetworkCase(**case), api().inference_context),
    "network without cache": lambda case: _network(NetworkCase(**case), nullcontext),
}
"""The kinds of rows, each built from the fields of its case."""


class Session:
    """Answer requests about one subject at a time."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.contexts = ExitStack()

    def prepare(self, subject: str, case: dict[str, Any], measures: list[str]) -> dict[str, Any]:
        """Build a subject in place of the last one; return some outputs and, for each measure, a first result."""
        self.contexts.close()
        self.run = run = build(subject, case)
        self.contexts.enter_context(run.variant.inference_context(run.module))
        run.module.eval()
        y = run.infer().flatten()
        first: dict[str, float] = {}
        for measure in measures:
            run.module.train(measure != "inference")
            if measure == "saved":
                first[measure] = run.saved_activation_bytes()
            else:
                first[measure] = warm_seconds(self._call(measure), CPU)
        return {"first": first, "outputs": y[:: max(1, y.numel() // 256)].tolist()}

    def time(self, measure: str, repeats: int) -> float:
        """Return the seconds of a call."""
        assert self.run is not None
        self.run.module.train(measure != "inference")
        return seconds(self._call(measure), CPU, repeats)

    def _call(self, measure: str) -> Callable[[], Any]:
        assert self.run is not None
        return {"inference": self.run.infer, "step": self.run.step}[measure]


def serve() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints must not appear among the answers
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    session = Session()
    print(json.dumps({"file": sepgroupy.__file__, "kernels": api().kernels()}), file=answers, flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"result": getattr(session, name)(*arguments)}
        except Exception as error:  # the row is refused, others follow
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
