"""A server for one page, on this machine alone."""

from __future__ import annotations

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOST = "127.0.0.1"


def serve(page: str, port: int = 0, started: Callable[[str], object] = print) -> None:
    """Serve a page to browsers on this machine until interrupted.

    Args:
        page: HTML, see :func:`build_page`.
        port: 0 for a free one.
        started: called with the address when the server answers.

    Raises:
        OSError: the port is taken.
    """
    body = page.encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path.partition("?")[0] in ("/", "/index.html")
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body) if found else 0))
            self.end_headers()
            if found:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:  # a line for each request is noise
            pass

    with ThreadingHTTPServer((HOST, port), Handler) as server:
        started(f"http://{HOST}:{server.server_address[1]}/")
        server.serve_forever()
