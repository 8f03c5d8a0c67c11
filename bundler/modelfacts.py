"""What a reviewer must know of a model's files, by their content: pickles, code, pointers to code elsewhere, licences.

Names prove nothing: a pickle called ``model.safetensors`` is still run by whoever loads it with ``torch.load``.
"""

import bz2
import json
import lzma
import mmap
import pickletools
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from manifests.canonical import Json

PICKLE_SUFFIXES: Final = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
"""Names under which programs unpickle whatever is there; ``.bin`` isn't one, since it means many things."""

_HEAD: Final = 64 * 1024
_SAFETENSORS_HEADER: Final = 100_000_000  # the format's own limit
_LICENSE_FILE: Final = re.compile(
    r"(?:LICEN[CS]E|NOTICE|COPYING|COPYRIGHT)(?![a-z])[^/]*|USE_POLICY[^/]*", re.IGNORECASE
)
_FRONT_MATTER: Final = re.compile(r"\A---\s*\n(.*?)\n---", re.DOTALL)
_LICENSE_KEY: Final = re.compile(r"^license:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*$", re.MULTILINE)
_KEYS: Final = re.compile(rb'"(?:auto_map|model_file|chat_template|_attn_implementation\w*)"|\\u00[4-7][0-9a-fA-F]')
_ACTING: Final = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD"}
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
    pairs = [(name, pair) for name, path in files.items() if name.endswith(".json") for pair in _pairs(path)]
    maps = [(name, value) for name, (key, value) in pairs if key == "auto_map"]
    codes = [(name, text) for name, value in maps for text in _texts(value)]
    implementations = [value for _, (key, value) in pairs if key.startswith("_attn_implementation")]
    elsewhere = {text.partition("--")[0] for _, text in codes if "--" in text}
    elsewhere |= {text for value in implementations for text in _texts(value) if "/" in text}
    return ModelFacts(
        pickles=tuple(sorted(name for name, path in files.items() if is_pickle(name, path))),
        code=tuple(sorted(name for name in files if name.endswith((".py", ".pyc", ".so")))),
        auto_map=tuple(sorted({f"{name}: {text}" for name, text in codes})),
        model_file=_named(pairs, "model_file"),
        remote_repos=tuple(sorted(elsewhere)),
        chat_template=_chat_template(files, {name for name, (key, _) in pairs if key == "chat_template"}),
        license_files=tuple(sorted(name for name in files if _LICENSE_FILE.fullmatch(name.rpartition("/")[2]))),
        license=_declared_license(files),
    )


def is_pickle(name: str, path: Path) -> bool:
    """Whether a file holds a pickle, or has a name under which it is taken for one.

    Found are: bare pickles of every protocol (so torch's old format), zip archives with a pickle in them (torch's
    format) or tar archives (its oldest one), numpy arrays of objects, and bare ones compressed as joblib does it.
    """
    return name.lower().endswith(PICKLE_SUFFIXES) or holds_pickle(path)


def holds_pickle(path: Path) -> bool:
    """Whether a file is a pickle by its content, see :func:`is_pickle`."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    if _is_safetensors(head, path.stat().st_size):
        return _holds_pickled_member(path, if_broken=False)  # an archive may follow: its directory is at the end
    if any(_starts_pickle(part) for part in (head, _inflated(head)) if part):
        return True
    return _holds_pickled_member(path, if_broken=True) or _is_torch_tar(path)


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and length <= min(size - 8, _SAFETENSORS_HEADER)


def _starts_pickle(head: bytes) -> bool:
    if head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}:
        return True
    if head.startswith(b"\x93NUMPY"):
        return b"O" in head[10:256].partition(b"'descr':")[2].partition(b",")[0]
    return _is_old_pickle(head)


def _is_old_pickle(head: bytes) -> bool:
    """Whether it reads as protocol 0 or 1, which has no magic number: only opcodes, and one that calls something."""
    names = set()
    try:
        for opcode, _, _ in pickletools.genops(head):
            names.add(opcode.name)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        if len(head) < _HEAD or "unknown" in str(error):
            return False
    return bool(names & _ACTING)


def _inflated(head: bytes) -> bytes:
    """Return the beginning of what is compressed, empty if nothing is."""
    try:
        if head.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(31).decompress(head, _HEAD)
        if head[:1] == b"\x78" and len(head) > 1 and int.from_bytes(head[:2], "big") % 31 == 0:
            return zlib.decompressobj().decompress(head, _HEAD)
        if head.startswith(b"BZh"):
            return bz2.BZ2Decompressor().decompress(head, _HEAD)
        if head.startswith((b"\xfd7zXZ\x00", b"\x5d\x00\x00")):
            return lzma.LZMADecompressor().decompress(head, _HEAD)
    except (zlib.error, OSError, EOFError, lzma.LZMAError, ValueError):
        return b""
    return b""


def _holds_pickled_member(path: Path, *, if_broken: bool) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.lower().endswith((".pkl", ".pickle")) for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, UnicodeDecodeError):
        return if_broken  # a lenient reader may open it; but random weights may just end like one


def _is_torch_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:") as archive:
            return any(member.name == "pickle" or member.name.endswith(".pkl") for member in archive)
    except (tarfile.TarError, OSError, ValueError):
        return False


def _pairs(path: Path) -> Iterator[_Pair]:
    """Yield the keys of interest of a JSON file, at any depth, with their values."""
    with path.open("rb") as stream:
        if not path.stat().st_size:
            return
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
            if _KEYS.search(view) is None:
                return
    try:
        yield from _walk(json.loads(path.read_bytes()))
    except (ValueError, RecursionError):
        yield "auto_map", "not readable as JSON"


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


def _chat_template(files: Mapping[str, Path], in_json: set[str]) -> str:
    """Return where the template stands; a file of its own wins, as it does in transformers."""
    own = sorted(
        name for name in files if name.rpartition("/")[2] == "chat_template.jinja" or "chat_templates/" in name
    )
    return ", ".join(own or sorted(in_json))


def _declared_license(files: Mapping[str, Path]) -> str:
    """Return the licence in the front matter of the model's card."""
    if "README.md" not in files:
        return ""
    with files["README.md"].open("rb") as stream:
        text = stream.read(_HEAD).decode("utf-8", "replace").replace("\r\n", "\n")
    front = _FRONT_MATTER.match(text)
    found = _LICENSE_KEY.search(front[1]) if front else None
    return found[1] if found else ""
