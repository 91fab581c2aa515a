"""Networks for where there is no sepgroupy: plain modules, and files of three formats."""

from ._export import export as export
from ._save import FORMATS as FORMATS
from ._save import save as save

__all__ = ["FORMATS", "export", "save"]
