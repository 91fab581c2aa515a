"""The widths at which a converted network has the cost of the plain one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from ..errors import ArgumentError
from ._inspect_model import run
from ._replace_layers import IndivisibleError, LayerReplacer, channel_blocks

TOLERANCE = 0.1
"""Largest relative difference from the plain network's cost; at a larger one the conversion is refused."""

_STEPS = 10  # of the search for a factor; as many binary digits of it
_LARGEST_FACTOR = 64
_CHANGES = 20  # of single widths, at most, after the search


def find_widths(model: nn.Module, replacer: LayerReplacer, match: str) -> Callable[[int], int]:
    """Return the width of the new layers as a function of the plain width.

    All widths are those of the plain network times one factor, each rounded to a multiple of the blocks into which the
    layers of this width divide their channels. If no factor meets the cost, single widths are changed by such a
    block. Networks are built on the meta device only, the narrowest first.

    Args:
        model: the plain network.
        replacer: the converter of the network.
        match: "params" or "macs".

    Raises:
        ArgumentError: the nearest cost differs by more than ``TOLERANCE``; the message says why.
    """
    search = _Search(model, replacer, match)
    while True:
        try:
            return search.find()
        except IndivisibleError as error:
            # A layer that reads concatenated feature maps: all their widths must be multiples of its blocks.
            search = _Search(model, replacer, match, math.lcm(search.common, error.blocks))


@dataclass
class _Search:
    model: nn.Module
    replacer: LayerReplacer
    match: str
    common: int = 1
    """All widths are multiples of this number."""
    costs: dict[tuple[int, ...], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.plain = copy.deepcopy(self.model).to("meta")
        self.target = _cost(self.plain, self.replacer, self.match)
        self.units: dict[int, int] = {}
        self.dividing: dict[str, int] = {}
        for name, channels, blocks in channel_blocks(self.plain):
            self.units[channels] = math.lcm(self.units.get(channels, 1), blocks)
            self.dividing[name] = blocks
        # Every number that may be a width, also in parameters outside of layers.
        self.channels = sorted({n for p in self.plain.parameters() for n in p.shape if n > 1})

    def find(self) -> Callable[[int], int]:
        narrowest = self.widths(0.0)
        if self.ratio(narrowest) > 1 + TOLERANCE:
            self.refuse(narrowest)
        low, high = 0.0, 1.0
        while self.ratio(self.widths(high)) < 1 and high < _LARGEST_FACTOR:
            low, high = high, 2 * high
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.ratio(self.widths(middle)) < 1 else (low, middle)
        best = min((self.widths(low), self.widths(high)), key=self.distance)
        for _ in range(_CHANGES):
            if self.distance(best) <= TOLERANCE:
                return best.__getitem__
            nearest = min(self.neighbours(best), key=self.distance)
            if self.distance(nearest) >= self.distance(best):
                break
            best = nearest
        if self.distance(best) > TOLERANCE:
            self.refuse(best)
        return best.__getitem__

    def unit(self, channels: int) -> int:
        return math.lcm(self.units.get(channels, 1), self.common)

    def widths(self, factor: float) -> dict[int, int]:
        return {n: max(1, round(factor * n / self.unit(n))) * self.unit(n) for n in self.channels}

    def neighbours(self, widths: dict[int, int]) -> list[dict[int, int]]:
        """Return the widths with one of them a block wider or narrower, whichever brings the cost nearer."""
        sign = 1 if self.ratio(widths) < 1 else -1
        changed = ({**widths, n: widths[n] + sign * self.unit(n)} for n in self.channels)
        return [new for new in changed if min(new.values()) > 0]

    def ratio(self, widths: dict[int, int]) -> float:
        key = tuple(widths.values())
        if key not in self.costs:
            try:
                net = self.replacer.replace(copy.deepcopy(self.plain), widths.__getitem__)
            except IndivisibleError:
                raise
            except ArgumentError as error:
                raise ArgumentError(
                    f"match (={self.match!r}) changes the widths, with which the network cannot be built: {error}. Use "
                    "match='width'"
                ) from error
            self.costs[key] = _cost(net, self.replacer, self.match)
        return self.costs[key] / self.target

    def distance(self, widths: dict[int, int]) -> float:
        return abs(self.ratio(widths) - 1)

    def refuse(self, widths: dict[int, int]) -> None:
        """Raise an error with the nearest cost, and the layers that prevent a nearer one."""
        what = "parameters" if self.match == "params" else "multiplications"
        cost = round(self.ratio(widths) * self.target)
        reason = "the network is so narrow that one channel more or less changes much"
        if self.common > 1 or self.units:
            layers = sorted(self.dividing, key=self.dividing.__getitem__, reverse=True)
            named = ", ".join(f"{name} into {self.dividing[name]}" for name in layers[:3])
            more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
            reason = f"layers divide their channels into blocks ({named}{more}), of which widths are multiples"
            if self.common > 1:
                reason += f"; since they read concatenated feature maps, all widths are multiples of {self.common}"
        raise ArgumentError(
            f"match (={self.match!r}) cannot be met within {TOLERANCE:.0%}: the nearest network has {cost:,} {what}, "
            f"the plain one {self.target:,}. Reason: {reason}. Use match='width', another kind or group, or a plain "
            "network that is wider or has fewer groups"
        )


def _cost(net: nn.Module, replacer: LayerReplacer, match: str) -> int:
    if match == "params":
        return sum(p.numel() for p in net.parameters())
    from torch.utils.flop_counter import FlopCounterMode  # here, because it imports triton

    counts = []
    for batch in (2, 1):  # the difference leaves out the cost of filters, which does not depend on the batch
        with FlopCounterMode(display=False) as counter:
            run(net, replacer.inspection.images(net, batch))
        counts.append(counter.get_total_flops() // 2)
    return counts[0] - counts[1]
