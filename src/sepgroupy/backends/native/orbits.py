"""Lifting convolutions as pointwise ones: a channel for each orbit of kernel elements under the group.

The pixels ``x(stride·q + g·k - padding)`` that a kernel element k reads under the group elements g are a feature map of
the group. The elements h·k of its orbit read the same map at gh. A lifting convolution is therefore a pointwise group
convolution of as many maps as there are orbits::

    y[o,g](q) = Σ_k Σ_i Σ_h  w[o,i](h·k) / |stabilizer of k| · x[i](stride·q + gh·k - padding),    k of each orbit.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...groups import PointGroup, action_table
from ..conv_spec import ConvSpec


class Orbits(NamedTuple):
    """The orbits of a kernel's elements.

    Args:
        first: one element of each orbit, (orbits,).
        place: the element to which each group element moves it, orbit after orbit, (orbits·order,).
        scale: one over the number of group elements that move it there, (orbits·order,).
    """

    first: NDArray[np.intp]
    place: NDArray[np.intp]
    scale: NDArray[np.float64]


@lru_cache(maxsize=256)
def orbits_of(group: PointGroup, kernel: tuple[int, ...]) -> Orbits:
    """Return the orbits of a kernel's elements. Groups that exchange axes have kernels of one size on these."""
    moved = np.argsort(action_table(group, kernel), axis=1)  # (order, elements): the place of g·k
    first = np.unique(moved.min(axis=0))
    place = moved[:, first].T  # (orbits, order)
    as_often = (place[:, :, None] == place[:, None, :]).sum(axis=2)
    return Orbits(first, place.ravel(), 1 / as_often.ravel())


def filter_of_orbits(spec: ConvSpec, weight: Tensor) -> Tensor:
    """Return the pointwise filter: (O, I, 1, k, …) to (O, orbits·I, |H|, 1, …)."""
    _, place, scale = map(torch.from_numpy, orbits_of(spec.group, spec.kernel_size))
    entries = weight.flatten(2).index_select(2, place) * scale.to(weight.dtype)
    channels = entries.unflatten(2, (-1, spec.group.order)).transpose(1, 2).flatten(1, 2)
    return channels.reshape(*channels.shape, *(1,) * spec.dimension)


def filter_gradient(spec: ConvSpec, grad: Tensor) -> Tensor:
    """Return the gradient of the filter from that of :func:`filter_of_orbits`."""
    first, place, scale = map(torch.from_numpy, orbits_of(spec.group, spec.kernel_size))
    entries = grad.flatten(2).unflatten(1, (len(first), -1)).transpose(1, 2).flatten(2)
    found = grad.new_zeros(*entries.shape[:2], math.prod(spec.kernel_size))
    found.index_add_(2, place, entries * scale.to(grad.dtype))
    return found.unflatten(2, (1, *spec.kernel_size))
