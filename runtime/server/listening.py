"""The socket and the loop: a port that is taken is known before any model loads, and SIGTERM drains."""

import signal
import socket
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
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise AdapterError(f"can't listen on {host} port {port}: {reason}", hint="choose another with --port") from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL under which a listening socket answers."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server:
    """uvicorn around one application and one socket.

    Args:
        app: The application.
        grace: Seconds that requests in flight get after SIGTERM.
    """

    def __init__(self, app: ASGIApp, *, grace: int) -> None:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=grace, lifespan="on", server_header=False
        )
        self._server = uvicorn.Server(config)

    def run(self, listener: socket.socket) -> None:
        """Serve until SIGTERM, SIGINT or :meth:`stop`, then finish what is in flight. Main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again when it has drained
            signal.signal(number, lambda _number, _frame: None)
        self._server.run(sockets=[listener])

    def stop(self) -> None:
        """Ask :meth:`run` to drain and return; callable from any thread."""
        self._server.should_exit = True
