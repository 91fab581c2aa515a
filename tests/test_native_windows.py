"""Strided convolutions whose windows do not overlap: the kernels compute them as pointwise ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from conftest import assert_compiled_once
from sepgroupy import cached_filters, fuse
from sepgroupy.backends import ConvSpec, available_backends
from sepgroupy.backends.native.windows import channels_to_windows, has_windows_as_channels, windows_to_channels
from sepgroupy.groups import C4, as_group
from sepgroupy.nn import GroupBatchNorm2d, GroupConv1d, GroupConv2d, GroupConv3d, GroupConvTranspose2d

pytestmark = pytest.mark.skipif(
    available_backends()["native"].startswith("unavailable"), reason="there are no compiled kernels"
)
CASES: dict[str, tuple[Any, dict[str, Any], tuple[int, ...]]] = {
    "p4m": (GroupConv2d, {"kernel_size": 2, "stride": 2, "group": "p4m"}, (2, 4, 8, 6, 8)),
    "with a remainder": (GroupConv2d, {"kernel_size": 3, "stride": 3, "group": "p4"}, (2, 4, 4, 8, 7)),
    "rectangular": (GroupConv2d, {"kernel_size": (2, 3), "stride": (2, 3), "group": "p2mm"}, (2, 4, 4, 5, 7)),
    "rows alone": (GroupConv2d, {"kernel_size": (2, 1), "stride": (2, 1), "group": "p2"}, (2, 4, 2, 4, 5)),
    "signals": (GroupConv1d, {"kernel_size": 2, "stride": 2, "group": "reflection"}, (2, 4, 2, 7)),
    "volumes": (GroupConv3d, {"kernel_size": 2, "stride": 2, "group": "O"}, (1, 4, 24, 4, 5, 4)),
    "transposed": (GroupConvTranspose2d, {"kernel_size": 2, "stride": 2, "group": "p4m"}, (2, 4, 8, 3, 2)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("kind", ["dense", "g"])
def test_outputs_and_derivatives_are_those_of_the_filter_bank(case: Any, kind: str) -> None:
    layer, options, shape = case
    native, expanded = (
        layer(4, 6, kind=kind, dtype=torch.float64, backend=name, **options) for name in ("native", "expanded")
    )
    native.load_state_dict(expanded.state_dict())
    assert has_windows_as_channels(native.spec)
    x, found = torch.randn(shape, dtype=torch.float64), []
    for conv in (native, expanded):
        leaves = [x.clone().requires_grad_(), *conv.parameters()]
        y = conv(leaves[0])
        first = torch.autograd.grad(y.sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        plain = torch.autograd.grad(conv(leaves[0]).sin().sum(), leaves)
        with torch.no_grad(), cached_filters(conv):
            found.append([y.detach(), conv(x), conv(x), *first, *plain, *second])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("group", ["p4m", "p2", "hflip"])
def test_channels_become_windows_again(group: str) -> None:
    spec = ConvSpec.parse(as_group(group), "dense", (2, 2), (2, 2))
    maps = torch.randn(2, spec.group.order, 3, 4, 6)
    channels = windows_to_channels(spec, maps)
    assert channels.shape == (2, spec.group.order, 12, 2, 3)
    torch.testing.assert_close(channels_to_windows(spec, channels), maps, rtol=0, atol=0)
    # The identity moves no kernel element: its channels are the pixels of the windows, row by row.
    corners = [maps[:, 0, :, a::2, b::2] for a in range(2) for b in range(2)]
    torch.testing.assert_close(channels[:, 0], torch.cat(corners, 1), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("expected", "options"),
    [
        (True, {"kind": "dense"}), (True, {"kind": "g"}), (True, {"kind": "g", "transposed": True}),
        (False, {"kind": "gc"}), (False, {"kind": "lifting"}), (False, {"kind": "dense", "groups": 2}),
        (False, {"kind": "dense", "padding": 1}), (False, {"kind": "dense", "stride": 1}),
        (False, {"kind": "dense", "dilation": 2}), (False, {"kind": "dense", "kernel_size": 1, "stride": 1}),
    ],
)  # fmt: skip
def test_windows_that_overlap_or_leave_pixels_out_are_read_as_they_are(expected: bool, options: dict[str, Any]) -> None:
    spec = ConvSpec.parse(C4, **({"kernel_size": 2, "stride": 2} | options))
    assert has_windows_as_channels(spec) == expected


@pytest.mark.parametrize("training", [True, False])
def test_in_a_fused_network(training: bool) -> None:
    def build() -> nn.Sequential:
        torch.manual_seed(0)
        conv = GroupConv2d(4, 6, 2, 2, group="p4", dtype=torch.float64)
        norms = [GroupBatchNorm2d(channels, dtype=torch.float64) for channels in (4, 6)]
        return nn.Sequential(norms[0], nn.ReLU(), conv, norms[1], nn.ReLU()).train(training)

    x = torch.randn(3, 4, 4, 6, 6, dtype=torch.float64)

    def results(net: nn.Module) -> list[Tensor]:
        images = x.clone().requires_grad_()
        y = net(images)
        gradients = torch.autograd.grad(y.square().sum(), [images, *net.parameters()])
        with torch.no_grad():
            return [y.detach(), *gradients, *net.buffers(), net.eval()(x)]

    torch.testing.assert_close(results(fuse(build())), results(build()), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("layer", [GroupConv2d, GroupConvTranspose2d])
def test_a_compiler_reads_sizes_as_symbols(layer: Any) -> None:
    conv = layer(4, 6, 2, 2, group="p4", backend="native")
    assert_compiled_once(conv, (7, 4, 4, 5, 6), (3, 4, 4, 9, 8), (5, 4, 4, 11, 12))  # odd and even ones apart


def test_each_pixel_is_multiplied_once() -> None:
    with FlopCounterMode(display=False) as counter:
        GroupConv2d(4, 6, 2, 2, group="p4m")(torch.randn(3, 4, 8, 10, 14))
    assert counter.get_total_flops() == 2 * 3 * 4 * 6 * 12 * 10 * 14
