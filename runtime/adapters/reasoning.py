"""Reasoning that a model writes before its answer, told apart while it streams.

Two ways of marking it are known. ``tags``: ``<think>`` ... ``</think>``, where the chat template may have written the
opening tag already. ``hcx``: HyperCLOVA X Think writes two turns, ``<|im_start|>assistant/think`` and
``<|im_start|>assistant``; the first ends with the token ``<|im_end|>``, which ends an answer everywhere else, and the
template's ``force_reasoning`` and ``skip_reasoning`` decide how the first begins.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

Style = Literal["tags", "hcx"]
_State = Literal["start", "reasoning", "header", "answer"]

_OPEN: Final[Mapping[Style, str]] = {"tags": "<think>", "hcx": "/think\n"}
_CLOSE: Final[Mapping[Style, str]] = {"tags": "</think>", "hcx": "<|im_end|>"}
_TURN: Final = "<|im_start|>"
_MARKERS: Final[Mapping[Style, tuple[str, ...]]] = {
    "tags": ("<think>", "</think>"),
    "hcx": ("<|im_start|>", "<|im_end|>"),
}
_HCX_THINK: Final = re.compile(r"(?<!<)/think\b(?!>)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Text of the answer and of the reasoning before it; either may be empty."""

    text: str = ""
    reasoning: str = ""

    def __add__(self, other: "Parts") -> "Parts":
        return Parts(text=self.text + other.text, reasoning=self.reasoning + other.reasoning)

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning)


def find_style(template: str, added: Iterable[str]) -> Style | None:
    """Return how a model marks reasoning, from its chat template and its added tokens; None if it doesn't."""
    if _TURN in template and _HCX_THINK.search(template):
        return "hcx"
    if "</think>" in template or set(_MARKERS["tags"]) <= set(added):
        return "tags"
    return None


def find_markers(style: Style | None, added: Mapping[str, int]) -> dict[int, str]:
    """Return the tokens, id -> text, that a splitter of this style has to see."""
    return {added[mark]: mark for mark in (_MARKERS[style] if style else ()) if mark in added}


class ReasoningSplitter:
    """Divides one answer; whitespace around the reasoning belongs to neither part.

    Args:
        style: How the model marks reasoning.
        prompt: The templated prompt, whose end says whether the model is already thinking.
    """

    def __init__(self, style: Style, prompt: str) -> None:
        self._style: Style = style
        self._open, self._close = _OPEN[style], _CLOSE[style]
        self._held = ""
        self._fresh_part = False  # whether the current part has given no text yet, so that leading space is dropped
        self._state: _State = "start"
        self._begin(prompt)

    def absorbs(self, marker: str) -> bool:
        """Whether this token ends the reasoning here, and so doesn't end the answer."""
        return self._state == "reasoning" and marker == self._close

    def push(self, text: str) -> Parts:
        """Take text; return what is certain now."""
        self._held += text
        parts, state = Parts(), None
        while state != self._state:
            state = self._state
            parts += self._advance()
        return parts

    def finish(self) -> Parts:
        """Return what was held back, when nothing follows."""
        rest, self._held = self._held, ""
        if self._state == "reasoning":
            return Parts(reasoning=self._trim(rest).rstrip())
        return Parts(text="" if self._state == "header" else self._trim(rest) if self._fresh_part else rest)

    def _begin(self, prompt: str) -> None:
        if prompt.rstrip(" ").endswith(self._open) or prompt.rstrip().endswith(self._open):
            self._enter("reasoning")
        elif prompt.rstrip().endswith(self._close) and self._style == "tags":
            self._enter("answer")
        elif self._style == "hcx" and prompt.endswith("\n"):
            self._state = "answer"

    def _enter(self, state: _State) -> None:
        self._state, self._fresh_part = state, True

    def _advance(self) -> Parts:
        steps = {"start": self._decide, "reasoning": self._reason, "header": self._skip_header, "answer": self._answer}
        return steps[self._state]()

    def _decide(self) -> Parts:
        """Wait until the first text says which part it belongs to."""
        seen = self._held.lstrip() if self._style == "tags" else self._held
        if seen.startswith(self._open):
            self._held = seen[len(self._open) :]
            self._enter("reasoning")
        elif seen and not self._open.startswith(seen):
            self._state, self._fresh_part = "answer", self._style == "hcx"
        return Parts()

    def _reason(self) -> Parts:
        place = self._held.find(self._close)
        if place >= 0:
            text, self._held = self._held[:place], self._held[place + len(self._close) :]
            parts = Parts(reasoning=self._trim(text).rstrip())
            self._enter("header" if self._style == "hcx" else "answer")
            return parts
        certain = len(self._held) - overlap(self._held, self._close)
        certain = len(self._held[:certain].rstrip())
        text, self._held = self._held[:certain], self._held[certain:]
        return Parts(reasoning=self._trim(text))

    def _skip_header(self) -> Parts:
        """Drop the line that opens the answer's turn, ``<|im_start|>assistant``; a model may leave it out."""
        seen = self._held.lstrip()
        if seen.startswith(_TURN):
            _, newline, rest = seen.partition("\n")
            if newline:
                self._held = rest
                self._enter("answer")
        elif seen and not _TURN.startswith(seen):
            self._enter("answer")
        return Parts()

    def _answer(self) -> Parts:
        text, self._held = self._held, ""
        return Parts(text=self._trim(text))

    def _trim(self, text: str) -> str:
        if not self._fresh_part:
            return text
        text = text.lstrip()
        self._fresh_part = not text
        return text


def overlap(text: str, mark: str) -> int:
    """Return the length of the longest end of ``text`` that is a beginning of ``mark``, but not all of it."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:size])), 0)
