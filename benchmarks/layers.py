"""Single layers: the library's against the straightforward way, a ready filter bank, and the limit of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from sepgroupy.functional._native import kernels
from sepgroupy.groups import as_group, fourier_basis
from sepgroupy.nn import GroupConv2d

from .baseline import BaselineConv
from .machine import Rates
from .measure import PRECISIONS, Job, Variant, compare


@dataclass(frozen=True)
class Case:
    """A layer with as many input as output channels, and its input."""

    group: str
    kind: str
    kernel: int
    padding: int
    channels: int
    size: int
    batch: int

    def __str__(self) -> str:
        return (
            f"{self.group} {self.kind} {self.kernel}×{self.kernel}, {self.channels} channels, "
            f"{self.size}×{self.size}, batch {self.batch}"
        )

    def layer(self, algorithm: str = "auto") -> GroupConv2d:
        """Build the layer."""
        return GroupConv2d(
            self.channels, self.channels, self.kernel, padding=self.padding,
            group=self.group, kind=self.kind, algorithm=algorithm,
        )  # fmt: skip

    def input(self, device: torch.device) -> Tensor:
        """Draw the input, (B, C, |H|, Y, X)."""
        shape = (self.batch, self.channels, as_group(self.group).order, self.size, self.size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


class ReadyConv(nn.Module):
    """The straightforward way with a filter bank that is not expanded but a parameter itself: ``F.conv2d`` alone."""

    def __init__(self, conv: BaselineConv) -> None:
        super().__init__()
        self.bank = nn.Parameter(conv.bank().detach().clone())
        self.conv = conv
        conv.register_parameter("weight", None)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve as ``BaselineConv`` does."""
        return self.conv(x, self.bank)


def cases(quick: bool) -> list[Case]:
    """List the layers of the published networks, at their sizes; the quick list has the last of each kind, batch 2."""
    sizes = (32, 16, 8)
    found = [
        *(Case("p4m", "gc", 3, 1, c, n, 16) for c, n in zip((28, 56, 112), sizes, strict=True)),
        Case("p4m", "gc", 3, 1, 112, 8, 64),
        *(Case("p4m", "dense", 1, 0, c, n, 16) for c, n in zip((28, 56, 112), sizes, strict=True)),
        *(Case("p4m", "dense", 3, 1, c, n, 16) for c, n in zip((11, 23, 45), sizes, strict=True)),
        Case("p4m", "dense", 3, 1, 23, 16, 32),
        Case("p4m", "dense", 3, 1, 45, 8, 64),
        Case("p4m", "dense", 3, 1, 64, 16, 16),
        *(Case("p4m", "g", 3, 1, c, n, 16) for c, n in zip((19, 38, 76), sizes, strict=True)),
        *(Case("p4", "gc", 4 if n == 4 else 3, 0, 30, n, 256) for n in (26, 12, 8, 4)),
    ]
    return list({(c.kind, c.kernel): replace(c, batch=2) for c in found}.values()) if quick else found


def variants(case: Case, device: torch.device) -> list[Variant]:
    """Return the ways to compute a layer, the baseline first; on a GPU also in ``channels_last``."""
    torch.manual_seed(0)
    layer = case.layer().to(device)
    torch_alone = case.layer("torch").to(device)
    torch_alone.load_state_dict(layer.state_dict())
    found = [Variant("baseline", BaselineConv(layer))]
    if case.kind == "dense":
        found.append(Variant("ready bank", ReadyConv(BaselineConv(layer)), same_parameters=False))
    found.append(Variant("sepgroupy torch", torch_alone, group_outermost=True))
    found.append(Variant("sepgroupy", layer, group_outermost=True))
    if device.type == "cuda":
        found += [replace(v, name=f"{v.name} channels_last", channels_last=True) for v in found]
    return found


def jobs(device: torch.device, rounds: int, quick: bool) -> Iterator[Job]:
    """Yield what measures each layer."""
    rates = Rates.measure(device)
    for case, precision in product(cases(quick), PRECISIONS[device.type]):
        label = f"{case} on {torch.get_num_threads()} threads, {precision}"
        yield label, partial(measure, case, device, rounds, precision, rates)


def measure(case: Case, device: torch.device, rounds: int, precision: str, rates: Rates) -> list[dict[str, Any]]:
    """Return a row for each way to compute a layer; how far it is from the limits, in float32."""
    ways = variants(case, device)
    found = compare(ways, case.input(device), rounds=rounds, precision=precision)
    rows: list[dict[str, Any]] = [{**asdict(case), "precision": precision, **row} for row in found]
    if precision == "float32":
        limits = limit(case, rates)
        for row in rows:
            row |= limits
            for what in ("evaluation", "step"):
                bound = max(limits[f"{what}_products_ms"], limits[f"{what}_moves_ms"])
                row[f"{what}_over_limit"] = round(row[f"{what}_ms"] / bound, 2)
    return rows


def limit(case: Case, rates: Rates) -> dict[str, Any]:
    """Return what the library's algorithm must take at least.

    * products: its matrix products alone at the rate of a large one. In the Fourier domain they are Σ copies·size²
      over the blocks for each pair of channels, pixel and tap of a dense filter, with a full bank |H|²·k²; a step has
      three times as many, and of a separable layer four by the kernels, which make the map between its steps again.
      A 3×3 g layer's blocks of size two take 4 + 2·k² each by the AVX-512 kernels, and 12 + 4·k² on the way back.
    * moves: each tensor moved once at the rate of a copy. Evaluation reads x and writes y; a step also reads x and
      the gradient of y and writes that of x.
    """
    layer, group = case.layer(), as_group(case.group)
    x_pixels, y_pixels = case.size**2, (case.size + 2 * case.padding - case.kernel + 1) ** 2
    algorithm = layer.plan.settle(case.input(torch.device("cpu"))).algorithm
    saved, taps = fourier_basis(group).multiplications, case.kernel**2
    step = 4 if (algorithm, case.kind) == ("native", "gc") else 3
    if algorithm == "fourier" or (algorithm == "native" and case.kind == "gc"):
        macs = saved * x_pixels
    elif algorithm == "native":
        macs = saved * taps * y_pixels
    elif case.kind == "gc":
        macs = group.order**2 * x_pixels
    else:
        macs = group.order**2 * taps * y_pixels
    step_macs = step * macs
    if (algorithm, case.kind, taps) == ("native", "g", 9) and "avx512" in kernels().summary:
        twos = sum(block.copies for block in fourier_basis(group).blocks if block.size == 2) * y_pixels
        macs -= twos * (4 * taps - (4 + 2 * taps))
        step_macs -= twos * (12 * taps - (16 + 6 * taps))
    each = 1e3 * case.channels**2 * case.batch / rates.macs
    x_bytes, y_bytes = (4 * case.batch * case.channels * group.order * pixels for pixels in (x_pixels, y_pixels))
    return {
        "algorithm": algorithm,
        "evaluation_products_ms": round(macs * each, 4),
        "evaluation_moves_ms": round(1e3 * (x_bytes + y_bytes) / rates.bytes, 4),
        "step_products_ms": round(step_macs * each, 4),
        "step_moves_ms": round(1e3 * (3 * x_bytes + 2 * y_bytes) / rates.bytes, 4),
        "sgemm_gmac_per_s": round(rates.macs / 1e9, 1),
        "copy_gib_per_s": round(rates.bytes / 2**30, 1),
    }
