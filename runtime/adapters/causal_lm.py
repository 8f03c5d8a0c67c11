"""The ``causal-lm`` and ``hcx`` adapters: any folder that transformers loads as a causal language model."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

from manifests.errors import AdapterError
from manifests.modelsettings import CausalLmSettings, check_sampling, parse_settings
from runtime.adapters.base import (
    DEFAULT_PARAMS,
    JSON,
    AdapterInfo,
    ContextTooLongError,
    Generation,
    GenerationError,
    GenerationParams,
    Message,
    ModelConfig,
    Piece,
    PieceStream,
    Prompt,
    RequestError,
)
from runtime.adapters.decoding import Sampler, collect_stop_ids
from runtime.adapters.engine import DecodeEngine, DecodeHandle, Row
from runtime.adapters.folder import architecture, open_folder
from runtime.adapters.prompts import FittedContexts, fit_contexts, rag_question
from runtime.adapters.reading import AnswerReader, Vocabulary
from runtime.adapters.reasoning import ReasoningSplitter, find_markers, find_style
from runtime.adapters.rows import CachedNetwork
from runtime.adapters.templating import EncodedPrompt, PromptEncoder, load_tokenizer
from runtime.adapters.weights import LoadedGenerator, load_generator

if TYPE_CHECKING:
    from runtime.adapters.langchain_llm import SealiftChatModel, SealiftLLM

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RagAnswer:
    """An answer, and the contexts it was made from: ``contexts.report()`` says what was cut."""

    generation: Generation
    contexts: FittedContexts


class CausalLmAdapter:
    """A causal language model: conversations through its chat template, texts as they are.

    Several threads may call it; their answers are decoded together (:mod:`runtime.adapters.engine`).

    Args:
        model_path: The folder.
        device: auto (cuda, then mps, then cpu), cpu, cuda, cuda:N or mps.
        max_length: Context in tokens, prompt and answer together; None takes the model's own.
        temperature: 0 is greedy.
        top_p: The share of probability that sampling draws from.
        settings: Any other setting by its name in a settings file.

    Raises:
        AdapterError: No such folder, an unknown setting, or a folder that can't be loaded.
    """

    adapter_name = "causal-lm"

    def __init__(
        self,
        model_path: str | Path,
        device: str = "auto",
        max_length: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        **settings: JSON,
    ) -> None:
        path = Path(model_path)
        named: dict[str, JSON] = {"device": device, "max_length": max_length, "temperature": temperature}
        given = {**named, "top_p": top_p, **settings}
        self._load(ModelConfig(name=path.name, adapter=self.adapter_name, directory=path, settings=given))

    @classmethod
    def from_config(cls, config: ModelConfig) -> "CausalLmAdapter":
        """Load a model; what :func:`runtime.adapters.load_adapter` calls.

        Raises:
            AdapterError: As the constructor.
        """
        adapter = cls.__new__(cls)
        adapter._load(config)  # noqa: SLF001 - its own class
        return adapter

    def _load(self, config: ModelConfig) -> None:
        self._name = config.name
        self._settings = settings = parse_settings(config, CausalLmSettings)
        directory, document = open_folder(config)
        tokenizer = load_tokenizer(directory, model=config.name)
        loaded = load_generator(directory, settings, model=config.name)
        self._encoder = PromptEncoder(
            tokenizer,
            model=config.name,
            system_prompt=settings.system_prompt,
            template_kwargs=settings.chat_template_kwargs,
        )
        added = tokenizer.get_added_vocab()
        self._style = find_style(self._encoder.template, added)
        stop_ids = collect_stop_ids(tokenizer, loaded.network.config, loaded.network.generation_config)
        self._vocabulary = Vocabulary(tokenizer=tokenizer, stop_ids=stop_ids, markers=find_markers(self._style, added))
        self._network = loaded.network
        self._engine = self._make_engine(loaded)
        self._info = AdapterInfo(
            name=config.name,
            adapter=config.adapter,
            kind="generator",
            architecture=architecture(document),
            directory=str(directory),
            device=str(loaded.device),
            dtype=loaded.dtype,
            limit=loaded.limit,
            features=("chat", "completion", "stream", *(("reasoning",) if self._style else ())),
            notes=(*loaded.notes, *self._own_notes()),
        )

    def _make_engine(self, loaded: LoadedGenerator) -> DecodeEngine:
        settings = self._settings
        default = 16384 if loaded.device.type == "cpu" else 131072
        return DecodeEngine(
            CachedNetwork(loaded.network, loaded.device),
            self._prepare,
            model=self._name,
            max_rows=settings.max_batch_size if settings.enable_batching else 1,
            max_tokens=settings.max_batch_tokens or default,
        )

    def _own_notes(self) -> tuple[str, ...]:
        template = "chat template: " + ("the folder's own" if self._encoder.template else "none, plain Korean prompt")
        marks = {"tags": "<think> tags", "hcx": "HyperCLOVA X's assistant/think turns"}
        reasoning = (f"reasoning: told apart by {marks[self._style]}",) if self._style else ()
        rows = self._engine.max_rows
        batching = f"batching: up to {rows} answers at once" if rows > 1 else "batching: off, one answer at a time"
        return (template, *reasoning, batching)

    @property
    def info(self) -> AdapterInfo:
        """What was loaded."""
        return self._info

    @property
    def engine(self) -> DecodeEngine:
        """The engine that decodes; whoever drives it moves every caller's answer on."""
        return self._engine

    @property
    def stop_ids(self) -> frozenset[int]:
        """The token ids that end an answer."""
        return self._vocabulary.stop_ids

    def generate(self, prompt: Prompt, params: GenerationParams = DEFAULT_PARAMS) -> Generation:
        """Return the whole answer; the text is that of :meth:`stream`.

        Raises:
            ContextTooLongError: Prompt and answer don't fit.
            RequestError: A parameter is out of range, or the template refuses the conversation.
            GenerationError: Out of memory, or the scores aren't numbers.
        """
        return _join(list(self.stream(prompt, params)))

    def generate_batch(
        self, prompts: Sequence[Prompt], params: GenerationParams | Sequence[GenerationParams] = DEFAULT_PARAMS
    ) -> list[Generation]:
        """Return the answers in order, decoded together; each is what :meth:`generate` gives alone.

        Args:
            prompts: Any number; as many as the settings allow run at once.
            params: One for all, or one for each.

        Raises:
            ValueError: Not as many params as prompts.
            AdapterError: As :meth:`generate`, of the first prompt at fault; then there are no answers.
        """
        each = [params] * len(prompts) if isinstance(params, GenerationParams) else list(params)
        handles: list[DecodeHandle] = []
        try:
            handles += [self._engine.add(*pair) for pair in zip(prompts, each, strict=True)]
            return [_join(list(self._pieces(handle))) for handle in handles]
        finally:
            for handle in handles:
                self._engine.cancel(handle)

    def stream(self, prompt: Prompt, params: GenerationParams = DEFAULT_PARAMS) -> PieceStream:
        """Yield the answer piece by piece; the last piece has the finish reason. Closing the iterator ends the work.

        Raises:
            AdapterError: As :meth:`generate`.
        """
        handle = self._engine.add(prompt, params)
        try:
            yield from self._pieces(handle)
        finally:
            self._engine.cancel(handle)

    def _pieces(self, handle: DecodeHandle) -> PieceStream:
        ended = False
        while not ended:
            self._engine.step_for(handle)
            ended = handle.done  # before the pieces are taken: a last one may come between
            yield from handle.take()
        if handle.error is not None:
            raise handle.error

    def answer(self, question: str, contexts: Sequence[str], params: GenerationParams = DEFAULT_PARAMS) -> Generation:
        """Answer from contexts, best first; as :meth:`answer_from`, without the report.

        Raises:
            ContextTooLongError: The question alone doesn't fit.
        """
        return self.answer_from(question, contexts, params).generation

    def answer_from(
        self, question: str, contexts: Sequence[str], params: GenerationParams = DEFAULT_PARAMS
    ) -> RagAnswer:
        """Answer from contexts, best first; those that don't fit are cut from the end, reported and logged.

        Raises:
            ContextTooLongError: The question alone doesn't fit.
        """
        fitted = self.fit(question, contexts, params)
        if fitted.shortened or fitted.dropped:
            _LOG.warning("model %s: %s", self._name, fitted.report())
        return RagAnswer(generation=self.generate(_rag_messages(question, fitted.texts), params), contexts=fitted)

    def fit(self, question: str, contexts: Sequence[str], params: GenerationParams = DEFAULT_PARAMS) -> FittedContexts:
        """Return the contexts that fit beside the question and the answer.

        The answer gets the tokens that ``params`` ask for, else those of the settings but at most half of the context.
        """
        limit, own = self._info.limit, self._settings.max_new_tokens
        budget = limit - (params.max_new_tokens or min(own, limit // 2))

        def measure(texts: Sequence[str]) -> int:
            return len(self._encoder.encode(_rag_messages(question, texts), params.chat_template_kwargs).ids)

        return fit_contexts(contexts, budget=budget, measure=measure, cut=self._encoder.first_tokens)

    def generate_answer(self, question: str, contexts: Sequence[str]) -> str:
        """Return the answer's text, stripped and without reasoning: RAGTrace's ``AnswerGeneratorPort``.

        Raises:
            AdapterError: As :meth:`generate`, or the answer's room was used up by reasoning; an error is never an
                answer.
        """
        result = self.answer(question, list(contexts))
        if result.finish_reason == "length" and result.reasoning and not result.text.strip():
            msg = f"model {self._name!r}: the {result.completion_tokens} tokens for the answer were all reasoning"
            raise GenerationError(msg, hint="raise max_new_tokens, or set chat_template_kwargs: {skip_reasoning: true}")
        return result.text.strip()

    def get_llm(self) -> "SealiftLLM":
        """Return a LangChain LLM over this adapter, as ragas and RAGTrace take it.

        Raises:
            AdapterError: langchain-core isn't installed.
        """
        llm: SealiftLLM = _langchain(self._name).SealiftLLM(adapter=self)
        return llm

    def get_chat_model(self) -> "SealiftChatModel":
        """Return a LangChain chat model over this adapter.

        Raises:
            AdapterError: langchain-core isn't installed.
        """
        chat: SealiftChatModel = _langchain(self._name).SealiftChatModel(adapter=self)
        return chat

    def get_model_info(self) -> dict[str, object]:
        """Return what was loaded as a plain dict; ``notes`` are the choices made, each with its reason."""
        settings = self._settings
        own = {"model_name": self._name, "model_path": self._info.directory, "max_length": self._info.limit}
        names = ("temperature", "top_p", "repetition_penalty", "seed", "max_new_tokens")
        sampling = {name: getattr(settings, name) for name in names}
        template = "chat template" if self._encoder.template else "plain Korean prompt"
        more = {"stop_ids": sorted(self.stop_ids), "prompt": template, "max_batch_size": self._engine.max_rows}
        return {**dataclasses.asdict(self._info), **own, **sampling, **more}

    @property
    def default_seed(self) -> int | None:
        """The settings' seed."""
        return self._settings.seed

    def token_ids(self, text: str) -> list[int]:
        """Return a text's token ids, without special tokens around it."""
        return self._encoder.ids(text, special=False)

    def _prepare(self, prompt: Prompt, params: GenerationParams) -> Row:
        encoded = self._encoder.encode(prompt, params.chat_template_kwargs)
        return Row(
            ids=list(encoded.ids),
            sampler=self._make_sampler(params),
            reader=self._make_reader(encoded, params),
            room=self._answer_room(len(encoded.ids), params),
            handle=DecodeHandle(prompt_tokens=len(encoded.ids)),
        )

    def _make_reader(self, encoded: EncodedPrompt, params: GenerationParams) -> AnswerReader:
        thinks = self._style if encoded.templated else None
        splitter = ReasoningSplitter(thinks, encoded.text) if thinks else None
        return AnswerReader(self._vocabulary, stop=(*self._settings.stop, *params.stop), splitter=splitter)

    def _answer_room(self, prompt_tokens: int, params: GenerationParams) -> int:
        if params.max_new_tokens is not None and params.max_new_tokens < 1:
            raise RequestError(f"max_tokens: expected at least 1, got {params.max_new_tokens}", param="max_tokens")
        room, limit = self._info.limit - prompt_tokens, self._info.limit
        needed = params.max_new_tokens or 1
        if room < needed:
            msg = f"prompt of {prompt_tokens} tokens and answer of {needed} don't fit into the context of {limit}"
            raise ContextTooLongError(msg, param="messages", hint="shorten the prompt or ask for fewer tokens")
        return min(room, params.max_new_tokens or self._settings.max_new_tokens)

    def _make_sampler(self, params: GenerationParams) -> Sampler:
        own = self._settings
        temperature = own.temperature if params.temperature is None else params.temperature
        top_p = own.top_p if params.top_p is None else params.top_p
        penalty = own.repetition_penalty if params.repetition_penalty is None else params.repetition_penalty
        seed = own.seed if params.seed is None else params.seed
        try:
            check_sampling(temperature, top_p, penalty)
        except ValueError as error:
            raise RequestError(str(error), param=str(error).partition(":")[0]) from None
        return Sampler(temperature=temperature, top_p=top_p, repetition_penalty=penalty, seed=seed)


class HcxAdapter(CausalLmAdapter):
    """HyperCLOVA X, in whichever layout its files come: Llama-shaped (SEED 0.5B, 1.5B) or native ``hyperclovax``."""

    adapter_name = "hcx"


HCXOfflineAdapter = HcxAdapter
"""The name that the guide gives it."""


def _langchain(model: str) -> ModuleType:
    try:
        return import_module("runtime.adapters.langchain_llm")
    except ImportError as error:
        msg = f"model {model!r}: a LangChain model needs {error.name or error}, which isn't installed here"
        raise AdapterError(msg, hint="add langchain-core to the spec's requirements") from error


def _join(pieces: Sequence[Piece]) -> Generation:
    last = pieces[-1] if pieces else None
    if last is None or last.finish_reason is None:
        raise AssertionError("a stream ends with a finish reason")
    return Generation(
        text="".join(piece.text for piece in pieces),
        finish_reason=last.finish_reason,
        prompt_tokens=last.prompt_tokens,
        completion_tokens=last.completion_tokens,
        reasoning="".join(piece.reasoning for piece in pieces),
    )


def _rag_messages(question: str, contexts: Sequence[str]) -> list[Message]:
    return [Message(role="user", content=rag_question(question, contexts))]
