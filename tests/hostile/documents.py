"""Attacks on manifest.json itself, signed by a key that is trusted: the signer was tricked, or is the attacker."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from manifests.digests import CHUNK_SIZE, sha256_hex
from tests.hostile.lab import MANIFEST, Attack, Lab, Stage

_HEX: Final = sha256_hex(b"")


def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(MANIFEST.encode())
    return document


def _spelled(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _raw(name: str, did: str, words: str, change: Callable[[bytes], bytes]) -> Attack:
    """Return an attack on the bytes."""

    def build(lab: Lab) -> Path:
        return lab.signed(change(MANIFEST.encode()))

    return Attack(name=name, did=did, build=build, stage=Stage.MANIFEST, words=words)


def _tree(name: str, did: str, words: str, change: Callable[[dict[str, Any]], object]) -> Attack:
    """Return an attack on the content, in canonical spelling."""

    def spoil(_: bytes) -> bytes:
        document = _document()
        change(document)
        return _spelled(document)

    return _raw(name, did, words, spoil)


def _entry(path: str, **other: object) -> dict[str, object]:
    kinds = {"bootstrap": "bootstrap", "wheels": "wheel", "models": "model", "app": "app", "config": "config"}
    kind = kinds.get(path.split("/", maxsplit=1)[0], "doc")
    entry = {"kind": kind, "mode": "0644", "origin": "", "path": path, "sha256": _HEX, "size": 0}
    return entry | other


def _path(name: str, did: str, words: str, *paths: str, **other: object) -> Attack:
    """Return an attack by the paths of files."""

    def change(document: dict[str, Any]) -> None:
        document["files"] = [_entry(path, **other) for path in paths]

    return _tree(name, did, words, change)


def _field(name: str, did: str, words: str, /, **fields: object) -> Attack:
    """Return an attack by one file's other fields."""
    return _path(name, did, words, "docs/a.md", **fields)


def _top(name: str, did: str, words: str, /, **fields: object) -> Attack:
    """Return an attack by keys of the document."""
    return _tree(name, did, words, lambda document: document.update(fields))


def _replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert data.count(old) >= 1, old
        return data.replace(old, new, 1)

    return change


_SEQUENCE: Final = b'"sequence":1767323045'
_OTHER: Final = "not canonical JSON: its bytes differ"

SPELLINGS: Final = (
    _raw(
        "json-duplicate-key",
        "named a key twice, for parsers that disagree which counts",
        "duplicate key 'name'",
        _replaced(b'"name":"demo",', b'"name":"demo","name":"demo",'),
    ),
    _raw(
        "json-duplicate-path",
        "named a file's path twice",
        "duplicate key 'path'",
        _replaced(b'"path":', b'"path":"docs/x","path":'),
    ),
    _raw("json-float", "wrote a float", "1.5 is not an integer", _replaced(_SEQUENCE, b'"sequence":1.5')),
    _raw("json-exponent", "wrote an exponent", "1e3 is not an integer", _replaced(_SEQUENCE, b'"sequence":1e3')),
    _raw("json-nan", "wrote NaN", "NaN is not an integer", _replaced(_SEQUENCE, b'"sequence":NaN')),
    _raw("json-infinity", "wrote Infinity", "-Infinity is not", _replaced(_SEQUENCE, b'"sequence":-Infinity')),
    _raw("json-minus-zero", "wrote -0", _OTHER, _replaced(_SEQUENCE, b'"sequence":-0')),
    _raw(
        "json-2-to-63",
        "a sequence that wraps a signed integer",
        "outside 53 bits",
        _replaced(b"1767323045", b"9223372036854775808"),
    ),
    _raw("json-minus-2-to-63", "a negative one", "outside 53 bits", _replaced(b"1767323045", b"-9223372036854775808")),
    _raw(
        "json-2-to-53",
        "a sequence that doubles round",
        "outside 53 bits",
        _replaced(b"1767323045", b"9007199254740992"),
    ),
    _raw(
        "json-long-integer", "an integer of 100,000 digits", "outside 53 bits", _replaced(b"1767323045", b"9" * 100_000)
    ),
    _raw("json-bom", "put a byte order mark in front", "not canonical JSON", lambda data: b"\xef\xbb\xbf" + data),
    _raw("json-utf16", "encoded it as UTF-16", "not canonical JSON", lambda data: data.decode().encode("utf-16")),
    _raw(
        "json-raw-utf8",
        "left Korean unescaped",
        "not canonical JSON",
        lambda data: (
            json.dumps(json.loads(data), ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        ),
    ),
    _raw("json-spaces", "put a space after a comma", _OTHER, _replaced(b'","', b'", "')),
    _raw("json-no-newline", "took the last newline away", _OTHER, lambda data: data[:-1]),
    _raw("json-two-newlines", "ended with two newlines", _OTHER, lambda data: data + b"\n"),
    _raw(
        "json-trailing-data", "added a second document", "not canonical JSON: Extra data", lambda data: data + b"{}\n"
    ),
    _raw("json-nul-tail", "hid bytes behind a NUL", "not canonical JSON: Extra data", lambda data: data + b"\0evil"),
    _raw(
        "json-key-order",
        "wrote the keys in another order",
        _OTHER,
        lambda data: json.dumps(dict(reversed(json.loads(data).items())), separators=(",", ":")).encode() + b"\n",
    ),
    _raw("json-escape-case", "escaped with upper-case digits", _OTHER, _replaced(b"\\ud55c", b"\\uD55C")),
    _raw("json-escaped-slash", "escaped a slash", _OTHER, _replaced(b"docs/", b"docs\\/")),
    _raw("json-comment", "wrote a comment", "not canonical JSON", lambda data: b"/* */" + data),
    _raw("json-empty", "left it empty", "not canonical JSON", lambda _: b""),
    _raw("json-list", "made it a list", "_type is 'None'", lambda _: b"[]\n"),
    _raw("json-deep-17", "nested one level too deep", "nested deeper than 16", lambda _: b"[" * 17 + b"]" * 17 + b"\n"),
    _raw(
        "json-deep-100000",
        "nested until parsers crash",
        "nested deeper than 16",
        lambda _: b"[" * 100_000 + b"]" * 100_000 + b"\n",
    ),
    _raw("json-lone-surrogate", "wrote half a character", "not canonical JSON", _replaced(b"\\ud55c", b"\\ud800")),
)

FIELDS: Final = (
    _top(
        "type-other",
        "called it another kind of document",
        "_type is 'urn:sealift:bundle-manifest:2'",
        _type="urn:sealift:bundle-manifest:2",
    ),
    _tree("type-missing", "left out the type", "_type is 'None'", lambda document: document.pop("_type")),
    _tree(
        "key-missing",
        "left out the models",
        "a key is missing or written in a form",
        lambda document: document.pop("models"),
    ),
    _tree(
        "key-missing-name", "left out the name", "manifest.json: name: missing", lambda document: document.pop("name")
    ),
    _top("key-unknown", "added a key that only his reader knows", "evil: unknown key", evil=1),
    _top("key-unknown-escape", "added a key that paints the terminal", "'\\x1b[31m': unknown key", **{"\x1b[31m": 1}),
    _top("files-null", "wrote null for the files", "files: expected a list, got nothing", files=None),
    _top("name-traversal", "named the bundle ../../etc", "does not have the form", name="../../etc"),
    _top("version-traversal", "named the version ../1", "does not have the form", version="../1"),
    _top("version-newline", "ended the version with a newline", "does not have the form", version="1.0\n"),
    _top("created-impossible", "made it on the 31st of February", "is not a time", created="2026-02-31T00:00:00Z"),
    _top("sequence-negative", "counted backwards", "-1 is less than 0", sequence=-1),
    _top("sequence-boolean", "counted with true", "expected an integer, got a boolean", sequence=True),
    _tree(
        "target-slash",
        "hid a path in the platform",
        "does not have the form",
        lambda d: d["target"].update(platform="a/../b"),
    ),
    _tree(
        "target-python-2", "asked for Python 2", "does not have the form", lambda d: d["target"].update(python="2.7")
    ),
    _tree(
        "needs-negative",
        "needed less than nothing",
        "-1 is less than 0",
        lambda d: d["requires"]["minimum"].update(memory=-1),
    ),
    _top(
        "model-without-files",
        "listed a model that isn't there",
        "model 'ghost' has no files",
        models=[
            {"adapter": "hcx", "format": "x", "name": "ghost", "origin": "", "path": "models/ghost", "settings": {}}
        ],
    ),
    _top(
        "model-path-elsewhere",
        "pointed a model at /etc",
        "path: '/etc' is not one of models/ghost",
        models=[{"adapter": "hcx", "format": "x", "name": "ghost", "origin": "", "path": "/etc", "settings": {}}],
    ),
    _top(
        "app-elsewhere",
        "pointed an application outside",
        "app 'a' has no files at '..'",
        app=[{"name": "a", "origin": "", "path": ".."}],
    ),
    _top(
        "probe-unknown-model",
        "asked a model that isn't there",
        "a probe asks the unknown model 'ghost'",
        probes=[{"expect": None, "inputs": ["?"], "kind": "chat", "model": "ghost"}],
    ),
    _field("size-negative", "a file of -1 bytes", "size: -1 is less than 0", size=-1),
    _field("size-text", "a size in quotes", "expected an integer, got a string", size="0"),
    _field("size-2-to-63", "a size that wraps", "outside 53 bits", size=2**63),
    _field("size-2-to-64", "a size that wraps to zero", "outside 53 bits", size=2**64),
    _field("mode-setuid", "set the set-user-ID bit", "'4755' is not one of 0644, 0755", mode="4755"),
    _field("mode-world-writable", "let everybody write", "'0777' is not one of 0644, 0755", mode="0777"),
    _field("mode-number", "wrote the mode as a number", "mode: expected a string, got an integer", mode=420),
    _field("digest-upper", "wrote a digest in upper case", "does not have the form", sha256="AB" * 32),
    _field("digest-short", "shortened a digest", "does not have the form", sha256="ab" * 16),
    _field("kind-unknown", "invented a kind of file", "is not one of bootstrap", kind="hook"),
    _field("kind-elsewhere", "put a wheel among the docs", "of kind wheel, so it must lie in wheels/", kind="wheel"),
    _field("key-unknown-file", "added a link target to a file", "files[0].link: unknown key", link="/etc/passwd"),
    _field("chunks-for-small", "gave chunks to a small file", "1 chunk digests for 0 bytes", chunks=[_HEX]),
    _field(
        "chunks-missing", "left the chunks of a big file out", "0 chunk digests for 67108865 bytes", size=CHUNK_SIZE + 1
    ),
    _field("chunks-too-few", "listed a chunk less", "1 chunk digests for 67108865", size=CHUNK_SIZE + 1, chunks=[_HEX]),
    _field(
        "chunks-too-many", "listed a chunk more", "3 chunk digests for 67108865", size=CHUNK_SIZE + 1, chunks=[_HEX] * 3
    ),
    _field(
        "chunks-not-hex",
        "a chunk's digest is a path",
        "not 64 lower-case hex",
        size=CHUNK_SIZE + 1,
        chunks=[_HEX, "../" * 21 + "a"],
    ),
)

PATHS: Final = (
    _path("path-traversal", "climbed out of the release", "has the component '..'", "docs/../../../etc/cron.d/evil"),
    _path("path-absolute", "named an absolute path", "has the component ''", "/etc/passwd"),
    _path("path-backslash", "climbed with backslashes", "has the character '\\\\'", "docs/..\\..\\evil"),
    _path("path-drive", "named a Windows drive", "has the character ':'", "docs/C:/evil"),
    _path("path-stream", "named an NTFS stream", "has the character ':'", "docs/a.txt:hidden"),
    _path("path-empty-component", "doubled a slash", "has the component ''", "docs//a.md"),
    _path("path-dot-component", "hid a duplicate behind a dot", "has the component '.'", "docs/./a.md"),
    _path("path-trailing-slash", "ended a path like a folder's", "has the component ''", "docs/a/"),
    _path("path-nul", "hid an ending behind a NUL", "control or invisible character", "docs/a.md\0.exe"),
    _path("path-newline", "broke a line of SHA256SUMS", "control or invisible character", "docs/a\nb"),
    _path("path-escape", "painted the terminal", "control or invisible character", "docs/\x1b]0;evil\x07"),
    _path("path-bidi", "turned a name's end around", "control or invisible character", "docs/\u202egnp.exe"),
    _path("path-zero-width", "made two names look the same", "control or invisible character", "docs/a\u200b.md"),
    _path("path-line-separator", "used another line end", "control or invisible character", "docs/a\u2028b"),
    _path("path-nfd", "decomposed a name", "not in Unicode normal form NFC", "docs/cafe\u0301.md"),
    _path("path-surrogate", "used half a character", "not canonical JSON", "docs/\ud800.md"),
    _path(
        "path-case-collision",
        "two names that Windows takes for one",
        "can't exist side by side",
        "docs/Model.bin",
        "docs/model.bin",
    ),
    _path(
        "path-fold-collision",
        "two names that fold to one",
        "can't exist side by side",
        "docs/STRASSE",
        "docs/stra\u00dfe",
    ),
    _path("path-folder-case", "one folder in two spellings", "can't exist side by side", "docs/Lib/a", "docs/lib/b"),
    _path("path-file-and-folder", "a file that is a folder too", "can't exist side by side", "docs/a", "docs/a/b"),
    _path("path-device", "named a Windows device", "Windows device name 'CON'", "docs/CON"),
    _path("path-device-ending", "named one with an ending", "Windows device name 'aux.txt'", "docs/aux.txt"),
    _path("path-device-superscript", "named one with a superscript", "Windows device name", "docs/COM\u00b9"),
    _path("path-trailing-dot", "a dot that Windows drops", "ends with a dot", "docs/a.md."),
    _path("path-trailing-space", "a space that Windows drops", "begins or ends with a space", "docs/a.md "),
    _path("path-long-component", "a name of 256 bytes", "component longer than 255 bytes", f"docs/{'a' * 256}"),
    _path("path-long", "a path of more than 1,024 bytes", "longer than 1024 bytes", "docs/" + "a/" * 520 + "b"),
    _path("path-duplicate", "the same path twice", "duplicate or out of order", "docs/a.md", "docs/a.md"),
    _path("path-out-of-order", "files in another order", "duplicate or out of order", "docs/b", "docs/a"),
    _path("path-other-folder", "a folder of its own", "so it must lie in docs/", "etc/passwd"),
    _path("path-over-manifest", "a file where the manifest lies", "so it must lie in docs/", "manifest.json"),
    _path("path-over-receipt", "a file where the receipt lies", "so it must lie in docs/", "receipt.json"),
    _path("path-into-venv", "a file inside the environment", "so it must lie in docs/", "venv/lib/evil.pth"),
)

DOCUMENT_ATTACKS: Final[tuple[Attack, ...]] = (*SPELLINGS, *FIELDS, *PATHS)
