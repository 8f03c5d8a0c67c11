"""The sockets of a mirror: HTTP/1.1, GET and HEAD alone, a thread for each connection, files by sendfile."""

import contextlib
import errno
import os
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from manifests.errors import DiskError, SealiftError, UsageError
from runtime.mirror.catalog import Catalog
from runtime.mirror.replies import Reply, Site
from runtime.mirror.requests import BadTargetError, parse_request

MAX_CONNECTIONS: Final = 256
IDLE_SECONDS: Final = 60
_BUSY: Final = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class MirrorServer(ThreadingHTTPServer):
    """Serves a catalog until :meth:`shutdown`.

    Args:
        address: Host and port; port 0 takes a free one.
        catalog: What there is.
        log: Takes a line for each request, and for whatever went wrong.
        connections: How many clients at once; the others are told to come again.
        idle: Seconds that a connection may be silent.

    Raises:
        UsageError: The host has no such address.
        DiskError: The port is taken, or isn't for ordinary users.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        catalog: Catalog,
        log: Callable[[str], None],
        *,
        connections: int = MAX_CONNECTIONS,
        idle: float = IDLE_SECONDS,
    ) -> None:
        self.log, self.idle = log, idle
        self._room = threading.BoundedSemaphore(connections)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            super().__init__(address, Exchange)
        except OSError as error:
            raise _listen_error(error, *address) from error
        host, self.port = self.server_address[0], int(self.server_address[1])
        shown = str(host)
        self.authority = f"[{shown}]:{self.port}" if ":" in shown else f"{shown}:{self.port}"
        self.site = Site(catalog, address=self.authority)

    def server_bind(self) -> None:
        """Bind without the look-up of this host's name, which takes its time on a closed network."""
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 # as socketserver has it
        """Give a connection a thread of its own while there is room."""
        if self._room.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:
                self._room.release()
                raise
        else:
            self.log(f"{client_address[0]} turned away: too many connections")
            request.setblocking(False)
            request.send(_BUSY)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 # as socketserver has it
        """Serve a connection to its end, in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002 # as socketserver has it
        """Log what went wrong with a connection; the others go on."""
        error = sys.exc_info()[1]
        self.log(f"{client_address[0]} connection ended: {type(error).__name__}: {error}")


class Exchange(BaseHTTPRequestHandler):
    """One connection: requests in, replies out."""

    protocol_version = "HTTP/1.1"
    server_version = "sealift-mirror"
    sys_version = ""
    disable_nagle_algorithm = True
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"
    server: MirrorServer

    def setup(self) -> None:
        """Limit how long the client may be silent."""
        super().setup()
        self.connection.settimeout(self.server.idle)

    def do_GET(self) -> None:
        """Answer with headers and body."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer with headers."""
        self._answer(with_body=False)

    def do_POST(self) -> None:
        """Refuse: nothing is changed here."""
        text = b"this mirror only gives: GET and HEAD\n"
        headers = {"Allow": "GET, HEAD", "Content-Type": "text/plain; charset=utf-8", "Connection": "close"}
        self._send(Reply(status=405, headers=headers, body=text), with_body=True, begin=time.monotonic())

    do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_CONNECT = do_TRACE = do_POST  # noqa: N815 # as http.server calls them

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 # as http.server has it
        """Log what http.server refuses by itself; requests have lines of their own."""
        self.server.log(f"{self.client_address[0]} {_printable(format % args)}")

    def log_error(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 # as http.server has it
        """Log a refusal, but not that a client kept its connection open and went."""
        if not format.startswith("Request timed out"):
            self.log_message(format, *args)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Nothing: see :meth:`_send`."""

    def _answer(self, *, with_body: bool) -> None:
        begin = time.monotonic()
        headers = {name.lower(): value for name, value in self.headers.items()}
        if "content-length" in headers or "transfer-encoding" in headers:
            self.close_connection = True  # a body that nobody reads must not become the next request
        try:
            reply = self.server.site.reply(parse_request(self.path, headers))
        except BadTargetError as error:
            reply = _plain(400, f"bad request: {error}")
        except SealiftError as error:
            reply = self._refused(error)
        self._send(reply, with_body=with_body, begin=begin)

    def _refused(self, error: SealiftError) -> Reply:
        self.server.log(error.render().replace("\n", "; "))
        return _plain(500, "not served: it isn't what was installed; see the mirror's own log")

    def _send(self, reply: Reply, *, with_body: bool, begin: float) -> None:
        sent = 0
        try:
            with contextlib.ExitStack() as stack:
                try:
                    descriptor = stack.enter_context(_opened(reply))
                except SealiftError as error:
                    reply, descriptor = self._refused(error), None
                self._send_head(reply)
                if with_body:
                    sent = self._send_body(reply, descriptor)
                else:
                    self.end_headers()
        except OSError as error:
            self.close_connection = True
            self.server.log(f"{self.client_address[0]} cut off: {error}")
        self._log_exchange(reply.status, sent, time.monotonic() - begin)

    def _send_head(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", str(reply.length))
        self.send_header("X-Content-Type-Options", "nosniff")
        if self.close_connection and "Connection" not in reply.headers:
            self.send_header("Connection", "close")

    def _send_body(self, reply: Reply, descriptor: int | None) -> int:
        """Send the headers and what follows them; return how many bytes that was."""
        if descriptor is None:
            self.end_headers_with(reply.body)
            return len(reply.body)
        self.end_headers()
        with os.fdopen(os.dup(descriptor), "rb", buffering=0) as stream:
            sent = self.connection.sendfile(stream, reply.start, reply.size) if reply.size else 0
        if sent != reply.size:
            self.close_connection = True
        return sent

    def end_headers_with(self, body: bytes) -> None:
        """End the headers and send a small body in the same packet."""
        buffer: list[bytes] = self.__dict__.setdefault("_headers_buffer", [])
        buffer += [b"\r\n", body]
        self.flush_headers()

    def _log_exchange(self, status: int, sent: int, seconds: float) -> None:
        moment = datetime.now(UTC).strftime("%d/%b/%Y:%H:%M:%S +0000")
        line = _printable(self.requestline)
        self.server.log(f'{self.client_address[0]} - - [{moment}] "{line}" {status} {sent} {seconds:.3f}')


@contextlib.contextmanager
def _opened(reply: Reply) -> Iterator[int | None]:
    """Yield a descriptor of the reply's file, checked, or None where it has none."""
    if reply.file is None:
        yield None
        return
    descriptor = reply.file.open()
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _plain(status: int, text: str) -> Reply:
    return Reply(status=status, headers={"Content-Type": "text/plain; charset=utf-8"}, body=f"{text}\n".encode())


def _printable(text: str) -> str:
    """Return the text as it may stand between quotes in a log: one line, ASCII."""
    safe = text.replace("\\", "\\\\").replace('"', '\\"').encode("ascii", "backslashreplace").decode()
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in safe)


def _listen_error(error: OSError, host: str, port: int) -> SealiftError:
    if isinstance(error, PermissionError):
        return DiskError(f"can't listen on {host}:{port}: permission denied", hint="ports below 1024 are root's")
    if error.errno == errno.EADDRINUSE:
        return DiskError(f"can't listen on {host}:{port}: the port is taken", hint="choose another --port")
    return UsageError(f"can't listen on {host}:{port}: {error.strerror or error}", hint="choose another --host")
