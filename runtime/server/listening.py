"""The socket and the loop: a port that is taken is known before any model loads, and SIGTERM drains."""

import errno
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from manifests.errors import AdapterError

_BACKLOG: Final = 128


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes any free one.

    Raises:
        AdapterError: The port is taken, not allowed, or the address isn't this host's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where a socket says that it is TCP: else each reply waits 40 ms for an
    # acknowledgement, because its head and its body are two writes
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or "a port is a number from 0 to 65535"
        is_address = isinstance(error, socket.gaierror) or getattr(error, "errno", 0) == errno.EADDRNOTAVAIL
        hint = "give an address of this host with --host" if is_address else "choose another with --port"
        raise AdapterError(f"can't listen on {host} port {port}: {reason}", hint=hint) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL under which a listening socket answers."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this host can reach a listening socket."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


class Server:
    """uvicorn around one application and one socket.

    Args:
        app: The application.
        grace: Seconds that requests in flight get after SIGTERM.
        on_reload: Called on a thread of its own at SIGHUP, never twice at once.
    """

    def __init__(self, app: ASGIApp, *, grace: int, on_reload: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=grace, lifespan="on", server_header=False
        )
        self._server = uvicorn.Server(config)
        self._on_reload = on_reload
        self._reloading = threading.Lock()

    def run(self, listener: socket.socket) -> None:
        """Serve until SIGTERM, SIGINT or :meth:`stop`, then finish what is in flight. Main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again when it has drained
            signal.signal(number, lambda _number, _frame: None)
        signal.signal(signal.SIGHUP, lambda _number, _frame: threading.Thread(target=self._reload, daemon=True).start())
        self._server.run(sockets=[listener])

    def stop(self) -> None:
        """Ask :meth:`run` to drain and return; callable from any thread."""
        self._server.should_exit = True

    def _reload(self) -> None:
        with self._reloading:
            self._on_reload()
