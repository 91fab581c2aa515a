"""Import a user's network by its path."""

from __future__ import annotations

import importlib
import sys

from torch import nn

from ..errors import ArgumentError


def import_network(path: str) -> nn.Module:
    """Build the network that an import path names, such as ``"package.module:factory"``.

    The current folder is searched first, as ``python -m`` does. Importing runs the code of that module.

    Args:
        path: a Python module, a colon, and a name in it: an ``nn.Module``, or a callable that
            returns one without arguments.

    Raises:
        ArgumentError: there is no such module or name, calling it fails, or it does not give an ``nn.Module``.

    >>> import_network("torch.nn:ReLU")
    ReLU()
    """
    package, _, name = path.partition(":")
    if not package or not name:
        raise ArgumentError(f"module (={path!r}) must be an import path such as package.module:factory")
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(package), name)
        network = found if isinstance(found, nn.Module) else found()
    except Exception as error:  # the user's code can raise anything
        raise ArgumentError(f"module (={path!r}) cannot be built: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove("")
    if not isinstance(network, nn.Module):
        raise ArgumentError(f"module (={path!r}) gives a {type(network).__name__}: it must be a torch.nn.Module")
    return network
