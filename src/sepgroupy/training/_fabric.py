"""Lightning Fabric, from its own package or from the one that bundles it; slow to import, so only a run does."""

from __future__ import annotations

import logging

try:
    from lightning_fabric import Fabric as Fabric
    from lightning_fabric import __version__ as VERSION
    from lightning_fabric.loggers import TensorBoardLogger as TensorBoardLogger
    from lightning_fabric.utilities.rank_zero import rank_zero_only as rank_zero_only

    LOGGER = logging.getLogger("lightning_fabric")
except ModuleNotFoundError:
    from lightning.fabric import Fabric as Fabric  # type: ignore
    from lightning.fabric import __version__ as VERSION  # type: ignore
    from lightning.fabric.loggers import TensorBoardLogger as TensorBoardLogger  # type: ignore
    from lightning.fabric.utilities.rank_zero import rank_zero_only as rank_zero_only  # type: ignore

    LOGGER = logging.getLogger("lightning.fabric")

__all__ = ["LOGGER", "VERSION", "Fabric", "TensorBoardLogger", "rank_zero_only"]
