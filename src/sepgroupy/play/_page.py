"""The page as text: a template, a style sheet and two scripts, with networks and digits inlined."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from .._files import atomic, refuse_existing
from ..errors import ArgumentError
from ..models import build_model
from ._network import describe_network

FOLDER = Path(__file__).parent

_MOST = 4  # as many as the page has colours for


def shipped_networks() -> dict[str, nn.Module]:
    """Return Z2CNN and gc-P4CNN with the weights that come with the package."""
    names = {"Z2CNN": "z2cnn", "gc-P4CNN": "gc-p4cnn"}
    return {title: build_model(name, weights="rotated-digits") for title, name in names.items()}


def build_page(networks: Mapping[str, nn.Module] | None = None) -> str:
    """Return the page as HTML that refers to no other file.

    Args:
        networks: one to four networks by the names that the page shows, see :func:`describe_network`; by default
            :func:`shipped_networks`.

    Raises:
        ArgumentError: there are none or more than four, or the page cannot run one of them.
    """
    networks = shipped_networks() if networks is None else networks
    if not 1 <= len(networks) <= _MOST:
        raise ArgumentError(f"networks has {len(networks)} entries; the page shows 1 to {_MOST}")
    page = _read("page.html")
    parts = {
        "style": _read("page.css"),
        "script": _read("network.js") + _read("page.js"),
        "digits": _inline(json.loads(_read("digits.json"))["digits"]),
        "networks": _inline([describe_network(name, network) for name, network in networks.items()]),
    }
    for name, text in parts.items():
        page = page.replace(f"{{{{ {name} }}}}", text)
    return page


def save_page(path: str | PathLike[str], networks: Mapping[str, nn.Module] | None = None) -> None:
    """Write :func:`build_page` to a file that a browser opens without a server.

    Raises:
        ArgumentError: as :func:`build_page`, or the file exists already, or its name does not end in ``.html``.
    """
    path = Path(path)
    if path.suffix != ".html":
        raise ArgumentError(f"path (={str(path)!r}) must end in .html")
    refuse_existing("path", path)
    page = build_page(networks)
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _inline(value: Any) -> str:
    """Return JSON that can stand in a script element, whatever the names of the networks are."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
