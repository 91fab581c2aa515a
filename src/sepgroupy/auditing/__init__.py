"""Find the layers at which a network loses its equivariance, the cause, and a fix."""

from ._audit import audit as audit
from ._audit import dimension_of as dimension_of
from ._audit import exact_sizes as exact_sizes
from ._report import AuditReport as AuditReport
from ._report import AuditRow as AuditRow
from ._tracing import INPUT as INPUT

__all__ = ["INPUT", "AuditReport", "AuditRow", "audit", "dimension_of", "exact_sizes"]
