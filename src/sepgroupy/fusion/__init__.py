"""Fusion of standard modules by one explicit call: same model, parameters and state dict, fewer passes over memory.

``tracing`` lists the calls of a network. ``patterns`` finds those that one kernel can compute, ``steps`` computes them,
and ``program`` runs the list. ``api`` replaces the forward of a network by it. Networks do not import this package.
"""

from .api import FusionReport as FusionReport
from .api import fuse as fuse
from .api import fusion_report as fusion_report
from .api import restore as restore
