"""The processes of a run: started through Lightning Fabric, one voice to the outside, one batch among them."""

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

from ..errors import ArgumentError, RunError
from ..nn import GroupBatchNorm2d
from ._config import TrainingConfig

if TYPE_CHECKING:
    from ._fabric import Fabric

T = TypeVar("T")


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
            warnings.filterwarnings("error", ".*AMP with fp16 is not supported")  # it would take bfloat16 instead
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
    """Leave the group while Python still stands: its threads, cut off by the end of the process, would abort it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this is the only process of a run, or the first of them: the one that speaks to the user."""
    from ._fabric import rank_zero_only

    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


def device_of(name: str) -> torch.device:
    """Return the device that a name of the configuration stands for on this machine.

    Raises:
        ArgumentError: there is none.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind in there if there[kind]))
    if not there.get(name, False):
        raise ArgumentError(f"device (={name!r}) is not on this machine: use auto or cpu")
    return torch.device(name)


def first_does(fabric: Fabric, action: Callable[[], T]) -> T:
    """Let the first process act, and return its result in all of them; if it raises, the others end quietly.

    Only the first process touches the folder of a run, so that no others need to see it.
    """
    outcome: T | Exception | None = None
    if fabric.is_global_zero:
        try:
            outcome = action()
        except Exception as error:
            outcome = error
    outcome = fabric.broadcast(outcome)
    if isinstance(outcome, Exception):
        end_together(fabric, outcome)
    return outcome  # type: ignore[return-value]


def end_together(fabric: Fabric, error: BaseException) -> NoReturn:
    """Raise in the first process what all have agreed to end with; the others, its shadows, end quietly after it."""
    fabric.barrier()  # a launcher ends all processes when one has ended, so none may until the first has saved
    if not fabric.is_global_zero:
        raise SystemExit(0)
    raise error


@contextmanager
def loss_named(fabric: Fabric) -> Iterator[None]:
    """Say so if another process is gone, in what it is that this one's communication fails.

    Raises:
        RunError: another process is gone.
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


def part(fabric: Fabric, batch: Tensor) -> Tensor:
    """Return this process's part of a batch; the parts of all processes make up the batch."""
    return batch.tensor_split(fabric.world_size)[fabric.global_rank]


def summed(fabric: Fabric, values: Tensor) -> Tensor:
    """Return the sum of all processes' values, in all of them."""
    if fabric.world_size == 1:
        return values
    total = values.to(fabric.device, copy=True)
    dist.all_reduce(total)  # Fabric's own would wait for the device before it
    return total


class _Sum(torch.autograd.Function):
    """The sum of all processes' values, in all of them, through which gradients pass: their sum again."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _Sum.forward(ctx, gradient)


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with the mean and variance over all processes: those that one process would find in the whole batch.

    Takes (B, C, Y, X), or a group feature map (B, C, |H|, Y, X). torch's ``SyncBatchNorm`` does the same on GPUs only.
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
    """Replace every batch norm of a network by one whose statistics all processes share."""
    for name, norm in list(model.named_modules()):
        if type(norm) in (nn.BatchNorm2d, GroupBatchNorm2d):
            shared = SharedBatchNorm2d(norm.num_features, norm.eps, norm.momentum)
            shared.load_state_dict(norm.state_dict())
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, shared)
