"""Statistics of folded maps (N, C, Y, X), and batch norm, ReLU and max-pooling in one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ArgumentError
from .._affine import Affine
from ._library import SUFFIXES, check_readable, invoke
from ._memory import empty


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    return x.shape[0], x.shape[1], x.shape[2] * x.shape[3], torch.get_num_threads()


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel of maps (N, C, Y, X)."""
    if not (x.dtype in SUFFIXES and x.device.type == "cpu" and x.is_contiguous() and x.ndim == 4 and x.numel()):
        raise ArgumentError(f"x is {x.dtype} of shape {tuple(x.shape)} on {x.device}: no maps that the kernels read")
    if (known := _recall(x)) is not None:
        return known
    mean, var = x.new_empty(x.shape[1]), x.new_empty(x.shape[1])
    invoke("statistics", _sizes(x), (x, mean, var))
    return mean, var


def remember(y: Tensor, mean: Tensor, var: Tensor) -> None:
    """Note a map's statistics with it, (B, |H|, C, Y, X), as long as it lives and nobody writes to it."""
    y._moments = (y._version, mean, var)  # type: ignore[attr-defined]


def _recall(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return what was noted with maps, or with that whose folded axes they are."""
    noted = x if x._base is None else x._base
    version, mean, var = getattr(noted, "_moments", (-1, x, x))
    same = version == noted._version and x.shape[1:] == noted.shape[-3:] and x.numel() == noted.numel()
    return (mean, var) if same and noted.is_contiguous() and x.data_ptr() == noted.data_ptr() else None


class NormReluPool(torch.autograd.Function):
    """``max_pool2d(relu(norm(x)), 2)`` of ordinary maps (N, C, Y, X) on the CPU. Differentiable twice."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        """Pool; the arguments are x, gamma, beta, mean, var, eps and batch."""
        *tensors, ctx.eps, ctx.batch = args
        ctx.save_for_backward(*tensors)
        x, gamma, beta, mean, var = tensors
        x = x.contiguous()
        y = empty(x, _pooled(x))
        _pool("pool", (), ctx.eps, {"x": x, "gamma": gamma, "beta": beta, "mean": mean, "var": var, "y": y})
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Return the gradients, through the definition if they are to be differentiated in turn."""
        x, gamma, beta, mean, var = ctx.saved_tensors
        if torch.is_grad_enabled():
            y = F.max_pool2d(Affine(mean, var, gamma, beta, ctx.eps, ctx.batch).relu(x, derive=True), 2)
            wanted = [t for t, need in zip((x, gamma, beta), ctx.needs_input_grad, strict=False) if need]
            found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
            return tuple(next(found) if need else None for need in ctx.needs_input_grad)
        x, grad = x.contiguous(), grad.contiguous()
        dx, dgamma, dbeta = empty(x, x.shape), torch.empty_like(mean), torch.empty_like(mean)
        given = {"x": x, "gamma": gamma, "beta": beta, "mean": mean, "var": var, "dy": grad}
        _pool("pool_back", (ctx.batch,), ctx.eps, {**given, "dx": dx, "dgamma": dgamma, "dbeta": dbeta})
        return dx, None if gamma is None else dgamma, None if beta is None else dbeta, None, None, None, None


def _pooled(x: Tensor) -> tuple[int, ...]:
    return (*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)


def _pool(name: str, own: tuple[bool, ...], eps: float, tensors: dict[str, Tensor | None]) -> None:
    """Call a pooling kernel; backward it reads whether the norm's statistics are those of x."""
    check_readable(values := list(tensors.values()))
    x = tensors["x"]
    assert x is not None
    shapes = {"x": x.shape, "dx": x.shape, "y": _pooled(x), "dy": _pooled(x)}
    for what, t in tensors.items():
        expected = shapes.get(what, x.shape[1:2])
        if t is not None and (t.shape != expected or not x.numel()):
            raise ArgumentError(f"{what} has shape {tuple(t.shape)}, not {tuple(expected)} with values, for pooling")
    invoke(name, (*x.shape, torch.get_num_threads(), *own, eps), values)
