"""The layers and networks that rows measure. Nothing here depends on the version of the library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sepgroupy import nn
from sepgroupy.groups import as_group


@dataclass(frozen=True)
class LayerCase:
    """A layer and its input; ``str(case)`` is the stable name of its row.

    Args:
        group: name of the point group.
        kind: "lifting", "dense", "g" or "gc".
        kernel: elements per side of the kernel.
        padding: as stride, of all axes.
        channels: of the output.
        size: pixels per side of the input.
        batch: images or feature maps.
        stride: of all axes.
        in_channels: of the input; None for as many as of the output.
        transposed: whether the layer is a transposed convolution.
    """

    dimension: ClassVar[int] = 2
    """Spatial axes."""

    group: str
    kind: str
    kernel: int
    padding: int
    channels: int
    size: int
    batch: int
    stride: int = 1
    in_channels: int | None = None
    transposed: bool = False

    def __str__(self) -> str:
        kernel, size = ("x".join([str(n)] * self.dimension) for n in (self.kernel, self.size))
        kernel += f" stride {self.stride}" if self.stride > 1 else ""
        channels = f"{self.channels}ch" if self.in_channels is None else f"{self.in_channels}-{self.channels}ch"
        kind = f"{self.kind} transposed" if self.transposed else self.kind
        return f"{self.group} {kind} {kernel} {channels} {size} batch {self.batch}"

    @property
    def input_channels(self) -> int:
        """Channels of the input."""
        return self.channels if self.in_channels is None else self.in_channels

    @property
    def input_elements(self) -> int:
        """Size of the input's group axis; 1 for images."""
        return 1 if self.kind == "lifting" else as_group(self.group).order

    @property
    def output_size(self) -> int:
        """Pixels per side of the output."""
        if self.transposed:
            return (self.size - 1) * self.stride - 2 * self.padding + self.kernel
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    def layer(self, backend: str = "auto") -> Any:
        """Build the layer."""
        chosen: dict[str, Any] = (
            {} if backend == "auto" else {"backend": backend}
        )  # earlier versions do not know the argument
        sizes = (self.input_channels, self.channels, self.kernel, self.stride, self.padding)
        if self.kind == "lifting":
            return getattr(nn, f"LiftingConv{self.dimension}d")(*sizes, group=self.group, **chosen)
        name = "GroupConvTranspose" if self.transposed else "GroupConv"
        return getattr(nn, f"{name}{self.dimension}d")(*sizes, group=self.group, kind=self.kind, **chosen)

    def input(self, device: torch.device) -> Tensor:
        """Draw the input, (B, I, |H|, …), or (B, I, …) if lifting."""
        axes = () if self.kind == "lifting" else (self.input_elements,)
        shape = (self.batch, self.input_channels, *axes, *(self.size,) * self.dimension)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


class VolumeCase(LayerCase):
    """The same in three dimensions."""

    dimension = 3


@dataclass(frozen=True)
class NetworkCase:
    """A network and its images; ``str(case)`` is the stable name of its row."""

    model: str
    batch: int
    training: bool = True

    def __str__(self) -> str:
        return f"{self.model} batch {self.batch}"

    def images(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Draw images, (B, 1, 28, 28) or (B, 3, 32, 32), and classes, (B)."""
        shape = (3, 32, 32) if is_deep(self.model) else (1, 28, 28)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, *shape, generator=generator)
        return x.to(device), torch.randint(10, (self.batch,), generator=generator).to(device)


def is_deep(model: str) -> bool:
    """Whether a network is one of the ResNets for CIFAR-10, and not one for rotated MNIST."""
    return "resnet" in model


def training_batch(model: str) -> int:
    """Return the batch of a network's training rows."""
    return 16 if is_deep(model) else 256
