"""OpenAI-shaped request bodies, parsed once; whatever would have no effect is refused by name."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn, cast

from manifests.fields import nearest_hint, type_name
from runtime.adapters.base import JSON, EmbeddingInput, GenerationParams, Message, Prompt

MAX_INPUTS: Final = 2048
MAX_COLBERT_INPUTS: Final = 64
"""A vector per token makes answers of some 40 MB for each 1,000 tokens of BGE-M3's size, so fewer texts at once."""
MAX_PROMPTS: Final = 64
MAX_ANSWERS: Final = 16
MAX_STOPS: Final = 16
_NEUTRAL: Final[Mapping[str, Collection[object]]] = {
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "service_tier": ("auto", "default"),
}
"""Parameters without support and the values that ask for what happens anyway."""
_REASONS: Final[Mapping[str, str]] = {
    "dimensions": "the model's vectors have one length; cutting them would change what they mean",
    "tools": "tool calls are not supported",
    "functions": "function calls are not supported",
    "logit_bias": "token scores can't be changed",
    "top_logprobs": "token scores are not returned",
    "frequency_penalty": "not supported; repetition_penalty is",
    "presence_penalty": "not supported; repetition_penalty is",
    "suffix": "text is only continued, not filled in",
    "best_of": "every answer that is made is returned; n asks for several",
    "parallel_tool_calls": "tool calls are not supported",
    "reasoning_effort": "not supported; chat_template_kwargs passes what the model's own template knows",
    "top_k": "not supported; top_p and temperature are",
}
_ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_SAMPLING: Final = (
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "repetition_penalty",
    "stream",
    "stream_options",
    "n",
)
_CALLER: Final = ("user", "safety_identifier")
"""Who asks: told by some clients, of no consequence here, and never logged."""


class ApiError(Exception):
    """An error in the OpenAI API's shape, with its HTTP status."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code

    def body(self) -> dict[str, object]:
        """Return the JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingsRequest:
    """``POST /v1/embeddings``."""

    model: str
    inputs: tuple[EmbeddingInput, ...]
    base64: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiRequest:
    """``POST /v1/embeddings/multi``; the flags have the names of BGE-M3's own interface."""

    model: str
    inputs: tuple[EmbeddingInput, ...]
    dense: bool
    sparse: bool
    colbert: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """``POST /v1/chat/completions`` (one prompt, a conversation) or ``/v1/completions`` (texts).

    ``answers`` is how many are made for each prompt (``n``).
    """

    model: str
    prompts: tuple[Prompt, ...]
    params: GenerationParams
    stream: bool
    include_usage: bool
    answers: int = 1

    def rows(self) -> list[tuple[Prompt, GenerationParams]]:
        """Return one prompt with its parameters for each choice; the i-th answer to a prompt has ``seed`` + i."""
        seed = self.params.seed
        each = [self.params if seed is None else replace(self.params, seed=seed + i) for i in range(self.answers)]
        return [(prompt, params) for prompt in self.prompts for params in each]


def parse_body(data: bytes) -> Mapping[str, object]:
    """Return the JSON object in a request's body.

    Raises:
        ApiError: Not JSON, or not an object.
    """
    try:
        document = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(document, dict):
        raise ApiError(f"the body is {type_name(document)}, expected an object", code="invalid_json")
    return document


def parse_embeddings(document: Mapping[str, object]) -> EmbeddingsRequest:
    """Parse a request for dense vectors.

    Raises:
        ApiError: A parameter is missing, wrong, or would have no effect.
    """
    body = _Body(document, ("model", "input", "encoding_format", *_CALLER))
    how = body.get("encoding_format", "float")
    if how not in {"float", "base64"}:
        body.fail("encoding_format", f"expected 'float' or 'base64', got {how!r}")
    return EmbeddingsRequest(model=body.text("model"), inputs=_parse_inputs(body), base64=how == "base64")


def parse_multi(document: Mapping[str, object]) -> MultiRequest:
    """Parse a request for dense, lexical and ColBERT vectors.

    Raises:
        ApiError: As :func:`parse_embeddings`.
    """
    body = _Body(document, ("model", "input", "return_dense", "return_sparse", "return_colbert_vecs", *_CALLER))
    asked = MultiRequest(
        model=body.text("model"),
        inputs=_parse_inputs(body),
        dense=body.flag("return_dense", default=True),
        sparse=body.flag("return_sparse", default=False),
        colbert=body.flag("return_colbert_vecs", default=False),
    )
    if not (asked.dense or asked.sparse or asked.colbert):
        body.fail("return_dense", "nothing is asked for: set one of return_dense, return_sparse, return_colbert_vecs")
    if asked.colbert and len(asked.inputs) > MAX_COLBERT_INPUTS:
        body.fail("input", f"{len(asked.inputs)} inputs, at most {MAX_COLBERT_INPUTS} with return_colbert_vecs")
    return asked


def parse_chat(document: Mapping[str, object]) -> GenerationRequest:
    """Parse a request for the next turn of a conversation.

    Raises:
        ApiError: As :func:`parse_embeddings`.
    """
    own = ("model", "messages", "max_completion_tokens", "response_format", "chat_template_kwargs")
    body = _Body(document, (*own, *_CALLER, *_SAMPLING))
    if body.get("response_format", {"type": "text"}) != {"type": "text"}:
        body.fail("response_format", "only {'type': 'text'} is supported", code="unsupported_parameter")
    items = body.get("messages")
    if not isinstance(items, list) or not items:
        body.fail("messages", "expected a list with at least one message")
    messages = tuple(_parse_message(item, f"messages[{index}]") for index, item in enumerate(items))
    return _generation(body, (messages,), _parse_params(body, "max_completion_tokens"))


def parse_completion(document: Mapping[str, object]) -> GenerationRequest:
    """Parse a request to continue texts.

    Raises:
        ApiError: As :func:`parse_embeddings`.
    """
    body = _Body(document, ("model", "prompt", *_CALLER, *_SAMPLING))
    prompt = body.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(item, str) for item in prompts):
        body.fail("prompt", "expected a string or a list of strings")
    if len(prompts) > MAX_PROMPTS:
        body.fail("prompt", f"{len(prompts)} prompts, at most {MAX_PROMPTS} in one request")
    return _generation(body, tuple(prompts), _parse_params(body, "max_tokens"))


def _generation(body: "_Body", prompts: tuple[Prompt, ...], params: GenerationParams) -> GenerationRequest:
    answers = body.integer("n", least=1) or 1
    if answers * len(prompts) > MAX_PROMPTS or answers > MAX_ANSWERS:
        body.fail("n", f"{answers} answers to {len(prompts)} prompts, at most {MAX_ANSWERS} and {MAX_PROMPTS} in all")
    return GenerationRequest(
        model=body.text("model"),
        prompts=prompts,
        params=params,
        stream=body.flag("stream", default=False),
        include_usage=_include_usage(body),
        answers=answers,
    )


class _Body:
    """A request body read parameter by parameter; null is the same as missing, as in OpenAI's own clients."""

    def __init__(self, document: Mapping[str, object], known: Sequence[str]) -> None:
        self._given = {key: value for key, value in document.items() if value is not None}
        for key, value in self._given.items():
            if key not in known and not _is_neutral(key, value):
                reason = _REASONS.get(key) or f"unknown or not supported here; {nearest_hint(key, known)}"
                self.fail(key, reason, code="unsupported_parameter")

    def fail(self, key: str, reason: str, *, code: str | None = None) -> NoReturn:
        raise ApiError(f"{key}: {reason}", param=key, code=code)

    def get(self, key: str, default: object = None) -> Any:  # noqa: ANN401 - JSON, checked by whoever asks
        return self._given.get(key, default)

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not value:
            self.fail(key, f"expected a string, got {type_name(value)}", code="missing" if value is None else None)
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            self.fail(key, f"expected a boolean, got {type_name(value)}")
        return value

    def integer(self, key: str, *, least: int) -> int | None:
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
            self.fail(key, f"expected an integer of at least {least}, got {value!r:.40}")
        return value

    def number(self, key: str, *, low: float, high: float, above: bool = False) -> float | None:
        value = self.get(key)
        if value is None:
            return None
        right = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        if not right or (above and value == low):
            self.fail(key, f"expected a number {'above' if above else 'from'} {low:g} to {high:g}, got {value!r:.40}")
        return float(value)


def _is_neutral(key: str, value: object) -> bool:
    if key in {"tools", "functions", "logit_bias", "modalities", "metadata"}:
        return value in ([], {}, ["text"])
    return any(value == neutral and type(value) in {type(neutral), float} for neutral in _NEUTRAL.get(key, ()))


def _parse_inputs(body: _Body) -> tuple[EmbeddingInput, ...]:
    value = body.get("input")
    items = [value] if isinstance(value, str) or _is_tokens(value) else value
    if not isinstance(items, list) or not items:
        body.fail("input", "expected a string, a list of strings, or token lists")
    if len(items) > MAX_INPUTS:
        body.fail("input", f"{len(items)} inputs, at most {MAX_INPUTS} in one request")
    for index, item in enumerate(items):
        if not isinstance(item, str) and not _is_tokens(item):
            body.fail(f"input[{index}]", f"expected a string or a list of token ids, got {type_name(item)}")
    return tuple(cast("list[EmbeddingInput]", items))


def _is_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _parse_message(item: object, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise ApiError(f"{where}: expected an object, got {type_name(item)}", param=where)
    role = item.get("role")
    if role not in _ROLES:
        raise ApiError(f"{where}.role: expected one of {', '.join(_ROLES)}, got {role!r:.40}", param=f"{where}.role")
    extra = next((key for key, value in item.items() if key not in {"role", "content"} and value), None)
    if extra is not None:
        raise ApiError(f"{where}.{extra}: not supported", param=f"{where}.{extra}", code="unsupported_parameter")
    return Message(role=_ROLES[role], content=_parse_content(item.get("content"), f"{where}.content"))


def _parse_content(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(f"{where}: expected a string or a list of text parts, got {type_name(content)}", param=where)
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ApiError(f"{where}: only parts of type 'text' are supported", param=where)
    return "".join(part["text"] for part in content)


def _parse_params(body: _Body, limit_key: str) -> GenerationParams:
    tokens = body.integer(limit_key, least=1)
    if limit_key != "max_tokens":
        older = body.integer("max_tokens", least=1)
        if tokens is not None and older is not None and tokens != older:
            body.fail("max_tokens", f"{older} contradicts {limit_key} {tokens}")
        tokens = older if tokens is None else tokens
    return GenerationParams(
        max_new_tokens=tokens,
        temperature=body.number("temperature", low=0, high=2),
        top_p=body.number("top_p", low=0, high=1, above=True),
        repetition_penalty=body.number("repetition_penalty", low=0, high=100, above=True),
        seed=body.integer("seed", least=0),
        stop=_parse_stop(body),
        chat_template_kwargs=_parse_template_kwargs(body),
    )


def _parse_template_kwargs(body: _Body) -> Mapping[str, JSON]:
    value = body.get("chat_template_kwargs", {})
    if not isinstance(value, dict):
        body.fail("chat_template_kwargs", f"expected an object, got {type_name(value)}")
    return cast("dict[str, JSON]", value)


def _parse_stop(body: _Body) -> tuple[str, ...]:
    value = body.get("stop", [])
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) and item for item in items):
        body.fail("stop", "expected a non-empty string or a list of them")
    if len(items) > MAX_STOPS:
        body.fail("stop", f"{len(items)} strings, at most {MAX_STOPS}")
    return tuple(items)


def _include_usage(body: _Body) -> bool:
    options = body.get("stream_options", {})
    if not isinstance(options, dict) or not set(options) <= {"include_usage", "include_obfuscation"}:
        body.fail("stream_options", "expected {'include_usage': true or false}")
    if options.get("include_obfuscation"):
        body.fail("stream_options", "include_obfuscation is not supported")
    if options and not body.flag("stream", default=False):
        body.fail("stream_options", "only with stream: true")
    return options.get("include_usage") is True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
