"""Typed reading of parsed documents: every error names the key path, every unknown key its nearest neighbour."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence

from manifests.errors import IntegrityError, SealiftError


class Fields:
    """One object (a JSON object, a TOML table) being read key by key.

    Args:
        data: The parsed object; anything but a mapping is refused.
        where: Document and key path for messages, such as ``manifest.json: files[3]``.
        known: Every key that may appear; another one is an error that names the nearest.
        error: The class to raise.
    """

    __slots__ = ("_data", "_error", "where")

    def __init__(
        self,
        data: object,
        *,
        where: str,
        known: Sequence[str],
        error: type[SealiftError] = IntegrityError,
    ) -> None:
        self.where = where
        self._error = error
        if not isinstance(data, Mapping):
            raise error(f"{where}: expected a table, got {type_name(data)}")
        self._data: Mapping[str, object] = data
        for key in self._data:
            if key not in known:
                raise error(f"{self.path(shown(key))}: unknown key", hint=nearest_hint(key[:80], known))

    def path(self, key: str) -> str:
        """Return the full key path of ``key`` for a message."""
        return f"{self.where}{key}" if self.where.endswith(": ") else f"{self.where}.{key}"

    def fail(self, key: str, problem: str, *, hint: str | None = None) -> SealiftError:
        """Return (not raise) an error about ``key``."""
        return self._error(f"{self.path(key)}: {problem}", hint=hint)

    def __contains__(self, key: str) -> bool:
        return key in self._data

    def raw(self, key: str) -> object:
        """Return the value of ``key`` as parsed, or None."""
        return self._data.get(key)

    def text(self, key: str, default: str | None = None, *, pattern: str | None = None) -> str:
        """Return a string; ``pattern`` must match all of it."""
        value = self._required(key, default)
        if not isinstance(value, str):
            raise self.fail(key, f"expected a string, got {type_name(value)}")
        if pattern is not None and re.fullmatch(pattern, value, re.ASCII) is None:
            raise self.fail(key, f"{value[:80]!r} does not have the form {pattern}")
        return value

    def integer(self, key: str, default: int | None = None, *, least: int = 0) -> int:
        """Return an integer that is at least ``least``."""
        value = self._required(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.fail(key, f"expected an integer, got {type_name(value)}")
        if value < least:
            raise self.fail(key, f"{value} is less than {least}")
        return value

    def choice(self, key: str, choices: Sequence[str], default: str | None = None) -> str:
        """Return a string that is one of ``choices``."""
        value = self.text(key, default)
        if value not in choices:
            hint = nearest_hint(value[:80], choices)
            raise self.fail(key, f"{value[:80]!r} is not one of {', '.join(choices)}", hint=hint)
        return value

    def texts(self, key: str, default: Sequence[str] | None = None) -> tuple[str, ...]:
        """Return a list of strings."""
        value = self._required(key, default)
        if (
            isinstance(value, str)
            or not isinstance(value, Sequence)
            or not all(isinstance(item, str) for item in value)
        ):
            raise self.fail(key, f"expected a list of strings, got {type_name(value)}")
        return tuple(value)

    def items(self, key: str) -> Iterator[tuple[str, object]]:
        """Yield ``(key path, item)`` of a list; a missing key is an empty list."""
        value = self._data.get(key, ())
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise self.fail(key, f"expected a list, got {type_name(value)}")
        for index, item in enumerate(value):
            yield f"{self.path(key)}[{index}]", item

    def table(self, key: str, known: Sequence[str]) -> "Fields":
        """Return a sub-object; a missing key is an empty one."""
        return Fields(self._data.get(key, {}), where=self.path(key), known=known, error=self._error)

    def mapping(self, key: str) -> Mapping[str, object]:
        """Return an object with free keys; a missing key is an empty one."""
        value = self._data.get(key, {})
        if not isinstance(value, Mapping):
            raise self.fail(key, f"expected a table, got {type_name(value)}")
        return value

    def _required(self, key: str, default: object) -> object:
        value = self._data.get(key, default)
        if value is None:
            raise self.fail(key, "missing")
        return value


def nearest_hint(word: str, known: Sequence[str]) -> str:
    """Return a hint with the nearest of ``known``, or all of them where none is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def shown(text: str) -> str:
    """Return ``text`` as it may stand in a message: quoted where a terminal would interpret it, and cut."""
    return text if text.isprintable() and len(text) <= 200 else repr(text[:200])


def type_name(value: object) -> str:
    """Return what a person calls the type of a parsed value."""
    names = {dict: "a table", list: "a list", tuple: "a list", str: "a string", bool: "a boolean", int: "an integer"}
    return "nothing" if value is None else names.get(type(value), f"a {type(value).__name__}")
