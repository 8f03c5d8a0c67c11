"""Between a model's thread and a client's connection: pieces one way, the news that the client left the other way."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from starlette.requests import ClientDisconnect, Request

from runtime.adapters.base import Piece

T = TypeVar("T")


class RequestTimeout(Exception):  # noqa: N818 - what happened to a request, not a fault of the program
    """The answer took longer than a request may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What a worker said about one choice: a piece, an error, or None for its end."""

    index: int
    item: Piece | Exception | None


class PieceChannel:
    """The pieces of one request's choices, for one client; leaving the context cancels what isn't finished.

    Args:
        request: Its body must have been read.
        choices: How many answers are made.
        seconds: How long all of them may take together.

    Attributes:
        cancelled: Set when nobody waits any more; the worker looks at it after each token.
    """

    def __init__(self, request: Request, *, choices: int, seconds: float) -> None:
        self.cancelled = threading.Event()
        self._request = request
        self._open = choices
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Sent] = asyncio.Queue()
        self._kept: Sent | None = None
        self._watch: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def send(self, index: int, item: Piece | Exception | None) -> None:
        """Pass a piece, an error, or None for the end of one choice; callable from any thread."""
        with suppress(RuntimeError):  # the loop is closed: the server is gone, and so is the client
            self._loop.call_soon_threadsafe(self._events.put_nowait, Sent(index=index, item=item))

    async def __aenter__(self) -> Self:
        self._watch = asyncio.create_task(self._watch_client())
        self._timer = self._loop.call_later(self._seconds, self._break_off, RequestTimeout())
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what isn't finished."""
        self.cancelled.set()
        if self._watch:
            self._watch.cancel()
        if self._timer:
            self._timer.cancel()

    async def wait_first(self) -> None:
        """Wait until the model has begun to answer.

        Raises:
            AdapterError: It refused, or failed.
            ClientDisconnect: The client left.
            RequestTimeout: It took too long.
        """
        self._kept = await self._next()

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yield the number of the choice with each of its pieces, in order.

        Raises:
            AdapterError: The model failed.
            ClientDisconnect: The client left.
            RequestTimeout: It took too long.
        """
        while self._open:
            sent, self._kept = self._kept or await self._next(), None
            if isinstance(sent.item, Piece):
                yield sent.index, sent.item
            else:
                self._open -= 1

    async def _next(self) -> Sent:
        sent = await self._events.get()
        if isinstance(sent.item, Exception):
            raise sent.item
        return sent

    async def _watch_client(self) -> None:
        await _disconnected(self._request)
        self._break_off(ClientDisconnect())

    def _break_off(self, error: Exception) -> None:
        self.cancelled.set()
        self._events.put_nowait(Sent(index=0, item=error))


async def until_disconnect(request: Request, future: asyncio.Future[T], *, seconds: float) -> T:
    """Return the future's result.

    Raises:
        ClientDisconnect: The client left before; the future is cancelled.
        RequestTimeout: It took longer than ``seconds``; the future is cancelled.
    """
    watch = asyncio.create_task(_disconnected(request))
    waited: set[asyncio.Future[Any]] = {future, watch}  # one result each, of two types
    try:
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED, timeout=seconds)
        if future.done():
            return future.result()
        raise ClientDisconnect if watch.done() else RequestTimeout
    finally:
        future.cancel()
        watch.cancel()


async def _disconnected(request: Request) -> None:
    """Return when the client is gone; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
