"""The HTTP routes. Starlette, because the API is a dozen routes and validation is our own, by name."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from manifests.errors import AdapterError
from runtime.adapters.base import Generation, Piece
from runtime.server.channel import PieceChannel, RequestTimeout, until_disconnect
from runtime.server.embedding import EmbeddingJob, MultiJob
from runtime.server.failures import FAILURES, failed, refuse_key, to_api_error
from runtime.server.generation import GenerationJob
from runtime.server.keys import ApiKeys
from runtime.server.loading import describe
from runtime.server.page import PAGE_HEADERS, status_page
from runtime.server.replies import DONE, Answer, embeddings_reply, event, multi_reply
from runtime.server.requests import (
    ApiError,
    GenerationRequest,
    parse_body,
    parse_chat,
    parse_completion,
    parse_embeddings,
    parse_multi,
)
from runtime.server.service import Service

_LOG: Final = logging.getLogger(__name__)
_OPEN_ROUTES: Final = frozenset({"/health", "/ready"})
Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may take.

    Attributes:
        body_bytes: The largest body.
        body_seconds: How long a body may take to arrive.
        seconds: How long an answer may take, waiting included.
        answer_tokens: The largest ``max_tokens``; None for what the model's context allows.
    """

    body_bytes: int = 8 << 20
    body_seconds: float = 30.0
    seconds: float = 600.0
    answer_tokens: int | None = None


def make_app(service: Service, *, limits: Limits, keys: ApiKeys | None = None) -> Starlette:
    """Return the application.

    Args:
        service: The models; they begin to load when the application starts.
        limits: Of one request.
        keys: Who may ask; None for anyone.
    """
    routes = _Routes(service, limits, keys)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.stop)

    table = [
        ("/", routes.page, "GET"),
        ("/v1/models", routes.models, "GET"),
        ("/v1/models/{name}", routes.model, "GET"),
        ("/v1/embeddings", routes.embeddings, "POST"),
        ("/v1/embeddings/multi", routes.multi, "POST"),
        ("/v1/chat/completions", routes.chat, "POST"),
        ("/v1/completions", routes.completion, "POST"),
        ("/health", routes.health, "GET"),
        ("/ready", routes.ready, "GET"),
        ("/metrics", routes.metrics, "GET"),
    ]
    return Starlette(
        lifespan=lifespan,
        routes=[Route(path, routes.counted(endpoint), methods=[method]) for path, endpoint, method in table],
        exception_handlers=FAILURES,
    )


class _Routes:
    def __init__(self, service: Service, limits: Limits, keys: ApiKeys | None) -> None:
        self._service = service
        self._limits = limits
        self._keys = keys
        self._open = 0
        self._started = time.time()
        self._loading: dict[str, asyncio.Task[None]] = {}
        service.metrics.watch("sealift_open_requests", lambda: self._open)

    async def page(self, _request: Request) -> Response:
        return HTMLResponse(status_page(self._service, self._started), headers=PAGE_HEADERS)

    async def health(self, _request: Request) -> Response:
        healthy = self._service.healthy
        body = {"status": "ok" if healthy else "a model's thread has ended; the log has its traceback"}
        return JSONResponse(body, status_code=200 if healthy else 503)

    async def ready(self, _request: Request) -> Response:
        loaded = list(self._service.loaded())
        waiting = [name for name in self._service.names if name not in loaded]
        is_ready = self._service.ready
        body = {"status": "ready" if is_ready else "loading", "loaded": loaded, "loading": [] if is_ready else waiting}
        return JSONResponse(body, status_code=200 if is_ready else 503)

    async def metrics(self, _request: Request) -> Response:
        return PlainTextResponse(self._service.metrics.render(), media_type="text/plain; version=0.0.4")

    async def models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._describe(name) for name in self._service.names]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._service.names:
            raise ApiError(f"there is no model {name[:80]!r} here", status=404, param="model", code="model_not_found")
        return JSONResponse(self._describe(name))

    async def embeddings(self, request: Request) -> Response:
        asked = parse_embeddings(await self._body(request))
        await self._ensure(asked.model)
        job = EmbeddingJob(texts=asked.inputs)
        self._service.submit_embedding(asked.model, job)
        result = await until_disconnect(request, asyncio.wrap_future(job.result), seconds=self._limits.seconds)
        self._count(asked.model, sum(result.token_counts), truncated=result.truncated_count)
        return JSONResponse(await asyncio.to_thread(embeddings_reply, asked, result))

    async def multi(self, request: Request) -> Response:
        asked = parse_multi(await self._body(request))
        await self._ensure(asked.model)
        job = MultiJob(texts=asked.inputs, dense=asked.dense, sparse=asked.sparse, colbert=asked.colbert)
        self._service.submit_embedding(asked.model, job)
        result = await until_disconnect(request, asyncio.wrap_future(job.result), seconds=self._limits.seconds)
        self._count(asked.model, sum(result.token_counts), truncated=result.truncated_count)
        return JSONResponse(await asyncio.to_thread(multi_reply, asked.model, result))

    async def chat(self, request: Request) -> Response:
        asked = parse_chat(await self._body(request))
        return await self._generate(request, asked, Answer.begin("chat.completion", asked.model))

    async def completion(self, request: Request) -> Response:
        asked = parse_completion(await self._body(request))
        return await self._generate(request, asked, Answer.begin("text_completion", asked.model))

    def counted(self, endpoint: Endpoint) -> Endpoint:
        """Return the endpoint for those with a key, its errors turned into answers, all counted and no body logged."""

        async def answer(request: Request) -> Response:
            route, started = request.scope["route"].path, time.monotonic()
            self._open += 1
            try:
                response = await self._admitted(endpoint, request)
            except ClientDisconnect:
                self._service.metrics.add("sealift_cancelled_total", route=route)
                response = Response(status_code=499)
            except Exception as error:  # noqa: BLE001 - every request is answered and counted
                response = failed(request, error)
                if isinstance(error, RequestTimeout):
                    self._service.metrics.add("sealift_timeouts_total", route=route)
            finally:
                self._open -= 1
            seconds, status = time.monotonic() - started, response.status_code
            if route.startswith("/v1/"):
                _LOG.info("%s %s %d in %.3f s", request.method, route, status, seconds)
            labels = {"route": route, "status": str(status)}
            self._service.metrics.add("sealift_requests_total", **labels)
            self._service.metrics.add("sealift_request_seconds_total", seconds, **labels)
            return response

        return answer

    async def _admitted(self, endpoint: Endpoint, request: Request) -> Response:
        if self._keys is None or request.scope["route"].path in _OPEN_ROUTES:
            return await endpoint(request)
        if not self._keys.admits(request.headers.get("authorization")):
            self._service.metrics.add("sealift_refused_keys_total")
            return refuse_key()
        return await endpoint(request)

    async def _ensure(self, model: str) -> None:
        """Have a model loaded that is offered and isn't loaded yet."""
        if not self._service.must_load(model):
            return
        task = self._loading.get(model)
        if task is None:  # one thread for all who wait, since the pool's few are needed for answers too
            task = asyncio.create_task(asyncio.to_thread(self._service.load, model))
            self._loading[model] = task
            task.add_done_callback(partial(self._loaded, model))
        async with asyncio.timeout(self._limits.seconds):
            await asyncio.shield(task)

    def _loaded(self, model: str, task: asyncio.Task[None]) -> None:
        del self._loading[model]
        if not task.cancelled():
            task.exception()  # told to whoever waits; nobody may, any more

    async def _generate(self, request: Request, asked: GenerationRequest, answer: Answer) -> Response:
        most = self._limits.answer_tokens
        if most is not None and (asked.params.max_new_tokens or 0) > most:
            raise ApiError(f"max_tokens: at most {most} here, got {asked.params.max_new_tokens}", param="max_tokens")
        await self._ensure(asked.model)
        rows = asked.rows()
        channel = PieceChannel(request, choices=len(rows), seconds=self._limits.seconds)
        jobs = [
            GenerationJob(prompt=prompt, params=params, send=partial(channel.send, index), cancelled=channel.cancelled)
            for index, (prompt, params) in enumerate(rows)
        ]
        self._service.submit_generation(asked.model, jobs)
        if asked.stream:
            return await self._stream(channel, asked, answer, len(rows))
        async with channel:
            pieces: list[list[Piece]] = [[] for _ in rows]
            async for index, piece in channel.pieces():
                pieces[index].append(piece)
        results = [_join(parts) for parts in pieces]
        self._count_answers(asked, [parts[-1] for parts in pieces])
        return JSONResponse(answer.whole(results, per_prompt=asked.answers))

    async def _stream(self, channel: PieceChannel, asked: GenerationRequest, answer: Answer, rows: int) -> Response:
        await channel.__aenter__()
        try:
            await channel.wait_first()  # a prompt that doesn't fit is a 400, not an event
        except BaseException:
            channel.close()
            raise
        self._open += 1
        return _Stream(self._events(channel, asked, answer, rows), close=partial(self._closed, channel))

    def _closed(self, channel: PieceChannel) -> None:
        channel.close()
        self._open -= 1

    async def _events(
        self, channel: PieceChannel, asked: GenerationRequest, answer: Answer, rows: int
    ) -> AsyncIterator[bytes]:
        last: dict[int, Piece] = {}
        try:
            for index in range(rows):
                yield answer.opening(index)
            async for index, piece in channel.pieces():
                last[index] = piece
                if piece.text or piece.reasoning or piece.finish_reason:
                    yield answer.chunk(piece, index)
            read, made = self._count_answers(asked, [last[index] for index in sorted(last)])
            if asked.include_usage:
                yield answer.usage(read, made)
        except ClientDisconnect:
            self._service.metrics.add("sealift_cancelled_total", route="stream")
            return
        except (ApiError, AdapterError, RequestTimeout) as error:
            yield event(to_api_error(error).body())
        yield DONE

    def _count_answers(self, asked: GenerationRequest, last: Sequence[Piece]) -> tuple[int, int]:
        """Count and return the tokens of the prompts, each once, and of all answers."""
        read = sum(piece.prompt_tokens for piece in last[:: asked.answers])
        made = sum(piece.completion_tokens for piece in last)
        self._count(asked.model, read, made)
        return read, made

    async def _body(self, request: Request) -> Mapping[str, object]:
        data = bytearray()
        most = self._limits.body_bytes
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for chunk in request.stream():
                    data += chunk
                    if len(data) > most:
                        msg = f"the body is larger than {most} bytes"
                        raise ApiError(msg, status=413, code="request_too_large")
        except TimeoutError:
            msg = f"the body didn't arrive within {self._limits.body_seconds:g} s"
            raise ApiError(msg, status=408, code="timeout") from None
        return parse_body(bytes(data))

    def _describe(self, name: str) -> dict[str, object]:
        served = self._service.served(name)
        own = {"id": name, "object": "model", "created": int(self._started), "owned_by": "sealift"}
        return {**own, "ready": served is not None, "sealift": describe(served)}

    def _count(self, model: str, prompt: int, completion: int = 0, *, truncated: int = 0) -> None:
        add = self._service.metrics.add
        add("sealift_prompt_tokens_total", prompt, model=model)
        add("sealift_completion_tokens_total", completion, model=model)
        add("sealift_truncated_inputs_total", truncated, model=model)


class _Stream(StreamingResponse):
    """A stream that always closes what feeds it, also when its client leaves between two pieces."""

    def __init__(self, events: AsyncIterator[bytes], *, close: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._close = close

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001 - as Starlette
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


def _join(pieces: Sequence[Piece]) -> Generation:
    last = pieces[-1]
    return Generation(
        text="".join(piece.text for piece in pieces),
        reasoning="".join(piece.reasoning for piece in pieces),
        finish_reason=last.finish_reason or "length",
        prompt_tokens=last.prompt_tokens,
        completion_tokens=last.completion_tokens,
    )
