"""The steps of a network: calls of modules and functions, and fused kernels that replace several of these.

A fused step passes the batch statistics of its output to the next step as a separate value. At every run it checks its
modules and its input, and calls the modules one by one if no kernel supports them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

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
    merge_group,
    native_for,
    select_backend,
    split_group,
)
from ..backends.native import (
    Native,
    batch_statistics,
    norm_clamp,
    norm_relu_max_pool,
    parameter_dtype,
    reads_as_it_is,
    result_dtype,
    supports_max_pool,
)
from ..backends.native import max_pool as max_pool_by_kernel
from ..nn import GroupConvolution
from .folding import can_fold, fold

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
    """``clamp(after(conv(relu(before(x)))) + residual)``, where all but the convolution is optional.

    One kernel computes ``conv(relu(before(x))) + residual``. In inference ``after`` is folded into the filters, see
    :func:`fold`. Otherwise a second kernel computes ``after``, the sum and the clamping, with the statistics that the
    first one returns. All values but the convolution's may have the group axis merged into the batch.
    """

    node: Node  # the node whose value the step computes
    x: Node
    conv: GroupConvolution
    before: nn.BatchNorm2d | None
    after: nn.BatchNorm2d | None
    residual: Node | None
    bounds: tuple[float, float] | None  # those of ReLU or ReLU6
    merged: bool
    feeds_norm: bool  # whether a fused step reads the statistics of the result
    shares_x: bool  # whether later steps read x
    names: tuple[str, ...]

    def __call__(self, values: Values) -> None:
        """Compute the node."""
        conv, before, after = self.conv, self.before, self.after
        read = values.of[self.x]
        x = self._split(read, conv.spec.kind == "lifting")
        residual = None if self.residual is None else self._split(values.of[self.residual])
        conv.spec.check_input(x, conv.in_channels, getattr(conv, conv.filter_names[0]))
        folded = after if after is not None and can_fold(conv, after, x) else None
        called = after if folded is None else None
        backend = select_backend(conv.spec, x, conv.backend)
        added, stats = residual if called is None else None, None
        if before is None and x.dtype is torch.float32:
            x = x.to(result_dtype(x))
        if isinstance(backend, Native) and self._fits(x, residual):
            filters, bias = fold(conv, folded, backend, x)
            affine = None if before is None else batch_norm_parameters(before, x, values.stats.get(self.x))
            training = torch.is_grad_enabled() and conv.training
            shares_x = self.shares_x and training and x.dtype is read.dtype  # others read it as it is
            of_batch = self.feeds_norm if called is None else called.training
            y, x, stats = backend.run_fused(
                conv.spec,
                x,
                filters,
                bias,
                affine,
                added,
                return_stats=of_batch and training,
                share_x=shares_x,
            )
            if shares_x:
                values.of[self.x] = self._merge(x) if x.ndim == 5 else x
            if stats is not None and called is None:
                values.stats[self.node] = stats
        else:
            added = None
            if before is not None:
                x = self._split(F.relu(before(values.of[self.x])))
            y = conv(x) if folded is None else backend.run(conv.spec, x, *fold(conv, folded, backend, x))
        remaining = None if residual is None or added is not None else self._merge(residual)
        y = self._merge(y)
        values.of[self.node] = (
            _add_and_clamp(y, remaining, self.bounds)
            if called is None
            else (_norm_add_clamp(called, y, remaining, self.bounds, stats))
        )

    def _split(self, x: Tensor, lifting: bool = False) -> Tensor:
        return split_group(x, self.conv.spec.group.order) if self.merged and not lifting else x

    def _merge(self, x: Tensor) -> Tensor:
        return merge_group(x) if self.merged else x

    def _fits(self, x: Tensor, residual: Tensor | None) -> bool:
        """Whether the kernels support this input, batch norm and residual."""
        spec, norm = self.conv.spec, self.before
        if not can_bypass_dispatcher(x) or (norm is not None and not _has_kernel(norm, x)):
            return False
        if x.dtype is not result_dtype(x):
            return False
        if norm is not None and not reads_as_it_is(spec):
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
    fewer values. A kernel computes it; in inference, :func:`sepgroupy.backends.max_pool` is faster where windows do not
    overlap.
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
            y = self._pooled(x if norm is None else norm(x))
            values.of[self.node] = F.relu(y) if self.relu else y
            return
        affine = batch_norm_parameters(norm, x, values.stats.get(self.x))
        if x.ndim == 4:
            values.of[self.node] = norm_relu_max_pool(x, affine)
        else:
            values.of[self.node] = split_group(norm_relu_max_pool(merge_group(x), affine), x.shape[2])

    def _pooled(self, x: Tensor) -> Tensor:
        if not (can_bypass_dispatcher(x) and x.is_cpu and has_windows(x, self.window)):
            return self.pool(x)  # type: ignore[no-any-return]
        maps, (kernel, stride, _) = merge_group(x) if x.ndim == 5 else x, self.window
        by_slices = kernel == stride and not torch.is_grad_enabled()
        if not by_slices and native_for(x) and supports_max_pool(maps, self.window):
            y = max_pool_by_kernel(maps, self.window)
            return split_group(y, x.shape[2]) if x.ndim == 5 else y
        return self.pool(x) if torch.is_grad_enabled() else max_pool(x, *self.window)

    @property
    def reads(self) -> list[Node]:
        """The nodes that this step reads."""
        return [self.x]


Step: TypeAlias = Call | FusedConv | FusedPool


def _norm_add_clamp(
    norm: nn.BatchNorm2d,
    x: Tensor,
    residual: Tensor | None,
    bounds: tuple[float, float] | None,
    stats: Stats | None,
) -> Tensor:
    """Return ``clamp(norm(x) + residual)``, by one kernel where there is one."""
    merged = merge_group(x) if x.ndim == 5 else x
    fits = residual is None or (
        residual.shape == x.shape and residual.dtype == x.dtype and can_bypass_dispatcher(residual)
    )
    if not (fits and native_for(x) and _has_kernel(norm, x) and merged.is_contiguous()):
        return _add_and_clamp(norm(x), residual, bounds)
    affine = batch_norm_parameters(norm, x, stats)
    if residual is not None and residual.ndim == 5:
        residual = merge_group(residual)
    y = norm_clamp(merged, affine, residual, *(bounds or ()))
    return split_group(y, x.shape[2]) if x.ndim == 5 else y


def _add_and_clamp(x: Tensor, residual: Tensor | None, bounds: tuple[float, float] | None) -> Tensor:
    """Return ``clamp(x + residual)``; x, which nobody else reads, may be written to."""
    if residual is not None:
        x = x + residual
    if bounds is None:
        return x
    if torch.is_grad_enabled():
        return F.relu(x) if bounds[1] == math.inf else F.hardtanh(x, *bounds)
    return x.clamp_(*bounds)


def _has_kernel(norm: nn.BatchNorm2d, x: Tensor) -> bool:
    """Whether the kernels support such a norm of x. torch refuses statistics of a single value."""
    if not can_bypass_dispatcher(x) or not x.numel() or x.shape[1] != norm.num_features:
        return False
    own_stats = norm.training or norm.running_mean is None
    if (own_stats and x.numel() <= x.shape[1]) or (norm.running_mean is None) != (norm.running_var is None):
        return False
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    known = (x.dtype, parameter_dtype(x.dtype))
    return all(t is None or (t.dtype in known and t.device == x.device) for t in tensors)


def batch_norm_parameters(norm: nn.BatchNorm2d, x: Tensor, stats: Stats | None = None) -> BatchNormReLU:
    """Return the parameters that the norm applies to x, and update its running statistics like a call.

    Args:
        norm: in training or inference mode.
        x: (N, C, Y, X), or a group feature map (B, C, |H|, Y, X).
        stats: mean and biased variance of x by channel, if known.
    """
    dtype = parameter_dtype(x.dtype)
    if not norm.training and norm.running_mean is not None and norm.running_var is not None:
        mean, var = norm.running_mean, norm.running_var
        if torch.is_grad_enabled():  # they may change before the backward pass
            mean, var = mean.clone(), var.clone()
        return BatchNormReLU(mean, var, norm.weight, norm.bias, norm.eps, batch_stats=False).to(dtype)
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
            unbiased = var * (count / max(1, count - 1))
            running_mean.lerp_(mean.to(running_mean.dtype), momentum or 0.0)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum or 0.0)
    return BatchNormReLU(mean, var, norm.weight, norm.bias, norm.eps, batch_stats=True).to(dtype)
