"""Between a model's thread and a client's connection: pieces one way, the news that the client left the other way."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from starlette.requests import ClientDisconnect, Request

from runtime.adapters.base import Piece

T = TypeVar("T")


class PieceChannel:
    """The pieces of one answer, for one client; leaving the context cancels what isn't finished.

    Attributes:
        cancelled: Set when nobody waits any more; the worker looks at it after each token.
    """

    def __init__(self, request: Request) -> None:
        self.cancelled = threading.Event()
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()
        self._first: Piece | Exception | None = None
        self._has_first = False
        self._watch: asyncio.Task[None] | None = None

    def send(self, item: Piece | Exception | None) -> None:
        """Pass a piece, an error, or None for the end; callable from any thread."""
        with suppress(RuntimeError):  # the loop is closed: the server is gone, and so is the client
            self._loop.call_soon_threadsafe(self._events.put_nowait, item)

    async def __aenter__(self) -> Self:
        self._watch = asyncio.create_task(self._watch_client())
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.cancelled.set()
        if self._watch:
            self._watch.cancel()

    async def wait_first(self) -> None:
        """Wait until the model has begun to answer.

        Raises:
            AdapterError: It refused, or failed.
            ClientDisconnect: The client left.
        """
        self._first = await self._next()
        self._has_first = True

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield all pieces in order.

        Raises:
            AdapterError: The model failed.
            ClientDisconnect: The client left.
        """
        if self._has_first and isinstance(self._first, Piece):
            yield self._first
        while isinstance(item := await self._next(), Piece):
            yield item

    async def _next(self) -> Piece | None:
        item = await self._events.get()
        if isinstance(item, Exception):
            raise item
        return item

    async def _watch_client(self) -> None:
        await _disconnected(self._request)
        self.cancelled.set()
        self._events.put_nowait(ClientDisconnect())


async def until_disconnect(request: Request, future: asyncio.Future[T]) -> T:
    """Return the future's result.

    Raises:
        ClientDisconnect: The client left before; the future is cancelled.
    """
    watch = asyncio.create_task(_disconnected(request))
    waited: set[asyncio.Future[Any]] = {future, watch}  # one result each, of two types
    try:
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if future.done():
            return future.result()
        future.cancel()
        raise ClientDisconnect
    finally:
        watch.cancel()


async def _disconnected(request: Request) -> None:
    """Return when the client is gone; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
