"""Make an equivariant network from a plain one, its convolutions exchanged and its own code kept.

Between the new layers maps are rows, (B·|H|, C, Y, X): to the network's own code the group is just more pictures, so
that norms, activations, pooling, addition, concatenation, permutation and flattening need no change. The first
convolution makes |H| rows of each picture; ahead of the last linear layers, or at the end, a pool makes them one again.
"""

from __future__ import annotations

import copy

from torch import nn

from ..auditing import audit
from ..errors import ArgumentError
from ..groups import GroupLike, as_group
from ..models._layers import check_choice, check_counts
from ._inspect_model import read_anatomy, run
from ._replace_layers import Surgery

_STEPS = 10  # of the search for a width; as many binary digits of the factor


def convert(
    model: nn.Module,
    group: GroupLike,
    kind: str = "gc",
    *,
    in_size: int,
    match: str = "width",
    weights: str = "fresh",
    pool: str = "max",
) -> nn.Module:
    """Make an equivariant network from a plain one of convolutions, norms, pooling, activations, sums and the like.

    In a copy of the model the first Conv2d becomes a LiftingConv2d and every other one a GroupConv2d of the kind (a
    1×1 is dense; a depthwise one stays so), and so does a Linear that works on pixels (N, Y, X, C), on a flattened
    map, or between convolutions. Norms share their statistics over the group; all else stays. The group is pooled
    ahead of the Linear layers that end the network, or at the very end if there are none: logits (B, classes) are
    invariant, maps (B, C, Y, X) move with the picture.

    Then :func:`sepgroupy.audit` measures the equivariance, in float64 and for every element of the group, on pictures
    of ``in_size``. What is returned is exact there, and at every size that leaves each stride the same rest.

    Args:
        model: the plain network; stays as it is. Its last layer may have any number of classes.
        group: the point group.
        kind: "dense", "g" or "gc", as :class:`sepgroupy.nn.GroupConv2d`.
        in_size: rows and columns of a picture.
        match: what stays as in the plain network. "width": the number of channels of every layer, each of which has
            |H| values now. "params" or "macs": the number of parameters, or of multiplications for one picture of
            ``in_size`` by PyTorch's own operations, as nearly as one factor for all widths allows.
        weights: "fresh": drawn anew. "lift": from the plain network, its filters at the identity element,
            ``w[o,i,e] = w_plain[o,i]``, and zeros at all others. Until it is trained, every map up to the pool is then
            ``y[·, g] = g·plain(g⁻¹·x)`` in evaluation mode, and ``y[·, e]`` the plain network's own; with
            pool="mean" and one Linear layer at the end the logits are the mean of ``plain(g⁻¹·x)`` over the group.
            It needs match="width", and a kind that can hold plain filters: gc, ``w[o,i,h] = pw[o,i,h]·dw[o]``, can
            only where convolutions are depthwise or 1×1.
        pool: "max" or "mean" over the group.

    Returns:
        A network of the model's class and in its mode; if no Linear ends it, in a Sequential with the pool.

    Raises:
        ArgumentError: an argument is none of its values; a layer, which is named, cannot be treated; or the network
            would not be equivariant on pictures of this size, with the layer, the reason and sizes that are exact.

    >>> import torch
    >>> plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1),
    ...                       nn.Flatten(), nn.Linear(8, 10))
    >>> convert(plain, "p4m", in_size=9)(torch.zeros(2, 3, 9, 9)).shape
    torch.Size([2, 10])
    """
    group = as_group(group)
    check_choice("kind", kind, ("dense", "g", "gc"))
    check_choice("match", match, ("width", "params", "macs"))
    check_choice("weights", weights, ("fresh", "lift"))
    check_choice("pool", pool, ("max", "mean"))
    check_counts(in_size=in_size)
    if weights == "lift" and match != "width":
        raise ArgumentError(f"match (={match!r}) must be 'width' with weights='lift': plain filters have their widths")
    surgery = Surgery(group, kind, weights == "lift", pool, read_anatomy(model, in_size))
    factor = 1.0 if match == "width" else _find_factor(model, surgery, match)
    net = surgery.operate(copy.deepcopy(model).eval(), factor)
    report = audit(net, group, in_size)
    if report.first is not None:
        name = report.first.name.removeprefix("" if surgery.anatomy.head else "0.").removesuffix(".convolution")
        raise ArgumentError(
            f"the network would not be equivariant at in_size (={in_size}): {name} ({report.first.type}) breaks it. "
            f"Cause: {report.cause}. Suggested fix: {report.suggested_fix}"
        )
    return net.train(model.training)


def _find_factor(model: nn.Module, surgery: Surgery, match: str) -> float:
    """Return the factor of all widths with which the cost is nearest to the plain network's, by bisection."""
    plain = copy.deepcopy(model).to("meta").eval()
    target = _cost(plain, surgery, match)

    def ratio(factor: float) -> float:
        return _cost(surgery.operate(copy.deepcopy(plain), factor), surgery, match) / target

    low, high = 0.0, 1.0
    while ratio(high) < 1 and high < 64:
        low, high = high, 2 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if ratio(middle) < 1 else (low, middle)
    return min((low, high), key=lambda factor: abs(ratio(factor) - 1))


def _cost(net: nn.Module, surgery: Surgery, match: str) -> int:
    if match == "params":
        return sum(p.numel() for p in net.parameters())
    from torch.utils.flop_counter import FlopCounterMode  # here, for it imports triton

    counts = []
    for batch in (2, 1):  # the difference leaves out what filters cost, once for all pictures
        with FlopCounterMode(display=False) as counter:
            run(net, surgery.anatomy.pictures(net, batch))
        counts.append(counter.get_total_flops() // 2)
    return counts[0] - counts[1]
