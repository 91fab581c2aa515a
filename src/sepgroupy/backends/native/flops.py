"""FLOP formulas of the kernels' operators, for ``torch.utils.flop_counter``."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import torch

from ...groups import fourier_basis
from .limits import is_gathered
from .operator import OPTIONS, spec_of
from .orbits import orbits_of

FLOP_COUNTER = "torch.utils.flop_counter"

Shape = Sequence[int]


def _executed(
    x: Shape,  # (B, |H|, I, *spatial)
    weight: Shape,  # (O, I, |H|, k, …) or (O, I, |H|, 1, …)
    depthwise: Shape | None,  # (O, 1, 1, k, …) or (O, I, 1, k, …)
    options: Sequence[Any],  # of the operator
    y: Shape,  # (B, |H|, O, *spatial')
    of_images: bool = False,
) -> tuple[int, int]:
    """Return the operations of the products with a filter's blocks, and those of the depthwise step of a gc layer.

    A g filter counts as it is multiplied out, though wide vectors take less for its blocks of size two. The gradient of
    images is PyTorch's.
    """
    spec = spec_of((weight if depthwise is None else depthwise)[3:], *options)
    order, fourier = spec.group.order, fourier_basis(spec.group).multiplications
    multiplications = order if spec.kind == "lifting" else order**2 if spec.groups > 1 else fourier
    pair_of_channels = 2 * multiplications * weight[0] * weight[1] * x[0]
    kernel = math.prod(spec.kernel_size)
    if is_gathered(spec, weight[1]) and not of_images:
        orbits = len(orbits_of(spec.group, spec.kernel_size).first)
        return pair_of_channels * fourier * orbits // order * math.prod(y[3:]), 0
    if depthwise is None or depthwise[1] != 1:  # at the output's pixels, for each kernel element
        return pair_of_channels * kernel * math.prod(y[3:]), 0
    # At the input's pixels, once; then the kernel elements at the output's.
    return pair_of_channels * math.prod(x[3:]), 2 * x[0] * weight[0] * order * kernel * math.prod(y[3:])


def _forward(x: Shape, weight: Shape, depthwise: Shape | None, *others: Any, out_shape: Shape) -> int:
    return sum(_executed(x, weight, depthwise, others[-OPTIONS:], out_shape))


def _backward(
    grad: Shape,
    x: Shape,
    weight: Shape,
    depthwise: Shape | None,
    bias: Any,
    needs: Sequence[bool],
    *options: Any,
    **_: Any,
) -> int:
    products, depthwise_step = _executed(x, weight, depthwise, options, grad)
    wants_x, wants_filters = needs[0], needs[1] or needs[2]
    if not (wants_x or wants_filters):
        return 0
    if depthwise_step:  # both gradients of the depthwise step are one loop; the filters' needs the first step again
        return (wants_x + 2 * wants_filters) * products + 2 * depthwise_step
    of_x = _executed(x, weight, depthwise, options, grad, of_images=True)[0]
    return wants_x * of_x + wants_filters * products


def _transposed(
    x: Shape, weight: Shape, depthwise: Shape | None, bias: Any, size: Sequence[int], *options: Any, **_: Any
) -> int:
    return sum(_executed((*x[:2], weight[1], *size), weight, depthwise, options, x))


class _AfterImport(MetaPathFinder):
    """Registers the formulas when ``torch.utils.flop_counter`` is imported: to import it here would import Triton."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """Return the module's spec with a loader that registers the formulas after import."""
        if name != FLOP_COUNTER or (spec := PathFinder.find_spec(name, path, target)) is None:
            return None
        loader: Any = spec.loader
        run = loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            _register(module)

        loader.exec_module = run_and_register
        return spec


def _register(flop_counter: Any) -> None:
    operators = torch.ops.sepgroupy
    flop_counter.register_flop_formula(operators.group_conv)(_forward)
    flop_counter.register_flop_formula(operators.group_conv_backward)(_backward)
    flop_counter.register_flop_formula(operators.group_conv_transposed)(_transposed)


def register() -> None:
    """Tell ``torch.utils.flop_counter`` what the operators execute, now or when it is imported."""
    if FLOP_COUNTER in sys.modules:
        _register(sys.modules[FLOP_COUNTER])
    else:
        sys.meta_path.insert(0, _AfterImport())
