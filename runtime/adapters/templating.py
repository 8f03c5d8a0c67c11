"""From a prompt to token ids: a conversation through the folder's chat template, a text as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from manifests.errors import AdapterError
from runtime.adapters.base import JSON, Message, Prompt, RequestError
from runtime.adapters.encoder import check_text, load_pretrained
from runtime.adapters.prompts import plain_prompt


def load_tokenizer(directory: Path, *, model: str) -> Any:  # noqa: ANN401 - transformers is untyped
    """Return the folder's own tokenizer, never a substitute.

    Raises:
        AdapterError: It can't be loaded, or transformers made an empty one up because its files aren't there.
    """
    load_pretrained(AutoConfig.from_pretrained, directory, model=model)  # names an unknown architecture best
    tokenizer = load_pretrained(AutoTokenizer.from_pretrained, directory, model=model)
    if not tokenizer("a 0", add_special_tokens=False, verbose=False)["input_ids"]:
        msg = f"model {model!r}: {directory}: the tokenizer knows no text: its vocabulary has {len(tokenizer)} tokens"
        raise AdapterError(msg, hint="tokenizer.json is missing from the folder; another model's doesn't fit")
    return tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """Token ids, and the text they were made from; ``templated`` says whether a chat template wrote it."""

    ids: tuple[int, ...]
    text: str
    templated: bool


class PromptEncoder:
    """Encodes the prompts of one model.

    Args:
        tokenizer: The model's own.
        model: Its name, for messages.
        system_prompt: Put before conversations that have no system turn; empty for none.
        template_kwargs: Arguments of the chat template, below those of a request.
    """

    def __init__(
        self,
        tokenizer: Any,  # noqa: ANN401 - transformers is untyped
        *,
        model: str,
        system_prompt: str = "",
        template_kwargs: Mapping[str, object] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._system_prompt = system_prompt
        self._template_kwargs = dict(template_kwargs or {})

    @property
    def template(self) -> str:
        """The chat template; empty where the folder has none."""
        found = self._tokenizer.chat_template
        return "\n".join(found.values()) if isinstance(found, Mapping) else str(found or "")

    def encode(self, prompt: Prompt, template_kwargs: Mapping[str, JSON] | None = None) -> EncodedPrompt:
        """Return the ids of a prompt.

        Raises:
            RequestError: Invalid Unicode, no token at all, or the template refuses the conversation.
        """
        conversation = not isinstance(prompt, str)
        if template_kwargs and not (conversation and self.template):
            why = "this model has no chat template" if conversation else "a text goes to the model as it is"
            raise RequestError(f"chat_template_kwargs: {why}", param="chat_template_kwargs")
        if isinstance(prompt, str):
            return self._encoded(prompt, templated=False)
        messages = self._with_system(prompt)
        if not self.template:
            return self._encoded(plain_prompt(messages), templated=False)
        return self._encoded(self._render(messages, template_kwargs or {}), templated=True)

    def ids(self, text: str, *, special: bool) -> list[int]:
        """Return the token ids of a text, with or without the tokens that the tokenizer puts around a text."""
        found: list[int] = self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return found

    def first_tokens(self, text: str, count: int) -> str:
        """Return the beginning of a text that is so many tokens, without a broken character at its end."""
        ids = self.ids(text, special=False)[:count]
        decoded = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(decoded).rstrip("\ufffd")

    def _encoded(self, text: str, *, templated: bool) -> EncodedPrompt:
        ids = self.ids(check_text(text, 0), special=not templated)
        if not ids:
            raise RequestError("the prompt is empty", param="prompt")
        return EncodedPrompt(ids=tuple(ids), text=text, templated=templated)

    def _render(self, messages: Sequence[Message], template_kwargs: Mapping[str, JSON]) -> str:
        turns = [{"role": item.role, "content": check_text(item.content, 0)} for item in messages]
        options = {**self._template_kwargs, **template_kwargs}
        try:
            text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)
        except Exception as error:  # jinja2, the template's own raise_exception, an argument that isn't one
            raise RequestError(f"the chat template of {self._model!r} refuses: {error}", param="messages") from error
        return str(text)

    def _with_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        if not self._system_prompt or any(message.role == "system" for message in messages):
            return messages
        return [Message(role="system", content=self._system_prompt), *messages]
