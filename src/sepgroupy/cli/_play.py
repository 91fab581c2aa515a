"""The command that opens the page to play with."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["play"]


def play(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Folders of runs on 28×28 images, up to four.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write the page to this .html file instead; it must not exist.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for a free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Rotate a digit and watch the networks: Z2CNN and gc-P4CNN with the weights of the package, or those of runs."""
    from ..play import build_page, save_page, serve
    from ..training import load_model

    networks = {str(run): load_model(run) for run in runs} if runs else None
    if save is not None:
        save_page(save, networks)
        print(save)
        return

    def started(address: str) -> None:
        print(f"{address} (Ctrl+C ends it)", flush=True)
        if browser:
            webbrowser.open(address)

    serve(build_page(networks), port, started)
