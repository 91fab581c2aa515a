"""Fusion of standard modules by one explicit call: same model, same parameters, same state dict, fewer passes.

``tracing`` lists the calls that a network makes, ``program`` joins those that one kernel can do and runs the list,
``api`` swaps a network's forward for it. A network knows nothing of this package.
"""

from .api import FusionReport as FusionReport
from .api import fuse as fuse
from .api import fusion_report as fusion_report
from .api import restore as restore
