"""Convert a plain network to an equivariant one without changes of its code.

Between the new layers the group axis is merged into the batch, (B·|H|, C, *spatial): the network's code
sees a larger batch, so that norms, activations, pooling, resizing, addition, concatenation, permutation and flattening
need no change. The first convolution computes |H| feature maps of each image; before the last linear layers,
or at the outputs, a pool reduces them to one again.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from torch import nn

from .._plain_weights import copy_with_plain_weights
from ..auditing import INPUT, AuditReport, audit, dimension_of
from ..errors import ArgumentError
from ..groups import GroupLike, as_group
from ..models import check_choice, check_counts
from ..nn import DEFAULT_INIT, INITS
from ._inspect_model import inspect_model
from ._match_cost import find_widths
from ._modules import MergedGroupPool
from ._replace_layers import LayerReplacer


def convert(
    model: nn.Module,
    group: GroupLike,
    kind: str = "gc",
    *,
    in_size: int | Sequence[int],
    match: str = "width",
    weights: str = "fresh",
    init: str = DEFAULT_INIT,
    pool: str = "max",
) -> nn.Module:
    """Convert a plain network of convolutions, norms, pooling, resizing, activations, sums and the like.

    In a copy of the model the first Conv2d (or Conv1d or Conv3d) becomes a LiftingConv2d, and every other one a
    GroupConv2d of the kind; a 1×1 becomes dense, a depthwise one remains depthwise. A Linear on pixels (N, Y, X, C), on
    a flattened feature map, or between convolutions becomes a GroupConv2d too. Norms share their statistics over the
    group; all other modules do not change. The group is pooled before the final Linear layers, and in every output that
    still has its group axis: logits (B, classes) are invariant, feature maps (B, C, Y, X) are transformed like the
    image. Outputs may be nested in mappings, sequences and dataclasses.

    Then :func:`sepgroupy.audit` measures the equivariance, in float64 and for every element of the group, on images
    of ``in_size``. The result is exact there, and at every size with the same remainder at each stride.

    Args:
        model: the plain network; it does not change. Its last layer may have any number of classes. Subclasses of
            Conv2d and Linear, and layers with hooks, are converted if they compute what their class does. Weight norm,
            spectral norm and pruning are replaced by the weights that they compute.
        group: the point group; a name is that of a group of as many axes as the network's convolutions have.
        kind: "dense", "g" or "gc", as :class:`sepgroupy.nn.GroupConv2d`.
        in_size: rows and columns of an image, or its spatial sizes; a network of Conv3d reads volumes.
        match: the quantity to match with the plain network. "width": the number of channels of every layer, each of
            which has |H| values now. "params" or "macs": the number of parameters, or of multiplications for one image
            of ``in_size`` with PyTorch's operations, within 10 %. One factor scales all widths except those of the
            outputs. Widths remain multiples of the ``groups`` of the adjacent convolutions.
        weights: "fresh": initialized randomly. "lift": from the plain network, its filters at the identity element,
            ``w[o,i,e] = w_plain[o,i]``, and zeros at all others. Until it is trained, every feature map before the pool
            is then ``y[·, g] = g·plain(g⁻¹·x)`` in inference mode, and ``y[·, e]`` that of the plain network; with
            pool="mean" and one Linear layer at the end the logits are the mean of ``plain(g⁻¹·x)`` over the group.
            It needs match="width", and a kind that can represent plain filters: gc, ``w[o,i,h] = pw[o,i,h]·dw[o]``,
            can only where convolutions are depthwise or 1×1.
        init: "published" or "variance", as :class:`sepgroupy.nn.GroupConv2d`, for those parameters of the new lifting
            and group convolutions that are not lifted from plain filters: all with weights="fresh", none with
            weights="lift". Norms and the final Linear layers do not depend on it.
        pool: "max" or "mean" over the group.

    Returns:
        A network of the model's class and in its mode; if an output is pooled, in a Sequential with the pool.

    Raises:
        ArgumentError: an argument has an unknown value; a layer cannot be converted; the cost cannot
            be matched; or the network would not be equivariant on images of this size, with the layer, the cause and
            the sizes that are exact, or the layers to change if there are none.

    >>> import torch
    >>> plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1),
    ...                       nn.Flatten(), nn.Linear(8, 10))
    >>> convert(plain, "p4m", in_size=9)(torch.zeros(2, 3, 9, 9)).shape
    torch.Size([2, 10])
    """
    group = as_group(group, dimension_of(model) if isinstance(group, str) else None)
    check_choice("kind", kind, ("dense", "g", "gc"))
    check_choice("match", match, ("width", "params", "macs"))
    check_choice("weights", weights, ("fresh", "lift"))
    check_choice("init", init, INITS)
    check_choice("pool", pool, ("max", "mean"))
    sizes = _sizes(in_size, group.dimension)
    if weights == "lift" and match != "width":
        raise ArgumentError(f"match (={match!r}) must be 'width' with weights='lift': plain filters have their widths")
    plain = copy_with_plain_weights(model).eval()
    replacer = LayerReplacer(group, kind, weights == "lift", init, pool, inspect_model(plain, sizes))
    width = None if match == "width" else find_widths(plain, replacer, match)
    net = replacer.replace(plain, width)
    report = audit(net, group, (replacer.inspection.in_channels, *sizes))
    if report.first is not None:
        raise ArgumentError(_describe(report, in_size, pooled=_is_pooled(net)))
    return net.train(model.training)


def _sizes(in_size: int | Sequence[int], dimension: int) -> tuple[int, ...]:
    sizes = (in_size,) * dimension if isinstance(in_size, Integral) else in_size
    if not isinstance(sizes, Sequence) or len(sizes) != dimension:
        raise ArgumentError(f"in_size (={in_size!r}) must be a positive integer, or {dimension} of them")
    for size in sizes:
        check_counts(in_size=size)  # type: ignore[arg-type]
    return tuple(map(int, sizes))  # type: ignore[arg-type]


def _is_pooled(net: nn.Module) -> bool:
    return isinstance(net, nn.Sequential) and len(net) == 2 and isinstance(net[1], MergedGroupPool)


def _describe(report: AuditReport, in_size: int | Sequence[int], pooled: bool) -> str:
    """Return the reason of a refusal, with the names of the plain network's layers."""
    assert report.first is not None
    text = (
        f"the network would not be equivariant at in_size (={in_size}): {report.first.name} ({report.first.type}) "
        f"breaks it. Cause: {report.cause}. Suggested fix: {report.suggested_fix}"
    )
    for row in report.breaking:
        name = row.name.removesuffix(INPUT)
        plain_name = name.removesuffix(".convolution")
        text = text.replace(name, plain_name.removeprefix("0.") if pooled else plain_name)
    return text
