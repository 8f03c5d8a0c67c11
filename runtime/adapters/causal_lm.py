"""The ``causal-lm`` and ``hcx`` adapters: any folder that transformers loads as a causal language model."""

import dataclasses
import importlib.util
import inspect
import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NoReturn

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from manifests.errors import AdapterError
from runtime.adapters.base import (
    DEFAULT_PARAMS,
    JSON,
    AdapterInfo,
    ContextTooLongError,
    FinishReason,
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
from runtime.adapters.decoding import Sampler, TextAssembler, collect_stop_ids
from runtime.adapters.encoder import check_text, load_pretrained
from runtime.adapters.folder import architecture, open_folder
from runtime.adapters.hardware import choose_device, choose_dtype, is_out_of_memory
from runtime.adapters.prompts import FittedContexts, fit_contexts, plain_prompt, rag_question
from runtime.adapters.settings import CausalLmSettings, check_sampling, parse_settings

_LOG: Final = logging.getLogger(__name__)
_DEFAULT_CONTEXT: Final = 2048


class CausalLmAdapter:
    """A causal language model: conversations through its chat template, texts as they are.

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
        device, device_note = choose_device(settings, model=config.name)
        dtype, dtype_note = choose_dtype(settings, device, generator=True)
        attention, attention_notes = _choose_attention(settings, device)
        options = {"dtype": dtype, "attn_implementation": attention, **_quantization(settings, device, config.name)}
        load_pretrained(AutoConfig.from_pretrained, directory, model=config.name)  # names an unknown architecture best
        self._tokenizer = load_pretrained(AutoTokenizer.from_pretrained, directory, model=config.name)
        network = load_pretrained(AutoModelForCausalLM.from_pretrained, directory, model=config.name, **options)
        self._network = (network if "quantization_config" in options else network.to(device)).eval()
        self._device = device
        self._stop_ids = collect_stop_ids(self._tokenizer, network.config, network.generation_config)
        parameters = inspect.signature(network.forward).parameters
        self._trims_logits = "logits_to_keep" in parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"  # renamed in transformers 5.24
        templated = bool(self._tokenizer.chat_template)
        template_note = "chat template: the folder's own" if templated else "chat template: none, plain Korean prompt"
        self._info = AdapterInfo(
            name=config.name,
            adapter=config.adapter,
            kind="generator",
            architecture=architecture(document),
            directory=str(directory),
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            limit=_context_limit(network.config, settings.max_length, config.name),
            features=("chat", "completion", "stream"),
            notes=(device_note, dtype_note, template_note, *attention_notes),
        )

    @property
    def info(self) -> AdapterInfo:
        """What was loaded."""
        return self._info

    @property
    def stop_ids(self) -> frozenset[int]:
        """The token ids that end an answer."""
        return self._stop_ids

    def generate(self, prompt: Prompt, params: GenerationParams = DEFAULT_PARAMS) -> Generation:
        """Return the whole answer; the text is that of :meth:`stream`.

        Raises:
            ContextTooLongError: Prompt and answer don't fit.
            RequestError: A parameter is out of range, or the template refuses the conversation.
            GenerationError: Out of memory, or the scores aren't numbers.
        """
        pieces = list(self.stream(prompt, params))
        last = pieces[-1]
        if last.finish_reason is None:
            raise AssertionError("a stream ends with a finish reason")
        return Generation(
            text="".join(piece.text for piece in pieces),
            finish_reason=last.finish_reason,
            prompt_tokens=last.prompt_tokens,
            completion_tokens=last.completion_tokens,
        )

    def stream(self, prompt: Prompt, params: GenerationParams = DEFAULT_PARAMS) -> PieceStream:
        """Yield the answer piece by piece; the last piece has the finish reason. Closing the iterator ends the work.

        Raises:
            AdapterError: As :meth:`generate`.
        """
        ids = self._encode(prompt)
        room = self._answer_room(len(ids), params)
        sampler = self._make_sampler(params)
        text = TextAssembler(self._tokenizer, (*self._settings.stop, *params.stop))
        count, reason = 0, "length"
        with closing(self._tokens(ids, sampler, room)) as tokens:
            for token in tokens:
                count += 1
                if token in self._stop_ids:
                    reason = "stop"
                    break
                fresh = text.push(token)
                if text.stopped:
                    yield self._last(fresh, len(ids), count, "stop")
                    return
                if fresh:
                    yield Piece(text=fresh, prompt_tokens=len(ids), completion_tokens=count)
        rest = text.finish()
        yield self._last(rest, len(ids), count, "stop" if reason == "stop" or text.stopped else "length")

    def answer(self, question: str, contexts: Sequence[str], params: GenerationParams = DEFAULT_PARAMS) -> Generation:
        """Answer from contexts, best first; those that don't fit are cut from the end, with a warning logged.

        Raises:
            ContextTooLongError: The question alone doesn't fit.
        """
        fitted = self.fit(question, contexts, params)
        if fitted.shortened or fitted.dropped:
            counts = (self._name, len(contexts), fitted.dropped, int(fitted.shortened))
            _LOG.warning("model %s: of %d contexts %d were dropped and %d shortened to fit", *counts)
        return self.generate(_rag_messages(question, fitted.texts), params)

    def fit(self, question: str, contexts: Sequence[str], params: GenerationParams = DEFAULT_PARAMS) -> FittedContexts:
        """Return the contexts that fit beside the question and the answer.

        The answer gets the tokens that ``params`` ask for, else those of the settings but at most half of the context.
        """
        limit, own = self._info.limit, self._settings.max_new_tokens
        budget = limit - (params.max_new_tokens or min(own, limit // 2))

        def measure(texts: Sequence[str]) -> int:
            return len(self._encode(_rag_messages(question, texts)))

        return fit_contexts(contexts, budget=budget, measure=measure, cut=self._first_tokens)

    def generate_answer(self, question: str, contexts: Sequence[str]) -> str:
        """Return the answer's text, stripped: RAGTrace's ``AnswerGeneratorPort``.

        Raises:
            AdapterError: As :meth:`generate`; an error is never an answer.
        """
        return self.answer(question, list(contexts)).text.strip()

    def get_llm(self) -> NoReturn:
        """Refuse: a LangChain object over this adapter isn't part of this version.

        Raises:
            AdapterError: Always.
        """
        msg = f"model {self._name!r}: this version has no in-process LangChain model"
        raise AdapterError(msg, hint="start runtime launch and use langchain-openai's ChatOpenAI with base_url=.../v1")

    def get_model_info(self) -> dict[str, object]:
        """Return what was loaded as a plain dict."""
        settings = self._settings
        own = {"model_name": self._name, "model_path": self._info.directory, "max_length": self._info.limit}
        sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "stop_ids": sorted(self._stop_ids)}
        template = "chat template" if self._tokenizer.chat_template else "plain Korean prompt"
        return {**dataclasses.asdict(self._info), **own, **sampling, "prompt": template}

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self._ids(check_text(prompt, 0), special=True)
        if not self._tokenizer.chat_template:
            return self._ids(check_text(plain_prompt(self._with_system(prompt)), 0), special=True)
        messages = [{"role": item.role, "content": check_text(item.content, 0)} for item in self._with_system(prompt)]
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **self._settings.chat_template_kwargs
            )
        except Exception as error:  # jinja2 and the template's own raise_exception
            raise RequestError(f"the chat template of {self._name!r} refuses: {error}", param="messages") from error
        return self._ids(str(text), special=False)

    def _with_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        own = self._settings.system_prompt
        if not own or any(message.role == "system" for message in messages):
            return messages
        return [Message(role="system", content=own), *messages]

    def _ids(self, text: str, *, special: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return ids

    def _first_tokens(self, text: str, count: int) -> str:
        ids = self._ids(text, special=False)[:count]
        decoded = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(decoded).rstrip("\ufffd")

    def _answer_room(self, prompt_tokens: int, params: GenerationParams) -> int:
        if prompt_tokens == 0:
            raise RequestError("the prompt is empty", param="prompt")
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

    def _tokens(self, prompt: Sequence[int], sampler: Sampler, room: int) -> Generator[int, None, None]:
        seen, fresh, cache = list(prompt), list(prompt), None
        for _ in range(room):
            try:
                logits, cache = self._step(fresh, cache)
                token = sampler.choose(logits, seen)
            except (RuntimeError, ValueError) as error:
                reason = "out of memory" if is_out_of_memory(error) else str(error)
                raise GenerationError(f"model {self._name!r}: generation failed: {reason}") from error
            seen.append(token)
            fresh = [token]
            yield token

    @torch.inference_mode()
    def _step(self, fresh: Sequence[int], cache: object) -> tuple[torch.Tensor, object]:
        """Return the scores after the last of ``fresh`` and the cache that now covers them."""
        options: Mapping[str, object] = {"logits_to_keep": 1} if self._trims_logits else {}
        ids = torch.tensor([fresh], dtype=torch.int64, device=self._device)
        output = self._network(input_ids=ids, use_cache=True, **{self._cache_name: cache}, **options)
        kept = getattr(output, self._cache_name, None)
        if kept is None:
            raise ValueError(f"{self._info.architecture} keeps no key-value cache, which this adapter needs")
        return output.logits[0, -1], kept

    @staticmethod
    def _last(text: str, prompt_tokens: int, count: int, reason: FinishReason) -> Piece:
        return Piece(text=text, prompt_tokens=prompt_tokens, completion_tokens=count, finish_reason=reason)


class HcxAdapter(CausalLmAdapter):
    """HyperCLOVA X, in whichever layout its files come: Llama-shaped (SEED 0.5B, 1.5B) or native ``hyperclovax``."""

    adapter_name = "hcx"


def _rag_messages(question: str, contexts: Sequence[str]) -> list[Message]:
    return [Message(role="user", content=rag_question(question, contexts))]


def _context_limit(config: Any, asked: int | None, model: str) -> int:  # noqa: ANN401 - transformers is untyped
    own = int(getattr(config.get_text_config(), "max_position_embeddings", 0) or _DEFAULT_CONTEXT)
    if asked is not None and asked > own:
        raise AdapterError(f"model {model!r}: settings: max_length: {asked} is more than the model's {own} positions")
    return asked or own


def _choose_attention(settings: CausalLmSettings, device: torch.device) -> tuple[str, tuple[str, ...]]:
    if not settings.use_flash_attention:
        return "sdpa", ()
    if device.type == "cuda" and importlib.util.find_spec("flash_attn"):
        return "flash_attention_2", ("attention: flash_attention_2",)
    missing = "the flash_attn package isn't installed" if device.type == "cuda" else f"the device is {device.type}"
    note = f"attention: SDPA, because use_flash_attention can't be honoured: {missing}"
    _LOG.warning("%s", note)
    return "sdpa", (note,)


def _quantization(settings: CausalLmSettings, device: torch.device, model: str) -> dict[str, Any]:
    if not (settings.load_in_8bit or settings.load_in_4bit):
        return {}
    key = "load_in_8bit" if settings.load_in_8bit else "load_in_4bit"
    if device.type != "cuda" or not importlib.util.find_spec("bitsandbytes"):
        reason = "needs CUDA" if device.type != "cuda" else "needs the bitsandbytes package"
        raise AdapterError(f"model {model!r}: settings: {key}: {reason}", hint=f"set {key}: false")
    from transformers import BitsAndBytesConfig  # noqa: PLC0415 - its import looks for the CUDA library

    config = BitsAndBytesConfig(load_in_8bit=settings.load_in_8bit, load_in_4bit=settings.load_in_4bit)
    return {"quantization_config": config, "device_map": {"": str(device)}}
