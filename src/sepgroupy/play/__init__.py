"""A page in which two networks read a digit that one rotates: one HTML file, without a server or other files."""

from ._network import SIZE as SIZE
from ._network import describe_network as describe_network
from ._page import build_page as build_page
from ._page import save_page as save_page
from ._page import shipped_networks as shipped_networks
from ._server import serve as serve

__all__ = ["SIZE", "build_page", "describe_network", "save_page", "serve", "shipped_networks"]
