"""What an adapter is: the two protocols, what they take and give back, and their errors. No torch in here."""

import collections.abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from manifests import modelsettings
from manifests.errors import AdapterError

JSON: TypeAlias = modelsettings.JSON
Vectors: TypeAlias = NDArray[np.float32]
EmbeddingInput: TypeAlias = str | Sequence[int]
"""A text, or the token ids of one as this model's own tokenizer gives them, special tokens included."""


class RequestError(AdapterError):
    """One request can't be answered as it stands; the model is fine. ``param`` names what is wrong in it."""

    def __init__(self, message: str, *, param: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.param = param


class ContextTooLongError(RequestError):
    """The prompt and the answer asked for don't fit into the model's context."""


class GenerationError(AdapterError):
    """The model failed while it was answering: out of memory, numbers that aren't finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One model to load: its id in the API, its adapter's name, its folder, and its settings as they were written."""

    name: str
    adapter: str
    directory: Path
    settings: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInfo:
    """What was loaded and what was decided about it.

    ``notes`` are sentences for a person: why this device and dtype, which template, what a setting could not do here.
    ``limit`` is the longest input in tokens (an embedder) or the context, prompt and answer together (a generator).
    """

    name: str
    adapter: str
    kind: Literal["embedder", "generator"]
    architecture: str
    directory: str
    device: str
    dtype: str
    limit: int
    dimension: int | None = None
    features: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """Dense vectors in the order of the inputs.

    Attributes:
        vectors: float32, shape (inputs, dimension).
        token_counts: Tokens that went through the model, special ones included, one number per input.
        truncated: One flag per input: whether it was longer than the model's limit and was cut.
    """

    vectors: Vectors
    token_counts: tuple[int, ...]
    truncated: tuple[bool, ...]

    @property
    def truncated_count(self) -> int:
        """How many inputs were cut."""
        return sum(self.truncated)


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiEmbeddings:
    """What one forward pass of BGE-M3 gives, in the order of the inputs; what wasn't asked for is None.

    Attributes:
        dense: float32, shape (inputs, dimension).
        sparse: Per input, token id -> lexical weight above 0.
        colbert: Per input, float32 of shape (tokens - 1, dimension): every token but the first.
        token_counts: As in :class:`Embeddings`.
        truncated: As in :class:`Embeddings`.
    """

    dense: Vectors | None
    sparse: tuple[Mapping[int, float], ...] | None
    colbert: tuple[Vectors, ...] | None
    token_counts: tuple[int, ...]
    truncated: tuple[bool, ...]

    @property
    def truncated_count(self) -> int:
        """How many inputs were cut."""
        return sum(self.truncated)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


Prompt: TypeAlias = str | Sequence[Message]
"""A text to continue as it is, or a conversation to be put through the model's chat template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParams:
    """How to answer; None takes the model's setting.

    ``temperature`` 0 is greedy. ``stop`` strings end the answer and aren't part of it; they add to the settings' own.
    ``chat_template_kwargs`` go to the chat template, over those of the settings; a text has none and refuses them.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    chat_template_kwargs: Mapping[str, JSON] = field(default_factory=dict)


DEFAULT_PARAMS: Final = GenerationParams()
FinishReason: TypeAlias = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A whole answer; tokens are counted after templating, and the one that ends the answer counts too.

    ``reasoning`` is what the model thought before it answered, where its template marks that; ``text`` is without it.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    reasoning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of an answer while it is made; the last one carries the finish reason and may have no text.

    ``reasoning`` is a part of what the model thinks before it answers; such a piece has no text yet.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: FinishReason | None = None
    reasoning: str = ""


PieceStream: TypeAlias = collections.abc.Generator[Piece, None, None]
"""Pieces of one answer; ``close()`` ends the work."""


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into dense vectors. One thread at a time may call it."""

    @property
    def info(self) -> AdapterInfo:
        """What was loaded."""

    @property
    def dimension(self) -> int:
        """The length of a vector."""

    def embed(self, texts: Sequence[EmbeddingInput]) -> Embeddings:
        """Return one vector per input, in order.

        Raises:
            RequestError: An input isn't valid Unicode, is no token of this model, or is an empty token list.
            AdapterError: The model failed.
        """


@runtime_checkable
class MultiEmbedder(Embedder, Protocol):
    """An embedder that also gives lexical weights and one vector per token."""

    def embed_multi(
        self, texts: Sequence[EmbeddingInput], *, dense: bool = True, sparse: bool = False, colbert: bool = False
    ) -> MultiEmbeddings:
        """Return what was asked for, from one forward pass.

        Raises:
            RequestError: As :meth:`Embedder.embed`, or this model was loaded without what is asked for.
        """


@runtime_checkable
class Generator(Protocol):
    """Continues texts and conversations. One thread at a time may call it."""

    @property
    def info(self) -> AdapterInfo:
        """What was loaded."""

    def generate(self, prompt: Prompt, params: GenerationParams = DEFAULT_PARAMS) -> Generation:
        """Return the whole answer.

        Raises:
            ContextTooLongError: Prompt and answer don't fit.
            RequestError: A parameter is out of range, or the template refuses the conversation.
            GenerationError: The model failed.
        """

    def stream(self, prompt: Prompt, params: GenerationParams = DEFAULT_PARAMS) -> PieceStream:
        """Yield the same answer piece by piece; closing the iterator ends the work.

        Raises:
            AdapterError: As :meth:`generate`, at the first ``next`` where the prompt is at fault.
        """


Adapter: TypeAlias = Embedder | Generator
