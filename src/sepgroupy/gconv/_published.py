"""The published classes, built from the layers of :mod:`sepgroupy.nn`."""

from __future__ import annotations

from typing import Any

from ..backends import Pair
from ..groups import PointGroup
from ..nn import GroupConv2d, LiftingConv2d

_BACKENDS = {None: "auto", True: "two_step", False: "expanded"}


def published(module: str, name: str, group: PointGroup, kind: str, lifting: bool) -> Any:
    """Return one published class, a LiftingConv2d or GroupConv2d with the published positional arguments.

    The initialization is ``init="published"``. ``separable`` selects the algorithm of a g or gc layer: True for two
    steps, False for the multiplied-out filter, None (default) for the faster one. A lifting layer is the same for each
    value. The dense classes accept False and None.

    Attributes: ``in_channels``, ``out_channels``, ``kernel_size`` (also as ``ksize``), ``stride``, ``padding``,
    ``input_stabilizer_size`` (1 for a lifting layer, else |H|), ``output_stabilizer_size`` (|H|) and ``separable``.
    """

    class Published(LiftingConv2d if lifting else GroupConv2d):  # type: ignore[misc]
        def __init__(
            self,
            in_channels: int,
            out_channels: int,
            kernel_size: Pair,
            stride: Pair = 1,
            padding: Pair | str = 0,
            bias: bool = True,
            separable: bool | None = None,
        ) -> None:
            if kind == "dense" and separable:
                raise TypeError(f"separable (={separable!r}) must be False or None: the filters of {name} are dense")
            options = {} if lifting else {"kind": kind, "backend": "auto" if kind == "dense" else _BACKENDS[separable]}
            super().__init__(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                padding,
                bias=bias,
                group=group,
                init="published",
                **options,
            )
            self.ksize = self.kernel_size
            self.input_stabilizer_size = 1 if lifting else group.order
            self.output_stabilizer_size = group.order
            self.separable = separable

    Published.__name__ = Published.__qualname__ = name
    Published.__module__ = module
    base = "LiftingConv2d" if lifting else f"GroupConv2d of kind {kind}"
    Published.__doc__ = f"{base} on {group.name}, under its published name and positional arguments."
    return Published
