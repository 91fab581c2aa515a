"""What networks cost and what trained ones are like: numbers first, pictures from numbers."""

from __future__ import annotations

from ._complexity import Complexity as Complexity
from ._complexity import complexity as complexity
from ._figures import plot_audit as plot_audit
from ._figures import plot_error_against_angle as plot_error_against_angle
from ._import import import_network as import_network
from ._memory import peak_memory as peak_memory
from ._paper import PAPER as PAPER
from ._paper import Published as Published
from ._redundancy import LayerRedundancy as LayerRedundancy
from ._redundancy import draw_redundancy as draw_redundancy
from ._redundancy import plot_redundancy as plot_redundancy
from ._redundancy import redundancy as redundancy
from ._redundancy import untrained as untrained
from ._tables import CostRow as CostRow
from ._tables import cost_table as cost_table
from ._tables import paper_models as paper_models
from ._tables import to_csv as to_csv
from ._tables import to_markdown as to_markdown
from ._timing import RelativeTime as RelativeTime
from ._timing import relative_times as relative_times

__all__ = [
    "PAPER",
    "Complexity",
    "CostRow",
    "LayerRedundancy",
    "Published",
    "RelativeTime",
    "complexity",
    "cost_table",
    "draw_redundancy",
    "import_network",
    "paper_models",
    "peak_memory",
    "plot_audit",
    "plot_error_against_angle",
    "plot_redundancy",
    "redundancy",
    "relative_times",
    "to_csv",
    "to_markdown",
    "untrained",
]
