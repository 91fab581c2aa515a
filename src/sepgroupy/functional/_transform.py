"""The exact action of a group element on images, feature maps and filters."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..groups import GroupLike, as_group, axis_names, steps_of

_cached_steps = lru_cache(maxsize=1024)(steps_of)  # which Dynamo would trace with a warning


def transform(x: Tensor, group: GroupLike, element: int, group_axis: bool) -> Tensor:
    """Apply one element of the group to images or feature maps, exactly.

    On an image ``(t·x)[q] = x[t⁻¹q]``; in a group feature map the group axis moves too, ``(t·f)[g] = t·(f[t⁻¹g])``.
    The same function acts on filters, (O, I, |H|, k, …). It transposes, flips and selects on the group axis. It
    allocates only the result, which never shares memory with x.

    Args:
        x: (…, *spatial), or (…, |H|, *spatial) with ``group_axis=True``; of any dtype, on any device.
        group: the point group; its dimension d selects the last d axes.
        element: index of the element t.
        group_axis: whether the axis before the spatial ones is the group axis.

    Returns:
        A new tensor with the dtype of x. Its spatial sizes are exchanged if t exchanges axes.

    Raises:
        ArgumentError: the element or the group axis does not fit the group.

    >>> import torch
    >>> x = torch.arange(6.0).reshape(2, 3)
    >>> torch.equal(transform(x, "p4", 1, group_axis=False), torch.rot90(x))
    True
    """
    group = as_group(group)
    if not 0 <= element < group.order:
        raise ArgumentError(f"element (={element}) must be an index from 0 to {group.order - 1} of {group}")
    batch = x.ndim - group.dimension - group_axis
    if batch < 0 or (group_axis and x.shape[batch] != group.order):
        names = ", ".join(axis_names(group.dimension))
        wanted = f"({group.order}, {names})" if group_axis else f"({names})"
        raise ArgumentError(f"x has shape {tuple(x.shape)}; its last axes must be {wanted} for {group}")
    first = x.ndim - group.dimension
    steps = (steps_of if torch.compiler.is_compiling() else _cached_steps)(group, element)
    y = x.permute(*range(first), *(first + axis for axis in steps.axes))
    if group_axis and element:
        y = y.index_select(batch, torch.tensor(steps.sources, device=x.device))
    elif not steps.flips:
        y = y.clone()
    return y.flip([first + axis for axis in steps.flips]) if steps.flips else y
