"""What a reviewer must know of a model's files, by their content: pickles, code, pointers to code elsewhere, licences.

Names prove nothing: a pickle called ``model.safetensors`` is still run by whoever loads it with ``torch.load``.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from manifests import pickles
from manifests.canonical import Json

Opener: TypeAlias = Callable[[], BinaryIO]
"""Opens a content for reading; what it returns is seekable."""

PICKLE_SUFFIXES: Final = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
"""Names under which programs unpickle whatever is there; ``.bin`` isn't one, since it means many things."""

_HEAD: Final = 64 * 1024
_BLOCK: Final = 1024 * 1024
_OVERLAP: Final = 256  # longer than any key of interest
_JSON_LIMIT: Final = 256 * 1024 * 1024
_LICENSE_FILE: Final = re.compile(
    r"(?:LICEN[CS]E|NOTICE|COPYING|COPYRIGHT)(?![a-z])[^/]*|USE_POLICY[^/]*", re.IGNORECASE
)
_FRONT_MATTER: Final = re.compile(r"\A---\s*\n(.*?)\n---", re.DOTALL)
_LICENSE_KEY: Final = re.compile(r"^license:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*$", re.MULTILINE)
_KEYS: Final = re.compile(rb'"(?:auto_map|model_file|chat_template|_attn_implementation\w*)"|\\u00[4-7][0-9a-fA-F]')
_Pair = tuple[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """All of it as paths in the model, or ``PATH: KEY = VALUE``, sorted; ``license`` is what the README declares."""

    pickles: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    auto_map: tuple[str, ...] = ()
    model_file: tuple[str, ...] = ()
    remote_repos: tuple[str, ...] = ()
    chat_template: str = ""
    license_files: tuple[str, ...] = ()
    license: str = ""

    def to_json(self) -> dict[str, Json]:
        """Return the lock's object: what is empty is left out, and ``license`` stands beside it."""
        lists = {
            "auto-map": self.auto_map,
            "code": self.code,
            "license-files": self.license_files,
            "model-file": self.model_file,
            "pickles": self.pickles,
            "remote-repos": self.remote_repos,
        }
        found: dict[str, Json] = {key: list(value) for key, value in lists.items() if value}
        return found | ({"chat-template": self.chat_template} if self.chat_template else {})


def find_facts(files: Mapping[str, Path]) -> ModelFacts:
    """Look into a model's files.

    Args:
        files: Path in the model -> where its content lies.

    Raises:
        OSError: One can't be read.
    """
    return find_facts_in({name: partial(_open, path) for name, path in files.items()})


def find_facts_in(files: Mapping[str, Opener]) -> ModelFacts:
    """Look into a model's files, wherever they lie; see :func:`find_facts`."""
    pairs = [(name, pair) for name, open_ in files.items() if name.endswith(".json") for pair in _pairs(open_)]
    maps = [(name, value) for name, (key, value) in pairs if key == "auto_map"]
    codes = [(name, text) for name, value in maps for text in _texts(value)]
    implementations = [value for _, (key, value) in pairs if key.startswith("_attn_implementation")]
    elsewhere = {text.partition("--")[0] for _, text in codes if "--" in text}
    elsewhere |= {text for value in implementations for text in _texts(value) if "/" in text}
    return ModelFacts(
        pickles=tuple(sorted(name for name, open_ in files.items() if _is_pickle(name, open_))),
        code=tuple(sorted(name for name in files if name.endswith((".py", ".pyc", ".so")))),
        auto_map=tuple(sorted({f"{name}: {text}" for name, text in codes})),
        model_file=_named(pairs, "model_file"),
        remote_repos=tuple(sorted(elsewhere)),
        chat_template=_chat_template(files, {name for name, (key, _) in pairs if key == "chat_template"}),
        license_files=tuple(sorted(name for name in files if _LICENSE_FILE.fullmatch(name.rpartition("/")[2]))),
        license=_declared_license(files),
    )


def is_pickle(name: str, path: Path) -> bool:
    """Whether a file holds a pickle, or has a name under which it is taken for one."""
    return _is_pickle(name, partial(_open, path))


def _open(path: Path) -> BinaryIO:
    return path.open("rb")


def _is_pickle(name: str, open_: Opener) -> bool:
    if name.lower().endswith(PICKLE_SUFFIXES):
        return True
    with open_() as stream:
        return pickles.holds_pickle(stream)


def holds_pickle(path: Path) -> bool:
    """Whether a file is a pickle by its content, see :mod:`manifests.pickles`."""
    with path.open("rb") as stream:
        return pickles.holds_pickle(stream)


def _pairs(open_: Opener) -> Iterator[_Pair]:
    """Yield the keys of interest of a JSON file, at any depth, with their values."""
    with open_() as stream:
        if not _mentions_keys(stream):
            return
        stream.seek(0)
        data = stream.read(_JSON_LIMIT + 1)
    try:
        yield from _walk(json.loads(data if len(data) <= _JSON_LIMIT else b""))
    except (ValueError, RecursionError):
        yield "auto_map", "not readable as JSON"


def _mentions_keys(stream: BinaryIO) -> bool:
    tail = b""
    while block := stream.read(_BLOCK):
        if _KEYS.search(tail + block):
            return True
        tail = block[-_OVERLAP:]
    return False


def _walk(value: Json) -> Iterator[_Pair]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in {"auto_map", "model_file", "chat_template"} or key.startswith("_attn_implementation"):
                yield key, inner
            yield from _walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner)


def _texts(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _named(pairs: list[tuple[str, _Pair]], wanted: str) -> tuple[str, ...]:
    found = {f"{name}: {text}" for name, (key, value) in pairs if key == wanted for text in _texts(value)}
    return tuple(sorted(found))


def _chat_template(files: Mapping[str, Opener], in_json: set[str]) -> str:
    """Return where the template stands; a file of its own wins, as it does in transformers."""
    own = sorted(
        name for name in files if name.rpartition("/")[2] == "chat_template.jinja" or "chat_templates/" in name
    )
    return ", ".join(own or sorted(in_json))


def _declared_license(files: Mapping[str, Opener]) -> str:
    """Return the licence in the front matter of the model's card."""
    if "README.md" not in files:
        return ""
    with files["README.md"]() as stream:
        text = stream.read(_HEAD).decode("utf-8", "replace").replace("\r\n", "\n")
    front = _FRONT_MATTER.match(text)
    found = _LICENSE_KEY.search(front[1]) if front else None
    return found[1] if found else ""
