"""Where a network loses its equivariance, why, and what would repair it."""

from ._audit import audit as audit
from ._audit import exact_sizes as exact_sizes
from ._report import AuditReport as AuditReport
from ._report import AuditRow as AuditRow

__all__ = ["AuditReport", "AuditRow", "audit", "exact_sizes"]
