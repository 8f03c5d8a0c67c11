"""The variables of a launched process: the release's signed ``config/offline.env``, and over it the operator's own.

``PREFIX/etc/offline.env`` lies outside the releases, so it survives upgrades. It overrides key by key; what it doesn't
name comes from the release. It can't open the seal: what the seal sets itself stays as it is, and a key that is neither
the release's nor one that the seal lets pass is left out, and named.
"""

import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from manifests.errors import UsageError
from manifests.fields import nearest_hint
from runtime.layout import Prefix, Release
from runtime.seal import OFFLINE_VARIABLES, passes

ENVIRONMENT_NAME: Final = "offline.env"
_LINE: Final = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")
_ESCAPED: Final = re.compile(r'\\(["\\$`])')


@dataclass(frozen=True, slots=True, kw_only=True)
class Variables:
    """What a launched process is told, and what an operator should know about their own file, one sentence each."""

    values: Mapping[str, str]
    notes: tuple[str, ...] = ()


def load_variables(prefix: Prefix, release: Release) -> Variables:
    """Return the variables of a release with the operator's overrides.

    Raises:
        UsageError: A line of either file is no ``KEY=VALUE``; it names file and line.
    """
    known = read_variables(release.path / "config" / ENVIRONMENT_NAME, prefix, release)
    own = read_variables(prefix.etc / ENVIRONMENT_NAME, prefix, release)
    values, notes = dict(known), []
    for key, value in own.items():
        if note := _note(key, value, known):
            notes.append(f"{prefix.etc / ENVIRONMENT_NAME}: {note}")
        else:
            values[key] = value
    free = {key: value for key, value in values.items() if key not in OFFLINE_VARIABLES}
    return Variables(values=free, notes=tuple(notes))


def read_variables(path: Path, prefix: Prefix, release: Release) -> Mapping[str, str]:
    """Return the variables of a file, nothing where there is none; ``${PREFIX}`` and ``${RELEASE}`` are filled in.

    Raises:
        UsageError: It can't be read, or a line is no ``KEY=VALUE``.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise UsageError(f"{path}: {reason}") from None
    places = {"PREFIX": str(prefix.path), "RELEASE": str(release.path)}
    return {key: string.Template(value).safe_substitute(places) for key, value in _parse(text, path)}


def _parse(text: str, path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise UsageError(f"{path}, line {number}: expected KEY=VALUE, got {line.strip()[:80]!r}")
        yield match[1], _unquoted(match[2].strip())


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        return _ESCAPED.sub(r"\1", value[1:-1])
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == "'" else value


def _note(key: str, value: str, known: Mapping[str, str]) -> str:
    """Return why a key of the operator's has no effect, empty where it has one."""
    if key in OFFLINE_VARIABLES:
        fixed = OFFLINE_VARIABLES[key]
        return "" if value == fixed else f"{key}={value} has no effect: the seal fixes it at {fixed}"
    if key in known or passes(key):
        return ""
    near = nearest_hint(key, tuple(known)) or ""
    near = near if near.startswith("did you mean") else ""
    return f"{key} has no effect: this release has no such variable{f'; {near}' if near else ''}"
