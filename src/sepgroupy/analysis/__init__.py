"""Measure networks: parameters, multiplications, memory, time and redundancy of filters; plot the results."""

from __future__ import annotations

from ._complexity import Complexity as Complexity
from ._complexity import complexity as complexity
from ._figures import plot_audit as plot_audit
from ._figures import plot_error_against_angle as plot_error_against_angle
from ._import import import_network as import_network
from ._memory import peak_memory as peak_memory
from ._redundancy import LayerRedundancy as LayerRedundancy
from ._redundancy import draw_redundancy as draw_redundancy
from ._redundancy import plot_redundancy as plot_redundancy
from ._redundancy import redundancy as redundancy
from ._redundancy import reinitialized_copy as reinitialized_copy
from ._timing import RelativeTime as RelativeTime
from ._timing import relative_times as relative_times

__all__ = [
    "Complexity",
    "LayerRedundancy",
    "RelativeTime",
    "complexity",
    "draw_redundancy",
    "import_network",
    "peak_memory",
    "plot_audit",
    "plot_error_against_angle",
    "plot_redundancy",
    "redundancy",
    "reinitialized_copy",
    "relative_times",
]
