"""A server of one site for one person: reads alone, this machine alone unless told otherwise, nothing but its paths.

What guards it: it answers GET and HEAD only; a Host that is not its own is refused, so that no other site's name can
be pointed here (DNS rebinding); so is what another site's page asks for; and the page it sends may load nothing from
elsewhere and run nothing but its own script.
"""

import errno
import ipaddress
import select
import socket
import sys
import webbrowser
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from clearhead.errors import InputError
from clearhead.view.site import Answer, Asked, Site, as_json

PORT = 8471
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'"
)
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Server(ThreadingHTTPServer):
    """Serves a site at `url` until it is closed: `show`. It takes its port at once, and answers when it has a site.

    Port 0 is any that is free. `framed`: may pages of others show it in a frame, as notebooks do? Raises InputError, in
    one line, for a port in use or a host that is not this machine.
    """

    daemon_threads = True
    site: Site

    def __init__(self, host: str = "127.0.0.1", port: int = PORT, framed: bool = False) -> None:
        # a notebook is at any address, or in an editor's own window; whoever frames the page cannot read it
        self.policy = POLICY if framed else f"{POLICY}; frame-ancestors 'none'"
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._host = host
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError, TypeError, UnicodeError) as error:  # the last two: what is no name of a host
            raise InputError(_refused(host, port, error)) from None

    def show(self, site: Site, browser: bool = False) -> None:
        """Serve `site` until Ctrl-C, or until another thread calls `shutdown`; open it in a browser if wanted."""
        self.site = site
        if browser:
            webbrowser.open(self.url)
        with suppress(KeyboardInterrupt):
            self.serve_forever()

    def server_bind(self) -> None:
        """As any server, without asking who else knows this machine by name, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self._host, self.server_address[1]

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self._host in ("", "0.0.0.0") else "::1" if self._host == "::" else self._host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/"

    def server_close(self) -> None:
        super().server_close()
        if (site := getattr(self, "site", None)) is not None:
            site.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has gone away is nothing to speak of; anything else is one line."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"error: {type(error).__name__}: {error}", file=sys.stderr)

    def knows(self, host: str) -> bool:
        """Is this one of the names under which the server may be spoken to?"""
        try:
            name, port = urlsplit(f"//{host}").hostname, urlsplit(f"//{host}").port or 80
        except ValueError:
            return False
        if name is None or port != self.server_port:
            return False
        if name in ("localhost", "127.0.0.1", "::1", self._host.lower()):
            return True
        # whoever opens it to a network speaks to it by an address or this machine's name; rebinding needs another name
        return not _loopback(self._host) and (_address(name) or name == socket.gethostname().lower())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "clearhead-view", ""
    timeout = 60
    server: Server

    def do_GET(self) -> None:
        self.close_connection = self.close_connection or "Content-Length" in self.headers  # nobody reads a body here
        try:
            self._send(*self._answer())
        except OSError:  # gone away
            self.close_connection = True

    do_HEAD = do_GET

    def _answer(self) -> tuple[int, Answer]:
        why = self._foreign()
        if why is not None:
            return 403, _said(why)
        path, _, query = self.path.partition("?")
        try:
            found = self.server.site.answer(path, Asked(parse_qs(query, keep_blank_values=True), self._gone))
        except ConnectionError:
            raise
        except InputError as error:
            return 400, _said(str(error))
        except Exception as error:
            print(f"error: {self.path}: {type(error).__name__}: {error}", file=sys.stderr)
            return 500, _said(f"{type(error).__name__}: {error}")
        return (404, _said(self.server.site.unknown(path))) if found is None else (200, found)

    def _gone(self) -> bool:
        """Has the browser closed the line? It does when it no longer wants what it asked for."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def _foreign(self) -> str | None:
        """Why this request is not from the page, nor from whoever opens it."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if not self.server.knows(host):
            return f"this server is not {host[:80]!r}: open {self.server.url}"
        if origin is not None and origin != f"http://{host}":
            return "another site's page asked for this"
        if self.path != "/" and self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return "another site's page asked for this"
        return None

    def _send(self, status: int, found: Answer) -> None:
        self.send_response(status)
        for name, value in {
            **_ALWAYS,
            "Content-Security-Policy": self.server.policy,
            **found.headers,
            "Content-Type": found.kind,
        }.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(found.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(found.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What is no GET or HEAD, or no HTTP: refused, and the connection closed."""
        self.close_connection = True
        code = 405 if code == 501 else code
        allow = {"Allow": "GET, HEAD", "Connection": "close"}
        said = _said("this server answers GET and HEAD only" if code == 405 else message or "bad request")
        self._send(code, Answer(said.kind, said.body, allow))

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _said(why: str) -> Answer:
    return as_json({"error": " ".join(why.split())})


def _loopback(host: str) -> bool:
    return host == "localhost" or (_address(host) and ipaddress.ip_address(host).is_loopback)


def _address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _refused(host: str, port: int, error: Exception) -> str:
    """Why there can be no server, and what to write instead."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        free = _free(host, port)
        other = "write --port 0 for any that is free"
        return f"port {port} is in use; {other if free is None else f'--port {free} is free, and --port 0 takes any'}"
    if number == errno.EACCES:
        return f"port {port} needs more rights than you have; write --port {PORT}"
    if isinstance(error, OverflowError):
        return f"port {port} is none: write one from 1 to 65535, or 0 for any that is free"
    return f"host {host!r} is no address of this machine; write --host 127.0.0.1 for this machine alone"


def _free(host: str, port: int) -> int | None:
    """The next port that is free."""
    for other in range(port + 1, min(port + 100, 65536)):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
            try:
                trial.bind((host, other))
            except OSError:
                continue
            return other
    return None
