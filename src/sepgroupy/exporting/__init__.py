"""Export networks to plain torch modules that do not need sepgroupy, and to files of three formats."""

from ._export import export as export
from ._save import FORMATS as FORMATS
from ._save import save as save

__all__ = ["FORMATS", "export", "save"]
