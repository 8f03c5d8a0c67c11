"""From an error to the answer that a client gets: OpenAI's shape, and a status that its client library understands."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from manifests.errors import AdapterError
from runtime.adapters.base import ContextTooLongError, RequestError
from runtime.server.channel import RequestTimeout
from runtime.server.requests import ApiError
from runtime.server.workers import BusyError, ClosedError

_LOG: Final = logging.getLogger(__name__)


def to_api_error(error: ApiError | AdapterError | RequestTimeout) -> ApiError:
    """Return how a client is told: the request's fault 400, a full queue 429, anything else of a model 500."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestTimeout):
        msg = "the answer took longer than this server allows; ask for fewer tokens or inputs at once"
        return ApiError(msg, status=504, kind="server_error", code="timeout")
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    if isinstance(error, RequestError):
        code = "context_length_exceeded" if isinstance(error, ContextTooLongError) else None
        return ApiError(message, param=error.param, code=code)
    if isinstance(error, BusyError):
        return ApiError(message, status=429, kind="rate_limit_error", code="queue_full")
    if isinstance(error, ClosedError):
        return ApiError(message, status=503, kind="server_error", code="not_ready")
    return ApiError(message, status=500, kind="server_error", code="model_error")


def error_response(error: ApiError | AdapterError | RequestTimeout) -> Response:
    """Return an error as an answer."""
    told = to_api_error(error)
    headers = {"Retry-After": "1"} if told.status in {429, 503} else None
    return JSONResponse(told.body(), status_code=told.status, headers=headers)


def failed(request: Request, error: Exception) -> Response:
    """Return the answer to a request that raised; what we didn't foresee goes into the log with its traceback."""
    if isinstance(error, TimeoutError):
        return error_response(RequestTimeout())
    if isinstance(error, ApiError | AdapterError | RequestTimeout):
        return error_response(error)
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    told = ApiError("an error of the server; its log has the traceback", status=500, kind="server_error", code="bug")
    return error_response(told)


def refuse_key() -> Response:
    """Return the answer to a request without a key; a browser asks for one, as the password of any user."""
    error = ApiError("this server wants an API key: Authorization: Bearer KEY", status=401, code="invalid_api_key")
    headers = {"WWW-Authenticate": 'Basic realm="sealift, the key is the password"'}
    return JSONResponse(error.body(), status_code=401, headers=headers)


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    text = f"{request.method} {request.url.path}: {error.detail if isinstance(error, HTTPException) else 'error'}"
    return error_response(ApiError(text, status=status, code="not_found" if status == 404 else None))


async def _bug(request: Request, error: Exception) -> Response:
    return failed(request, error)


FAILURES: Final[Mapping[Any, Callable[[Request, Exception], Any]]] = {HTTPException: _http_error, Exception: _bug}
"""For routes that don't exist, methods they don't have, and bugs."""
