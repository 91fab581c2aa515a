"""Single layers: the library's compared with the baseline, precomputed filters, and the limit of the hardware."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from sepgroupy.backends import available_backends, select_backend
from sepgroupy.backends.native.limits import is_gathered
from sepgroupy.backends.native.orbits import orbits_of
from sepgroupy.groups import as_group, fourier_basis
from sepgroupy.nn import cached_filters

from .baseline import BaselineConv
from .cases import LayerCase
from .hardware import Rates
from .measure import PRECISIONS, Job, Variant, measure_variants


class PrecomputedConv(nn.Module):
    """The baseline with expanded filters that are parameters themselves: ``F.conv2d`` alone."""

    def __init__(self, conv: BaselineConv) -> None:
        super().__init__()
        self.filters = nn.Parameter(conv.expanded_filters().detach().clone())
        self.conv = conv
        conv.register_parameter("weight", None)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve as ``BaselineConv`` does."""
        return self.conv(x, self.filters)


def cases(quick: bool) -> list[LayerCase]:
    """List the layers of the published networks, at their sizes; the quick list has the last of each kind, batch 2."""
    sizes = (32, 16, 8)
    halving: dict[str, Any] = {"size": 32, "batch": 16, "stride": 2}
    stems = [(c, size, batch) for c in (64, 23) for size, batch in ((65, 8), (225, 1))]
    found = [
        *(LayerCase("p4m", "lifting", 7, 3, c, size, n, stride=2, in_channels=3) for c, size, n in stems),  # of ResNets
        LayerCase("p4m", "lifting", 3, 1, 28, 32, 16, in_channels=3),
        LayerCase("p4", "lifting", 3, 0, 30, 28, 256, in_channels=1),
        LayerCase("p4m", "gc", 3, 1, 56, in_channels=28, **halving),
        LayerCase("p4m", "g", 3, 1, 38, in_channels=19, **halving),
        LayerCase("p4m", "dense", 3, 1, 23, in_channels=11, **halving),
        LayerCase("p4m", "dense", 1, 0, 56, in_channels=28, **halving),
        LayerCase("p4", "dense", 2, 0, 192, 24, 2, stride=2, in_channels=96),  # of a ConvNeXt
        *(LayerCase("p4m", kind, 3, 1, c, 3, 8) for kind, c in (("gc", 256), ("dense", 64))),  # filters dominate
        *(LayerCase("p4m", "gc", 3, 1, c, n, 16) for c, n in zip((28, 56, 112), sizes, strict=True)),
        LayerCase("p4m", "gc", 3, 1, 112, 8, 64),
        *(LayerCase("p4m", "dense", 1, 0, c, n, 16) for c, n in zip((28, 56, 112), sizes, strict=True)),
        *(LayerCase("p4m", "dense", 3, 1, c, n, 16) for c, n in zip((11, 23, 45), sizes, strict=True)),
        LayerCase("p4m", "dense", 3, 1, 23, 16, 32),
        LayerCase("p4m", "dense", 3, 1, 45, 8, 64),
        LayerCase("p4m", "dense", 3, 1, 64, 16, 16),
        *(LayerCase("p4m", "g", 3, 1, c, n, 16) for c, n in zip((19, 38, 76), sizes, strict=True)),
        *(
            LayerCase("p4m", kind, 2, 0, c, 16, 4, stride=2, in_channels=2 * c, transposed=True)
            for kind, c in (("dense", 32), ("gc", 32))
        ),
        *(LayerCase("p4", "gc", 4 if n == 4 else 3, 0, 30, n, 256) for n in (26, 12, 8, 4)),
    ]
    return list({(c.kind, c.kernel, c.transposed): replace(c, batch=2) for c in found}.values()) if quick else found


def variants(case: LayerCase, device: torch.device) -> list[Variant]:
    """Return the variants of a layer, the baseline first; on a GPU also in ``channels_last``."""
    torch.manual_seed(0)
    layer = case.layer().to(device)
    pytorch = case.layer("torch").to(device)
    pytorch.load_state_dict(layer.state_dict())
    found = [Variant("baseline", BaselineConv(layer))]
    if case.kind == "dense" and not case.transposed:
        found.append(Variant("precomputed", PrecomputedConv(BaselineConv(layer)), same_parameters=False))
    found.append(Variant("sepgroupy torch", pytorch, group_outermost=True, inference_context=cached_filters))
    found.append(Variant("sepgroupy", layer, group_outermost=True, inference_context=cached_filters))
    if device.type == "cuda":
        found += [replace(v, name=f"{v.name} channels_last", channels_last=True) for v in found]
    return found


def jobs(device: torch.device, rounds: int, quick: bool) -> Iterator[Job]:
    """Yield the measurement of each layer."""
    rates = Rates.measure(device)
    for case, precision in product(cases(quick), PRECISIONS[device.type]):
        label = f"{case}, {torch.get_num_threads()} threads, {precision}"
        yield label, partial(measure, case, device, rounds, precision, rates)


def measure(case: LayerCase, device: torch.device, rounds: int, precision: str, rates: Rates) -> list[dict[str, Any]]:
    """Return a line for each variant of a layer; in float32 with the limits."""
    found = measure_variants(variants(case, device), case.input(device), rounds=rounds, precision=precision)
    lines: list[dict[str, Any]] = [{"row": str(case), **asdict(case), "precision": precision, **line} for line in found]
    if precision == "float32":
        limits = limit(case, rates)
        for line in lines:
            line |= limits
            for what in ("inference", "step"):
                bound = max(limits[f"{what}_products_ms"], limits[f"{what}_moves_ms"])
                line[f"{what}_over_limit"] = round(line[f"{what}_ms"] / bound, 2)
    return lines


def limit(case: LayerCase, rates: Rates) -> dict[str, Any]:
    """Return lower bounds on the time of the library's algorithm.

    * products: its matrix products alone at the rate of a large one. In the Fourier domain they are Σ copies·size²
      over the blocks for each pair of channels, pixel and kernel element of a dense filter, with expanded filters
      |H|²·k². A step has three times as many; of a separable layer four by the kernels, which recompute the feature map
      between its steps unless it has fewer values than the filter; of a lifting layer two, as images need no gradient.
      Pixels of a lifting layer that are gathered have products of each orbit of kernel elements.
      A 3×3 g layer's blocks of size two take 4 + 2·k² each by the AVX-512 kernels, and 12 + 4·k² in the backward pass.
    * moves: each tensor moved once at the rate of a copy. Inference reads x and writes y; a step also reads x and
      the gradient of y and writes that of x.
    """
    layer, group = case.layer(), as_group(case.group)
    backend = select_backend(layer.spec, case.input(torch.device("cpu")), layer.backend).name
    saved, elements = fourier_basis(group).multiplications, case.kernel**case.dimension
    lifting = case.kind == "lifting"
    x_pixels, y_pixels = case.size**case.dimension, case.output_size**case.dimension
    recomputes = (backend, case.kind) == ("native", "gc") and case.batch * x_pixels > case.input_channels
    step = 2 if lifting else 4 if recomputes else 3
    if backend == "native" and is_gathered(layer.spec, case.input_channels):
        macs = saved * len(orbits_of(group, layer.kernel_size).first) * y_pixels
    elif backend == "native" and case.transposed:
        macs = saved * (y_pixels if case.kind == "gc" else elements * x_pixels)
    elif backend == "fourier" or (backend == "native" and case.kind == "gc"):
        macs = saved * (y_pixels if case.kernel == 1 else x_pixels)
    elif backend == "native" and not lifting:
        macs = saved * elements * y_pixels
    elif backend == "two_step":
        macs = group.order**2 * x_pixels
    else:
        macs = group.order * case.input_elements * elements * y_pixels
    step_macs = step * macs
    avx512 = backend == "native" and "avx512" in available_backends()["native"]
    if avx512 and (case.kind, elements) == ("g", 9):
        twos = sum(block.copies for block in fourier_basis(group).blocks if block.size == 2) * y_pixels
        macs -= twos * (4 * elements - (4 + 2 * elements))
        step_macs -= twos * (12 * elements - (16 + 6 * elements))
    each = 1e3 * case.channels * case.input_channels * case.batch / rates.macs
    x_bytes = 4 * case.batch * case.input_channels * case.input_elements * x_pixels
    y_bytes = 4 * case.batch * case.channels * group.order * y_pixels
    step_bytes = (2 if lifting else 3) * x_bytes + 2 * y_bytes
    return {
        "backend": backend,
        "inference_products_ms": round(macs * each, 4),
        "inference_moves_ms": round(1e3 * (x_bytes + y_bytes) / rates.bytes, 4),
        "step_products_ms": round(step_macs * each, 4),
        "step_moves_ms": round(1e3 * step_bytes / rates.bytes, 4),
        "sgemm_gmac_per_s": round(rates.macs / 1e9, 1),
        "copy_gib_per_s": round(rates.bytes / 2**30, 1),
    }
