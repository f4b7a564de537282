"""The inspector's web server: one page, its files by name, and its questions; on the loopback address alone."""

import json
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from samepath.rl.interruption import Interruption
from samepath.rl.report.inspector.api import Api, MissingError
from samepath.rl.report.inspector.details import RewrittenError
from samepath.rl.report.inspector.rollout_index import RolloutIndex
from samepath.rl.report.inspector.run_facts import rollouts_of
from samepath.rl.report.page import SHARED_SCRIPTS

HOST = "127.0.0.1"
LOOK_S = 1.0
"""How often the run's folder is looked at."""
REST_FACTOR = 20
"""Between two looks at least this many times as long as one took."""
IDLE_S = 30.0
"""A connection without a question for this long is closed."""
END_S = 5.0
"""Longest wait for the thread that reads to end."""
HERE = Path(__file__).parent
FILES = {
    "/": (HERE / "inspector.html", "text/html"),
    "/rollouts.css": (HERE.parent / "rollouts.css", "text/css"),
    "/inspector.css": (HERE / "inspector.css", "text/css"),
    **{f"/{name}": (HERE.parent / name, "text/javascript") for name in SHARED_SCRIPTS},
    **{f"/{name}": (HERE / name, "text/javascript") for name in ("views.js", "inspector.js")},
}
"""All files that there are to ask for; a path is looked up here and never joined to a folder."""
HEADERS = {
    # No script but these files, no request but to this server, and no other page around this one.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class InspectorServer(ThreadingHTTPServer):
    """Serves one run. A context manager: inside, the run's folder is followed by a thread of its own."""

    daemon_threads = True

    def __init__(self, run_dir: Path, port: int = 0) -> None:
        """Bind the port, or a free one for 0. Raises NoRunError, OSError."""
        self.index = RolloutIndex(rollouts_of(run_dir))
        self.api = Api(run_dir, self.index)
        self._ended = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="samepath-inspect", daemon=True)
        super().__init__((HOST, port), _Handler)

    def server_bind(self) -> None:
        """Bind without asking for the machine's name, which could send a packet to a name server."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_port}/"

    def __enter__(self) -> "InspectorServer":
        self._follower.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.server_close()
        self._follower.join(END_S)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Leave a connection that the browser broke off unmentioned; anything else is an error of this program."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def _follow(self) -> None:
        while not self._ended.is_set():
            begun = time.monotonic()
            self.index.refresh()
            # A run of very many steps takes a while to look at.
            self._ended.wait(max(LOOK_S, REST_FACTOR * (time.monotonic() - begun)))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An answer goes out in one piece: its head alone would be waited for by the other side's delayed acknowledgement, 40 ms.
    wbufsize = -1
    disable_nagle_algorithm = True
    timeout = IDLE_S
    server: InspectorServer

    def do_GET(self) -> None:
        """Answer a file or a question."""
        # A page elsewhere whose name leads to this address sends its own name: it must not read what is here.
        if self.headers.get("Host", "") not in {f"{host}:{self.server.server_port}" for host in (HOST, "localhost")}:
            self._send_json(HTTPStatus.FORBIDDEN, {"error": f"ask for {self.server.url}"})
            return
        parts = urlsplit(self.path)
        if parts.path.startswith("/api/"):
            self._send_json(*self._answered(parts.path.removeprefix("/api/"), parts.query))
        elif parts.path in FILES:
            path, kind = FILES[parts.path]
            self._send(HTTPStatus.OK, f"{kind}; charset=utf-8", path.read_bytes())
        else:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": "there is no such page"})

    do_HEAD = do_GET

    def _answered(self, path: str, query: str) -> tuple[HTTPStatus, dict[str, Any]]:
        try:
            asked = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="replace")
            if len(dict(asked)) < len(asked):
                raise ValueError("every name may stand once")
            return HTTPStatus.OK, self.server.api.answer(path, dict(asked))
        except MissingError as error:
            return HTTPStatus.NOT_FOUND, {"error": str(error)}
        except RewrittenError as error:
            return HTTPStatus.CONFLICT, {"error": str(error)}
        except ValueError as error:
            return HTTPStatus.BAD_REQUEST, {"error": str(error)}
        except OSError as error:
            return HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)}

    def _send_json(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        # Escapes: half of a surrogate pair, which a model may write, has no UTF-8.
        self._send(status, "application/json; charset=utf-8", json.dumps(value, allow_nan=False).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing: the terminal shows the address alone."""


def serve(run_dir: Path, port: int, say: Callable[[str], None]) -> None:
    """Serve the page of a run until Ctrl-C or SIGTERM. Raises NoRunError, OSError."""
    with ExitStack() as stack:
        stack.enter_context(suppress(KeyboardInterrupt))
        stack.enter_context(Interruption().caught())
        server = stack.enter_context(InspectorServer(run_dir, port))
        say(f"rollouts of {run_dir}: {server.url}  (Ctrl-C ends it)")
        server.serve_forever()
