"""The exact action of a group element on feature maps."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..groups import PointGroup, action_table, as_group, moved_size


def transform(x: Tensor, group: PointGroup | str, element: int, fiber: bool) -> Tensor:
    """Turn or mirror maps by one element of the group, exactly.

    A planar map moves as ``(t·x)[q] = x[t⁻¹q]``; on the group also the fiber moves, ``(t·f)[g] = t·(f[t⁻¹g])``.
    The same function acts on filters, (O, I, |H|, k, k).

    Args:
        x: (…, Y, X), or (…, |H|, Y, X) with ``fiber=True``.
        group: the point group, acting on the last two axes.
        element: index of the element t.
        fiber: whether the axis before the spatial ones is the group axis.

    Raises:
        ArgumentError: the element or the group axis is not the group's.

    >>> import torch
    >>> x = torch.arange(6.0).reshape(2, 3)
    >>> torch.equal(transform(x, "p4", 1, fiber=False), torch.rot90(x))
    True
    """
    group = as_group(group)
    if not 0 <= element < group.order:
        raise ArgumentError(f"element (={element}) must be an index from 0 to {group.order - 1} of {group}")
    axes = group.dimension + fiber
    if x.ndim < axes or (fiber and x.shape[-axes] != group.order):
        raise ArgumentError(f"x has shape {tuple(x.shape)}; its last axes must be ({group.order}, Y, X) for {group}")
    size = tuple(x.shape[-group.dimension :])
    index = torch.tensor(action_table(group, size, fiber)[element], device=x.device)
    moved = moved_size(group.arrays[element], size)
    return x.flatten(-axes)[..., index].unflatten(-1, (group.order, *moved) if fiber else moved)
