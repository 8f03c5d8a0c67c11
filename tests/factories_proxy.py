"""A proxy on loopback that does harm to requests and answers, between a client and a real registry."""

import contextlib
import http.client
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to one request.

    ``status`` answers it without asking the registry, with ``headers``. ``hang_up`` closes the connection: ``before``
    the registry is asked, or ``after``. ``cut`` sends so many bytes of the answer and closes; ``flip`` changes the byte
    there; ``shorten`` takes so many bytes from the end of the answer and of its length. ``pass_on`` sends so many bytes
    of the request's body to the registry and closes both. ``no_range`` asks for the whole.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    hang_up: str = ""
    cut: int | None = None
    flip: int | None = None
    shorten: int = 0
    pass_on: int | None = None
    no_range: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request that came to the proxy, and how many bytes of its answer's body were sent."""

    method: str
    path: str
    range: str
    content_range: str
    authorization: str
    proxy_authorization: str
    size: int
    given: int = 0


Decide = Callable[[Asked, int], Fault | None]
"""Says what to do to a request; the number says how many like it, by method and path, came before."""


class FaultProxy:
    """Stands between a client and the registry at ``target``; ``asked`` holds every request. ``tls`` is a context."""

    def __init__(
        self, target: str, decide: Decide = lambda _asked, _number: None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.target, self.decide = target, decide
        self.asked: list[Asked] = []
        self._seen: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._busy = 0
        self._server = _Server(("127.0.0.1", 0), self._handler())
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of(self, method: str, word: str = "") -> list[Asked]:
        """Return the requests with a method whose path has ``word``; those that are being answered are waited for."""
        with self._idle:
            assert self._idle.wait_for(lambda: not self._busy, timeout=20)
        return [asked for asked in self.asked if asked.method == method and word in asked.path]

    def count(self, asked: Asked) -> int:
        """Take note that a request came, and return how many like it came before."""
        with self._lock:
            self._busy += 1
            key = (asked.method, asked.path.partition("?")[0])
            number = self._seen.get(key, 0)
            self._seen[key] = number + 1
            return number

    def note(self, asked: Asked) -> None:
        """Keep a request that was answered."""
        with self._idle:
            self.asked.append(asked)
            self._busy -= 1
            self._idle.notify_all()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(_ProxyHandler):
            pass

        Handler.proxy = proxy
        return Handler


_HEADERS: Final = ("Range", "Content-Range", "Authorization", "Proxy-Authorization")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients are killed on purpose."""


class _ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def do_GET(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        words = {name: self.headers.get(name) or "" for name in _HEADERS}
        asked = Asked(
            method=self.command,
            path=self.path,
            range=words["Range"],
            content_range=words["Content-Range"],
            authorization=words["Authorization"],
            proxy_authorization=words["Proxy-Authorization"],
            size=size,
        )
        given, number = 0, self.proxy.count(asked)
        try:
            given = self._answer(self.proxy.decide(asked, number) or Fault(), size)
        finally:
            self.proxy.note(replace(asked, given=given))

    do_HEAD = do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815 # the names that http.server looks for

    def _answer(self, fault: Fault, size: int) -> int:
        if fault.status or fault.hang_up == "before":
            self.rfile.read(size)
            if fault.hang_up:
                self.close_connection = True
                return 0
            self.send_response(fault.status)
            for name, value in {"Content-Length": "0", **fault.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            return 0
        host, port = self.proxy.target.split(":")
        upstream = http.client.HTTPConnection(host, int(port), timeout=60)
        with contextlib.closing(upstream):
            if fault.pass_on is not None:
                self._begin(upstream, size)
                upstream.send(self.rfile.read(fault.pass_on))
                self.close_connection = True
                self.rfile.read(size - fault.pass_on)
                return 0
            self._begin(upstream, size, no_range=fault.no_range)
            while size > 0:
                data = self.rfile.read(min(size, 1 << 20))
                if not data:  # whoever sends it gave up
                    self.close_connection = True
                    return 0
                upstream.send(data)
                size -= len(data)
            return self._relay(upstream.getresponse(), fault)

    def _begin(self, upstream: http.client.HTTPConnection, size: int, *, no_range: bool = False) -> None:
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if not (no_range and name.lower() == "range"):
                upstream.putheader(name, value)
        if "Content-Length" not in self.headers and size == 0 and self.command in {"POST", "PUT", "PATCH"}:
            upstream.putheader("Content-Length", "0")
        upstream.endheaders()

    def _relay(self, reply: http.client.HTTPResponse, fault: Fault) -> int:
        if fault.hang_up == "after":
            reply.read()
            self.close_connection = True
            return 0
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            if name.lower() == "content-length":
                self.send_header(name, str(int(value) - fault.shorten))
            elif name.lower() not in {"connection", "transfer-encoding", "server", "date"}:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return 0
        given, left = 0, (reply.length or 0) - fault.shorten
        left = left if fault.cut is None else min(left, fault.cut)
        while left > 0 and (data := reply.read(min(left, 1 << 20))):
            if fault.flip is not None and given <= fault.flip < given + len(data):
                at = fault.flip - given
                data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            self.wfile.write(data)
            given, left = given + len(data), left - len(data)
        if fault.cut is not None or left > 0:
            self.wfile.flush()
            self.close_connection = True
        return given

    def log_message(self, *_: object) -> None:
        pass
