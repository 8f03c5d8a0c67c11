"""Answers in the OpenAI API's shape."""

import base64
import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from runtime.adapters.base import Embeddings, FinishReason, Generation, MultiEmbeddings, Piece, Vectors
from runtime.server.requests import EmbeddingsRequest

Kind = Literal["chat.completion", "text_completion"]


def embeddings_reply(request: EmbeddingsRequest, result: Embeddings) -> dict[str, object]:
    """Return the body for dense vectors; ``truncated`` beside OpenAI's fields says how many inputs were cut."""
    encode = _encode_base64 if request.base64 else _encode_floats
    data = [
        {"object": "embedding", "index": index, "embedding": encode(vector)}
        for index, vector in enumerate(result.vectors)
    ]
    usage = _embedding_usage(result.token_counts)
    return {
        "object": "list",
        "data": data,
        "model": request.model,
        "usage": usage,
        "truncated": result.truncated_count,
    }


def multi_reply(model: str, result: MultiEmbeddings) -> dict[str, object]:
    """Return the body for dense, lexical and ColBERT vectors; only what was asked for is in it."""
    data: list[dict[str, object]] = [
        {"object": "embedding", "index": index} for index in range(len(result.token_counts))
    ]
    for index, item in enumerate(data):
        if result.dense is not None:
            item["dense"] = result.dense[index].tolist()
        if result.sparse is not None:
            item["sparse"] = {str(token): weight for token, weight in result.sparse[index].items()}
        if result.colbert is not None:
            item["colbert"] = result.colbert[index].tolist()
    usage = _embedding_usage(result.token_counts)
    return {"object": "list", "data": data, "model": model, "usage": usage, "truncated": result.truncated_count}


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Return OpenAI's usage object."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The frame of one answer: its id and time stay the same over all chunks."""

    id: str
    kind: Kind
    model: str
    created: int

    @classmethod
    def begin(cls, kind: Kind, model: str) -> "Answer":
        """Return a fresh frame."""
        prefix = "chatcmpl" if kind == "chat.completion" else "cmpl"
        return cls(id=f"{prefix}-{uuid.uuid4().hex}", kind=kind, model=model, created=int(time.time()))

    def whole(self, results: Sequence[Generation], *, per_prompt: int = 1) -> dict[str, object]:
        """Return the body of an answer that isn't streamed; a prompt with several answers counts once."""
        read = sum(item.prompt_tokens for item in results[::per_prompt])
        usage = usage_of(read, sum(item.completion_tokens for item in results))
        choices = [self._choice(index, item) for index, item in enumerate(results)]
        return {**self._frame(self.kind), "choices": choices, "usage": usage}

    def opening(self, index: int = 0) -> bytes:
        """Return the first event of a streamed choice: the role in a chat, nothing in a completion."""
        is_chat = self.kind == "chat.completion"
        return self._chunk(index, {"role": "assistant", "content": ""}, None) if is_chat else b""

    def chunk(self, piece: Piece, index: int = 0) -> bytes:
        """Return the event of one piece."""
        if self.kind == "text_completion":
            text = piece.reasoning + piece.text
            choice = {"index": index, "text": text, "finish_reason": piece.finish_reason, "logprobs": None}
            return event({**self._frame("text_completion"), "choices": [choice]})
        parts = {"reasoning_content": piece.reasoning, "content": piece.text}
        return self._chunk(index, {name: text for name, text in parts.items() if text}, piece.finish_reason)

    def usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        """Return the event with the token counts, without choices, as ``include_usage`` asks for."""
        name = "chat.completion.chunk" if self.kind == "chat.completion" else "text_completion"
        return event({**self._frame(name), "choices": [], "usage": usage_of(prompt_tokens, completion_tokens)})

    def _choice(self, index: int, result: Generation) -> dict[str, object]:
        common = {"index": index, "finish_reason": result.finish_reason, "logprobs": None}
        if self.kind == "text_completion":
            return {**common, "text": result.reasoning + result.text}
        thought = {"reasoning_content": result.reasoning} if result.reasoning else {}
        return {**common, "message": {"role": "assistant", "content": result.text, "refusal": None, **thought}}

    def _chunk(self, index: int, delta: dict[str, str], reason: FinishReason | None) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
        return event({**self._frame("chat.completion.chunk"), "choices": [choice]})

    def _frame(self, name: str) -> dict[str, object]:
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}


DONE = b"data: [DONE]\n\n"


def event(document: dict[str, object]) -> bytes:
    """Return one server-sent event."""
    return b"data: " + json.dumps(document, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"


def _embedding_usage(counts: Sequence[int]) -> dict[str, int]:
    return {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}


def _encode_floats(vector: Vectors) -> object:
    return vector.tolist()


def _encode_base64(vector: Vectors) -> object:
    return base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode("ascii")
