"""The processes of a run, started by Lightning Fabric: each has a shard of every batch, rank 0 reads and writes."""

from __future__ import annotations

import atexit
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ArgumentError, RunError
from ..nn import GROUP_BATCH_NORMS
from ._config import TrainingConfig

if TYPE_CHECKING:
    from ._fabric import Fabric

T = TypeVar("T")

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, *GROUP_BATCH_NORMS.values())


def launch(config: TrainingConfig) -> Fabric:
    """Start the processes of a run, or join those that torchrun or Slurm has started.

    Raises:
        ArgumentError: the machine has no such device or too few of them, cannot compute in that precision, or the
            launcher has started another number of processes.
    """
    from ._fabric import Fabric

    device = device_of(config.device).type
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*AMP with fp16 is not supported")  # which would use bfloat16
            fabric = Fabric(
                accelerator=device,
                devices=config.devices,
                num_nodes=config.nodes,
                strategy=config.strategy,
                precision=config.precision,  # type: ignore[arg-type]
            )
    except (ValueError, RuntimeError, UserWarning) as error:
        wanted = f"device {device}, devices {config.devices}, nodes {config.nodes}, precision {config.precision}"
        raise ArgumentError(f"this machine cannot do {wanted}: {error}") from None
    started, due = int(os.environ.get("WORLD_SIZE", fabric.world_size)), config.devices * config.nodes
    if started != due:
        raise ArgumentError(
            f"devices (={config.devices}) times nodes (={config.nodes}) must be the {started} processes that there are"
        )
    fabric.launch()
    if fabric.world_size > 1:
        atexit.register(_leave_group)
    return fabric


def _leave_group() -> None:
    """Leave the group before Python ends: otherwise its threads would abort the process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this is rank 0 of a run, the only process that prints."""
    from ._fabric import rank_zero_only

    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


def device_of(name: str) -> torch.device:
    """Return the device of this machine that a name in a configuration means.

    Raises:
        ArgumentError: this machine has no such device.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind in there if there[kind]))
    if not there.get(name, False):
        raise ArgumentError(f"device (={name!r}) is not on this machine: use auto or cpu")
    return torch.device(name)


def on_rank_zero(fabric: Fabric, action: Callable[[], T]) -> T:
    """Call a function on rank 0 and return its result on all ranks; if it raises, the other ranks end quietly.

    Only rank 0 reads and writes the folder of a run, so the other machines need not share it.
    """
    outcome: T | Exception | None = None
    if fabric.is_global_zero:
        try:
            outcome = action()
        except Exception as error:
            outcome = error
    outcome = fabric.broadcast(outcome)
    if isinstance(outcome, Exception):
        end_all_ranks(fabric, outcome)
    return outcome  # type: ignore[return-value]


def end_all_ranks(fabric: Fabric, error: BaseException) -> NoReturn:
    """End all ranks: raise the error on rank 0, and SystemExit(0) on the others."""
    fabric.barrier()  # a launcher ends all processes when one ends: wait until rank 0 has saved
    if not fabric.is_global_zero:
        raise SystemExit(0)
    raise error


@contextmanager
def name_lost_process(fabric: Fabric) -> Iterator[None]:
    """Convert a communication error caused by a lost process into RunError.

    Raises:
        RunError: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if fabric.world_size > 1 and re.search("gloo|nccl|peer|timed? ?out|socket", str(error), re.IGNORECASE):
            raise RunError(
                f"process {fabric.global_rank} of {fabric.world_size} ends because another one is gone; started again, "
                f"the run goes on from its last checkpoint ({str(error).splitlines()[0]:.200})"
            ) from error
        raise


def local_shard(fabric: Fabric, batch: Tensor) -> Tensor:
    """Return this rank's shard of a batch."""
    return batch.tensor_split(fabric.world_size)[fabric.global_rank]


def all_reduce_sum(fabric: Fabric, values: Tensor) -> Tensor:
    """Return the sum of the values of all ranks, on all ranks."""
    if fabric.world_size == 1:
        return values
    total = values.to(fabric.device, copy=True)
    dist.all_reduce(total)  # Fabric's function would wait for the device first
    return total


class _Sum(torch.autograd.Function):
    """The sum of the values of all ranks, differentiable: the gradient is the sum of the gradients of all ranks."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _Sum.forward(ctx, gradient)


class SharedBatchNorm(_BatchNorm):
    """Batch norm with the mean and variance of the whole batch, over all ranks.

    It reads feature maps (B, C, *spatial) or group feature maps (B, C, |H|, *spatial). torch's ``SyncBatchNorm``
    supports GPUs only.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each channel."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        if not self.training:
            return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
        count = x.new_full((1,), x.numel() // x.shape[1], dtype=torch.float32)
        totals = _Sum.apply(torch.cat([count, x.float().sum(axes)]))
        count, mean = totals[0].detach(), totals[1:] / totals[0].detach()
        centered = x.float() - mean.view(shape)
        var = _Sum.apply(centered.square().sum(axes)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        scale = self.weight * (var + self.eps).rsqrt()
        return (centered * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


def share_batch_norm(model: nn.Module) -> None:
    """Replace every batch norm of a network, of any dimension, by one with the statistics of all ranks."""
    for name, norm in list(model.named_modules()):
        if isinstance(norm, _BatchNorm) and type(norm) in _BATCH_NORMS:
            shared = SharedBatchNorm(norm.num_features, norm.eps, norm.momentum)
            shared.load_state_dict(norm.state_dict())
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, shared)
