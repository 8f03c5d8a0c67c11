"""The HTTP routes. Starlette, because the API is a dozen routes and validation is our own, by name."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Final, TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from manifests.errors import AdapterError
from runtime.adapters.base import ContextTooLongError, Generation, GenerationParams, Prompt, RequestError
from runtime.server.channel import PieceChannel, until_disconnect
from runtime.server.replies import DONE, Answer, embeddings_reply, event, multi_reply
from runtime.server.requests import ApiError, parse_body, parse_chat, parse_completion, parse_embeddings, parse_multi
from runtime.server.service import Service
from runtime.server.workers import BusyError, EmbeddingJob, GenerationJob, MultiJob

_LOG: Final = logging.getLogger(__name__)
Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


def make_app(service: Service, *, max_body: int) -> Starlette:
    """Return the application.

    Args:
        service: The models; they begin to load when the application starts.
        max_body: The largest request body, in bytes.
    """
    routes = _Routes(service, max_body=max_body)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.stop)

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/v1/models", routes.counted(routes.models), methods=["GET"]),
            Route("/v1/models/{name}", routes.counted(routes.model), methods=["GET"]),
            Route("/v1/embeddings", routes.counted(routes.embeddings), methods=["POST"]),
            Route("/v1/embeddings/multi", routes.counted(routes.multi), methods=["POST"]),
            Route("/v1/chat/completions", routes.counted(routes.chat), methods=["POST"]),
            Route("/v1/completions", routes.counted(routes.completion), methods=["POST"]),
            Route("/health", routes.health, methods=["GET"]),
            Route("/ready", routes.ready, methods=["GET"]),
            Route("/metrics", routes.metrics, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _bug},
    )


class _Routes:
    def __init__(self, service: Service, *, max_body: int) -> None:
        self._service = service
        self._max_body = max_body

    async def health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        loaded = [info.name for info in self._service.loaded()]
        waiting = [name for name in self._service.names if name not in loaded]
        status = "ready" if self._service.ready else "loading"
        body = {"status": status, "loaded": loaded, "loading": waiting}
        return JSONResponse(body, status_code=200 if self._service.ready else 503)

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
        worker = self._service.embedding_worker(asked.model)
        job = EmbeddingJob(texts=asked.inputs)
        worker.submit(job)
        result = await until_disconnect(request, asyncio.wrap_future(job.result))
        self._count(asked.model, sum(result.token_counts), truncated=result.truncated_count)
        return JSONResponse(await asyncio.to_thread(embeddings_reply, asked, result))

    async def multi(self, request: Request) -> Response:
        asked = parse_multi(await self._body(request))
        worker = self._service.embedding_worker(asked.model)
        job = MultiJob(texts=asked.inputs, dense=asked.dense, sparse=asked.sparse, colbert=asked.colbert)
        worker.submit(job)
        result = await until_disconnect(request, asyncio.wrap_future(job.result))
        self._count(asked.model, sum(result.token_counts), truncated=result.truncated_count)
        return JSONResponse(await asyncio.to_thread(multi_reply, asked.model, result))

    async def chat(self, request: Request) -> Response:
        asked = parse_chat(await self._body(request))
        answer = Answer.begin("chat.completion", asked.model)
        if asked.stream:
            return await self._stream(request, answer, asked.messages, asked.params, usage=asked.include_usage)
        result = await self._generate(request, asked.model, asked.messages, asked.params)
        return JSONResponse(answer.whole([result]))

    async def completion(self, request: Request) -> Response:
        asked = parse_completion(await self._body(request))
        answer = Answer.begin("text_completion", asked.model)
        if asked.stream:
            return await self._stream(request, answer, asked.prompts[0], asked.params, usage=asked.include_usage)
        results = [await self._generate(request, asked.model, prompt, asked.params) for prompt in asked.prompts]
        return JSONResponse(answer.whole(results))

    def counted(self, endpoint: Endpoint) -> Endpoint:
        """Return the endpoint with its errors turned into answers, and every answer counted; no body is ever logged."""

        async def answer(request: Request) -> Response:
            started = time.monotonic()
            try:
                response = await endpoint(request)
            except (ApiError, AdapterError) as error:
                response = error_response(error)
            except ClientDisconnect:
                self._service.metrics.add("sealift_cancelled_total", route=request.scope["route"].path)
                response = Response(status_code=499)
            labels = {"route": request.scope["route"].path, "status": str(response.status_code)}
            self._service.metrics.add("sealift_requests_total", **labels)
            self._service.metrics.add("sealift_request_seconds_total", time.monotonic() - started, **labels)
            return response

        return answer

    async def _generate(self, request: Request, model: str, prompt: Prompt, params: GenerationParams) -> Generation:
        async with self._open(request, model, prompt, params) as channel:
            pieces = [piece async for piece in channel.pieces()]
        last = pieces[-1]
        self._count(model, last.prompt_tokens, last.completion_tokens)
        return Generation(
            text="".join(piece.text for piece in pieces),
            finish_reason=last.finish_reason or "length",
            prompt_tokens=last.prompt_tokens,
            completion_tokens=last.completion_tokens,
        )

    async def _stream(
        self, request: Request, answer: Answer, prompt: Prompt, params: GenerationParams, *, usage: bool
    ) -> Response:
        channel = await self._open(request, answer.model, prompt, params).__aenter__()
        try:
            await channel.wait_first()  # a prompt that doesn't fit is a 400, not an event
        except BaseException:
            await channel.__aexit__(None, None, None)
            raise
        return StreamingResponse(self._events(channel, answer, usage=usage), media_type="text/event-stream")

    async def _events(self, channel: PieceChannel, answer: Answer, *, usage: bool) -> AsyncIterator[bytes]:
        last = None
        try:
            if opening := answer.opening():
                yield opening
            async for piece in channel.pieces():
                last = piece
                if piece.text or piece.finish_reason:
                    yield answer.chunk(piece.text, piece.finish_reason)
            if last is not None:
                self._count(answer.model, last.prompt_tokens, last.completion_tokens)
                if usage:
                    yield answer.usage(last.prompt_tokens, last.completion_tokens)
            yield DONE
        except ClientDisconnect:
            self._service.metrics.add("sealift_cancelled_total", route="stream")
        except (ApiError, AdapterError) as error:
            yield event(to_api_error(error).body())
            yield DONE
        finally:
            await channel.__aexit__(None, None, None)

    def _open(self, request: Request, model: str, prompt: Prompt, params: GenerationParams) -> PieceChannel:
        worker = self._service.generation_worker(model)
        channel = PieceChannel(request)
        worker.submit(GenerationJob(prompt=prompt, params=params, send=channel.send, cancelled=channel.cancelled))
        return channel

    async def _body(self, request: Request) -> Mapping[str, object]:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > self._max_body:
                msg = f"the body is larger than {self._max_body} bytes"
                raise ApiError(msg, status=413, code="request_too_large")
        return parse_body(bytes(data))

    def _describe(self, name: str) -> dict[str, object]:
        found = next((asdict(info) for info in self._service.loaded() if info.name == name), None)
        details = {key: value for key, value in (found or {}).items() if key not in {"name", "directory"}}
        own = {"id": name, "object": "model", "created": 0, "owned_by": "sealift"}
        return {**own, "ready": found is not None, "sealift": details}

    def _count(self, model: str, prompt: int, completion: int = 0, *, truncated: int = 0) -> None:
        add = self._service.metrics.add
        add("sealift_prompt_tokens_total", prompt, model=model)
        add("sealift_completion_tokens_total", completion, model=model)
        add("sealift_truncated_inputs_total", truncated, model=model)


def to_api_error(error: ApiError | AdapterError) -> ApiError:
    """Return how a client is told: the request's fault 400, a full queue 429, anything else of a model 500."""
    if isinstance(error, ApiError):
        return error
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    if isinstance(error, BusyError):
        return ApiError(message, status=429, kind="rate_limit_error", code="queue_full")
    if isinstance(error, ContextTooLongError):
        return ApiError(message, param=error.param, code="context_length_exceeded")
    if isinstance(error, RequestError):
        return ApiError(message, param=error.param)
    return ApiError(message, status=500, kind="server_error", code="model_error")


def error_response(error: ApiError | AdapterError) -> Response:
    """Return an error as an answer."""
    told = to_api_error(error)
    headers = {"Retry-After": "1"} if told.status in {429, 503} else None
    return JSONResponse(told.body(), status_code=told.status, headers=headers)


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    text = f"{request.method} {request.url.path}: {error.detail if isinstance(error, HTTPException) else 'error'}"
    return error_response(ApiError(text, status=status, code="not_found" if status == 404 else None))


async def _bug(request: Request, error: Exception) -> Response:
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    told = ApiError("an error of the server; its log has the traceback", status=500, kind="server_error", code="bug")
    return error_response(told)
