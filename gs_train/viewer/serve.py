"""Serves one page on this machine: the loopback address only, fixed paths only, and no other Host than this machine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from gs_train.viewer.hosting import LOOPBACK, bind_first_free

_HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""Names that a browser on this machine, or at the other end of an ssh tunnel, may use. Others come from a page that
points its own name at this machine."""


class PageServer(ThreadingHTTPServer):
    """Serves one page at ``/``, and pictures for it at ``/picture``."""

    daemon_threads = True

    def __init__(
        self,
        page: str,
        port: int,
        notify: Callable[[str], None],
        *,
        picture: Callable[[str], bytes] | None = None,
    ) -> None:
        """Bind to ``port`` or, if it is taken, to the next free one.

        Args:
            page: the HTML.
            port: from 1 to 65535; 0 for any free port.
            notify: takes a sentence if the port is taken.
            picture: from ``remote.picture_maker``; None for a page that needs no pictures.

        Raises:
            UserError: none of the ports is free.
        """
        self.content, self.picture = page.encode(), picture
        start = super().__init__
        bind_first_free(lambda candidate: start((LOOPBACK, candidate), _Handler), port, "--port")
        if port not in (0, self.server_port):
            notify(f"Port {port} is taken: the page is at port {self.server_port}.")

    @property
    def address(self) -> str:
        """The page's URL."""
        return f"http://{LOOPBACK}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with the page, or with an error status."""
        assert isinstance(self.server, PageServer)
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host not in _HOSTS:
            self.send_error(403, "Forbidden host")
        elif self.path == "/":
            self._send("text/html; charset=utf-8", self.server.content)
        elif self.server.picture is not None and self.path.startswith("/picture?"):
            try:
                picture = self.server.picture(self.path.partition("?")[2])
            except ValueError:
                self.send_error(400)
            except (MemoryError, FloatingPointError) as error:
                self.send_error(503, str(error))
            else:
                self._send("image/jpeg", picture)
        else:
            self.send_error(404)

    def _send(self, kind: str, content: bytes) -> None:
        # A browser that has gone wants no answer.
        with suppress(ConnectionError):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing to the terminal."""
