"""A generator as LangChain's LLM and chat model, for langchain-core 0.3 and 1.x; only this module needs it.

Both answer as the adapter's settings say, greedy unless told otherwise. They have no ``temperature`` of their own on
purpose: ragas assigns to that attribute from concurrent tasks, and which task's value a call sees would be a race. A
call may pass ``max_tokens``, ``temperature``, ``top_p``, ``repetition_penalty``, ``seed``, ``n`` and
``chat_template_kwargs``, and ``stop``, which adds to the model's own; anything else is refused. The i-th of several
answers is sampled with ``seed`` + i. Prompts of a batch, and calls from several threads, are decoded together.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseLanguageModel
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.llms import BaseLLM
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, GenerationChunk, LLMResult
from langchain_core.outputs import Generation as LangChainGeneration
from langchain_core.prompt_values import PromptValue, StringPromptValue

from runtime.adapters.base import Generation, GenerationParams, Message, Piece, Prompt, RequestError

_ROLES: Final = {"human": "user", "ai": "assistant"}
_TUNABLE: Final = ("max_tokens", "temperature", "top_p", "repetition_penalty", "seed", "n", "chat_template_kwargs")
_IGNORED: Final = frozenset({"stream", "ls_structured_output_format"})
"""What LangChain passes along for itself."""


class _LocalModel(BaseLanguageModel):  # type: ignore[misc]  # langchain-core isn't installed where types are checked
    """What LLM and chat model share.

    Args:
        adapter: The generator; several of these may share one.
    """

    adapter: Any  # a CausalLmAdapter: pydantic would want its module, and torch, at import
    run_config: Any = None  # ragas' own class

    @property
    def model(self) -> str:
        """The model's name; "HCX" is in it for HyperCLOVA X, by which RAGTrace knows to go easy on it."""
        info = self.adapter.info
        return f"HCX-{info.name}" if info.adapter == "hcx" and "HCX" not in info.name else str(info.name)

    def set_run_config(self, run_config: object) -> None:
        """Keep ragas' run configuration; its time-outs are ragas' own affair, nothing here waits for a network."""
        self.run_config = run_config

    def get_token_ids(self, text: str) -> list[int]:
        """Return the model's own tokens; LangChain would fetch GPT-2's tokenizer from the network to count them."""
        ids: list[int] = self.adapter.token_ids(text)
        return ids

    def generate_prompt(self, prompts: Any, stop: list[str] | None = None, **kwargs: Any) -> LLMResult:  # noqa: ANN401 - LangChain's own signature
        """Answer prompt values; strings are taken too, and so is one prompt alone (RAGTrace and ragas pass both)."""
        return super().generate_prompt(_prompt_values(prompts), stop=stop, **kwargs)

    async def agenerate_prompt(self, prompts: Any, stop: list[str] | None = None, **kwargs: Any) -> LLMResult:  # noqa: ANN401 - LangChain's own signature
        """As :meth:`generate_prompt`."""
        return await super().agenerate_prompt(_prompt_values(prompts), stop=stop, **kwargs)

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {"model": self.model, "directory": self.adapter.info.directory}

    def _params(self, stop: Sequence[str] | None, given: Mapping[str, Any], answers: int = 1) -> list[GenerationParams]:
        """Return the parameters of so many answers: what the call says, else what the adapter's settings say."""
        unknown = sorted(set(given) - set(_TUNABLE) - _IGNORED)
        if unknown:
            msg = f"{unknown[0]}: not supported; a call takes {', '.join(_TUNABLE)} and stop"
            raise RequestError(msg, param=unknown[0])
        chosen = {key: value for key, value in given.items() if key in _TUNABLE and value is not None}
        chosen.pop("n", None)
        limit, seed = chosen.pop("max_tokens", None), chosen.pop("seed", self.adapter.default_seed or 0)
        shared = {"max_new_tokens": limit, "stop": tuple(stop or ()), **chosen}
        return [GenerationParams(seed=seed + index, **shared) for index in range(answers)]


class SealiftLLM(_LocalModel, BaseLLM):  # type: ignore[misc]  # as above
    """A loaded generator as an LLM: a string is one user turn, answered as text.

    Args:
        chat: Whether a string goes through the chat template as one user turn; else it is continued as it is.
    """

    chat: bool = True

    def generate(self, prompts: Any, stop: list[str] | None = None, *args: Any, **kwargs: Any) -> LLMResult:  # noqa: ANN401 - LangChain's own signature
        """Answer texts; prompt values are taken too, and so is one prompt alone."""
        return super().generate(_texts(prompts), stop, *args, **kwargs)

    async def agenerate(self, prompts: Any, stop: list[str] | None = None, *args: Any, **kwargs: Any) -> LLMResult:  # noqa: ANN401 - LangChain's own signature
        """As :meth:`generate`."""
        return await super().agenerate(_texts(prompts), stop, *args, **kwargs)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # noqa: ANN401 - LangChain's own signature
    ) -> LLMResult:
        del run_manager  # whole answers have no tokens to tell of
        each = _answers_each(kwargs)
        wanted = [self._prompt(text) for text in prompts for _ in range(each)]
        answers = self.adapter.generate_batch(wanted, self._params(stop, kwargs, len(wanted)))
        found = [LangChainGeneration(text=item.text, generation_info=_facts(item)) for item in answers]
        rows = [found[start : start + each] for start in range(0, len(found), each)]
        return LLMResult(generations=rows, llm_output={"token_usage": _usage(answers), "model_name": self.model})

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # noqa: ANN401 - LangChain's own signature
    ) -> Iterator[GenerationChunk]:
        (params,) = self._params(stop, kwargs)
        for piece in self.adapter.stream(self._prompt(prompt), params):
            chunk = GenerationChunk(text=piece.text, generation_info=_facts(piece) or None)
            if run_manager:
                run_manager.on_llm_new_token(piece.text, chunk=chunk)
            yield chunk

    def _prompt(self, text: str) -> Prompt:
        return [Message(role="user", content=text)] if self.chat else text

    @property
    def _llm_type(self) -> str:
        return "sealift"


class SealiftChatModel(_LocalModel, BaseChatModel):  # type: ignore[misc]  # as above
    """A loaded generator as a chat model; reasoning is in ``additional_kwargs["reasoning_content"]``."""

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # noqa: ANN401 - LangChain's own signature
    ) -> ChatResult:
        del run_manager  # whole answers have no tokens to tell of
        each, turns = _answers_each(kwargs), _turns(messages)
        answers = self.adapter.generate_batch([turns] * each, self._params(stop, kwargs, each))
        return ChatResult(
            generations=[self._chat_generation(answer) for answer in answers],
            llm_output={"token_usage": _usage(answers), "model_name": self.model},
        )

    def _chat_generation(self, answer: Generation) -> ChatGeneration:
        message = AIMessage(
            content=answer.text,
            additional_kwargs=_reasoning(answer),
            response_metadata={"finish_reason": answer.finish_reason, "model_name": self.model},
            usage_metadata=_token_counts(answer),
        )
        return ChatGeneration(message=message, generation_info=_facts(answer))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # noqa: ANN401 - LangChain's own signature
    ) -> Iterator[ChatGenerationChunk]:
        (params,) = self._params(stop, kwargs)
        for piece in self.adapter.stream(_turns(messages), params):
            message = AIMessageChunk(
                content=piece.text,
                additional_kwargs=_reasoning(piece),
                response_metadata=_facts(piece),
                usage_metadata=_token_counts(piece) if piece.finish_reason else None,
            )
            chunk = ChatGenerationChunk(message=message)
            if run_manager:
                run_manager.on_llm_new_token(piece.text, chunk=chunk)
            yield chunk

    @property
    def _llm_type(self) -> str:
        return "sealift-chat"


def _answers_each(given: Mapping[str, Any]) -> int:
    count = given.get("n") or 1
    if not isinstance(count, int) or count < 1:
        raise RequestError(f"n: expected an integer of at least 1, got {count!r}", param="n")
    return count


def _prompt_values(prompts: Any) -> list[PromptValue]:  # noqa: ANN401 - whatever a caller has
    items = prompts if isinstance(prompts, list | tuple) else [prompts]
    return [StringPromptValue(text=item) if isinstance(item, str) else item for item in items]


def _texts(prompts: Any) -> list[str]:  # noqa: ANN401 - whatever a caller has
    items = prompts if isinstance(prompts, list | tuple) else [prompts]
    return [item.to_string() if isinstance(item, PromptValue) else item for item in items]


def _turns(messages: Sequence[BaseMessage]) -> list[Message]:
    return [Message(role=_role(message), content=_content(message)) for message in messages]


def _role(message: BaseMessage) -> str:
    role = getattr(message, "role", None) or _ROLES.get(message.type, message.type)
    if role in {"tool", "function"}:
        raise RequestError(f"messages: role {role!r}: tool calls are not supported", param="messages")
    return str(role)


def _content(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in message.content]
    kinds = sorted({str(part.get("type")) for part in parts} - {"text"})
    if kinds:
        raise RequestError(f"messages: content of type {kinds[0]!r}: only text is supported", param="messages")
    return "".join(str(part["text"]) for part in parts)


def _facts(part: Generation | Piece) -> dict[str, object]:
    return {"finish_reason": part.finish_reason} if part.finish_reason else {}


def _reasoning(part: Generation | Piece) -> dict[str, object]:
    return {"reasoning_content": part.reasoning} if part.reasoning else {}


def _token_counts(part: Generation | Piece) -> Any:  # noqa: ANN401 - LangChain's UsageMetadata
    total = part.prompt_tokens + part.completion_tokens
    return {"input_tokens": part.prompt_tokens, "output_tokens": part.completion_tokens, "total_tokens": total}


def _usage(answers: Sequence[Generation]) -> dict[str, int]:
    asked, made = (sum(getattr(answer, f"{kind}_tokens") for answer in answers) for kind in ("prompt", "completion"))
    return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}
