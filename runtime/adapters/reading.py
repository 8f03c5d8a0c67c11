"""From tokens to text as it comes: whole characters, reasoning apart from the answer, no part of a stop string."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.adapters.reasoning import Parts, ReasoningSplitter, overlap

Fresh = Parts


class TokenDecoder:
    """Turns tokens into text piece by piece; the bytes of an unfinished character wait."""

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401 - transformers is untyped
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # tokens before it are decoded for good
        self._known = 0  # tokens before it have given their text away

    def push(self, token: int) -> str:
        """Take one token; return the text that is certain now, often nothing."""
        self._ids.append(token)
        return self._fresh(final=False)

    def finish(self) -> str:
        """Return what is left when no token follows, a broken character as U+FFFD."""
        return self._fresh(final=True)

    def _fresh(self, *, final: bool) -> str:
        before = self._decode(self._ids[self._start : self._known])
        now = self._decode(self._ids[self._start :])
        if not final and (now.endswith("\ufffd") or len(now) <= len(before)):
            return ""  # a character whose bytes aren't all here yet
        self._start, self._known = self._known, len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class StopScanner:
    """Holds text back while it may be the beginning of a stop string; ends at the first that is whole.

    Args:
        stop: Strings that end the answer; they are no part of it.

    Attributes:
        stopped: A stop string was seen; nothing comes any more.
    """

    def __init__(self, stop: Iterable[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Take text; return what may be sent now."""
        if self.stopped:
            return ""
        self._held += text
        found = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._release(min(found), drop=True)
        keep = max((overlap(self._held, stop) for stop in self._stop), default=0)
        return self._release(len(self._held) - keep)

    def finish(self) -> str:
        """Return what was held back, when nothing follows."""
        return self._release(len(self._held))

    def _release(self, size: int, *, drop: bool = False) -> str:
        text, rest = self._held[:size], self._held[size:]
        self._held = "" if drop else rest
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What a reader knows about a model's tokens.

    Attributes:
        tokenizer: The model's own.
        stop_ids: Tokens that end an answer.
        markers: Tokens that are shown to the reasoning splitter as text although they are special.
    """

    tokenizer: Any  # transformers is untyped
    stop_ids: frozenset[int] = frozenset()
    markers: Mapping[int, str] = field(default_factory=dict)


class AnswerReader:
    """Reads one answer token by token.

    Args:
        vocabulary: The model's tokens.
        stop: Strings that end the answer; they are looked for in the answer, not in the reasoning before it.
        splitter: Tells reasoning from answer; None where everything is answer.

    Attributes:
        stopped: A stop token or a stop string ended the answer.
    """

    def __init__(
        self, vocabulary: Vocabulary, *, stop: Iterable[str] = (), splitter: ReasoningSplitter | None = None
    ) -> None:
        self._vocabulary = vocabulary
        self._decoder = TokenDecoder(vocabulary.tokenizer)
        self._splitter = splitter
        self._scanner = StopScanner(stop)
        self.stopped = False

    def push(self, token: int) -> Fresh:
        """Take one token; return what may be sent now, often nothing."""
        marker = self._vocabulary.markers.get(token) if self._splitter else None
        if token in self._vocabulary.stop_ids and not (marker and self._splitter and self._splitter.absorbs(marker)):
            rest = self.finish()
            self.stopped = True
            return rest
        text = self._decoder.push(token) if marker is None else self._decoder.finish() + marker
        return self._scan(self._split(text))

    def finish(self) -> Fresh:
        """Return what is left when no token follows."""
        if self.stopped:
            return Fresh()
        parts = self._scan(self._split(self._decoder.finish()))
        if self._splitter and not self.stopped:
            parts += self._scan(self._splitter.finish())
        return parts if self.stopped else parts + Fresh(text=self._scanner.finish())

    def _split(self, text: str) -> Parts:
        return self._splitter.push(text) if self._splitter else Parts(text=text)

    def _scan(self, parts: Parts) -> Fresh:
        text = self._scanner.push(parts.text)
        self.stopped = self.stopped or self._scanner.stopped
        return Fresh(text=text, reasoning=parts.reasoning)
