"""Attacks by a delta: its list is signed by nobody, so whatever it says must be refused or do no harm."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from manifests.tarlayout import BLOCK, member_header
from tests.factories import make_manifest, sign_slot, unpack_bundle
from tests.factories_media import delta_bytes, delta_text
from tests.hostile.frames import altered
from tests.hostile.lab import FILES, MANIFEST, WHEEL, Attack, Lab, Outcome, Stage, padding

BASE: Final = make_manifest({path: data for path, data in FILES.items() if path != WHEEL}, version="0.9.0")
_PATHS: Final = [entry.path for entry in MANIFEST.files]
CARRIED: Final = [n for n, path in enumerate(_PATHS) if path.startswith("bootstrap/") or path == WHEEL]
TEXT: Final = delta_text(BASE, CARRIED)
_ALL: Final = list(range(len(_PATHS)))
NO_BASE: Final = Outcome(code=5, words="is a delta to version 0.9.0, manifest digest ")
_UNREHEARSED: Final = Outcome(code=2, words="is a delta to version 0.9.0, manifest digest ")
_NEEDS_BASE: Final = {"install": NO_BASE, "preflight": NO_BASE, "rehearse": _UNREHEARSED}


def delta(lab: Lab, text: bytes = TEXT, carried: Sequence[int] = CARRIED) -> bytes:
    """Return a delta to :data:`BASE` with any list and any members."""
    return delta_bytes(MANIFEST, FILES, sign_slot(MANIFEST.encode(), lab.key), text, carried)


def _listed(name: str, did: str, words: str, text: bytes) -> Attack:
    """Return an attack by a list that can't be one, so that nothing opens the bundle."""
    return Attack(name=name, did=did, build=lambda lab: lab.write(delta(lab, text)), stage=Stage.OPEN, words=words)


def _changed(name: str, did: str, words: str, old: bytes, new: bytes) -> Attack:
    assert old in TEXT
    return _listed(name, did, words, TEXT.replace(old, new))


def _laid(
    name: str,
    did: str,
    words: str,
    build: Callable[[Lab], bytes],
    others: Mapping[str, Outcome] | None = None,
) -> Attack:
    """Return an attack by members that aren't those of the list."""
    known = {"preflight": NO_BASE} if others is None else others
    return Attack(
        name=name, did=did, build=lambda lab: lab.write(build(lab)), stage=Stage.LAYOUT, words=words, others=known
    )


def _spliced(lab: Lab, start: int, end: int, data: bytes) -> bytes:
    """Return the delta with other bytes at offsets that count from the list's header."""
    whole, zero = delta(lab), lab.layout.list_offset
    return whole[: zero + start] + data + whole[zero + end :]


def _head(name: str, did: str, words: str, build: Callable[[Lab], bytes]) -> Attack:
    return Attack(name=name, did=did, build=lambda lab: lab.write(build(lab)), stage=Stage.OPEN, words=words)


def _content(lab: Lab) -> Path:
    data = delta(lab)
    position = data.index(FILES[WHEEL])
    return lab.write(data[:position] + b"!" + data[position + 1 :])


def _folder(lab: Lab) -> Path:
    tar = lab.write(delta(lab))
    folder = unpack_bundle(tar, lab.folder / "unpacked")
    tar.unlink()
    return folder


def _linked(lab: Lab) -> Path:
    folder = _folder(lab)
    target = lab.folder.parent / "operator" / "list"
    (folder / "delta.json").rename(target)
    (folder / "delta.json").symlink_to(target)
    return folder


def _huge_folder(lab: Lab) -> Path:
    folder = _folder(lab)
    os.truncate(folder / "delta.json", 1_000_000_000)
    return folder


def _extra_in_folder(lab: Lab) -> Path:
    folder = _folder(lab)
    (folder / "models").mkdir()
    (folder / "models" / "evil.bin").write_bytes(b"evil")
    return folder


_HEADER: Final = member_header("delta.json", len(TEXT), 0o644)
_RISE: Final = "indices are integers that rise, each once"

LISTS: Final = (
    _changed(
        "delta-type", "called the list another version's", "_type is 'urn:sealift:delta:2'", b"delta:1", b"delta:2"
    ),
    _changed("delta-key-unknown", "added a key to the list", "unknown key", b'"base"', b'"aaaa":1,"base"'),
    _changed("delta-base-short", "shortened the base's digest", "does not have the form", b'"base":"', b'"base":"0'),
    _changed(
        "delta-base-escape",
        "hid terminal codes in the base's version",
        "does not have the form",
        b'"0.9.0"',
        b'"\\u001b[2J"',
    ),
    _changed("delta-index-twice", "named a file twice", _RISE, b'"carried":[0,', b'"carried":[0,0,'),
    _changed("delta-index-falls", "named files out of order", _RISE, b'"carried":[0,1', b'"carried":[1,0'),
    _changed("delta-index-negative", "named file -1", _RISE, b'"carried":[0,', b'"carried":[-1,0,'),
    _changed("delta-index-float", "named file 0.0", "is not an integer", b'"carried":[0,', b'"carried":[0.0,'),
    _changed("delta-index-text", "named a file by a string", _RISE, b'"carried":[0,', b'"carried":["0",'),
    _changed("delta-index-2-to-63", "named file 2^63", "is outside 53 bits", b"]", b",9223372036854775808]"),
    _listed("delta-spaces", "spelled the list another way", "not canonical JSON", TEXT.replace(b":", b": ")),
    _listed("delta-deep", "nested the list 100,000 levels", "nested deeper than", b"[" * 100_000),
    _listed("delta-empty", "sent an empty list file", "not canonical JSON", b""),
    _listed("delta-no-table", "sent a list that is a list", "_type is 'None'", b"[]\n"),
)

HEADS: Final = (
    _head(
        "delta-1-gb",
        "sent a list of 1 GB",
        "delta.json has 1000000000 bytes, at most 1000000",
        lambda lab: _spliced(lab, 0, BLOCK, member_header("delta.json", 1_000_000_000, 0o644)),
    ),
    _head(
        "delta-link",
        "made the list a link",
        "the header of delta.json was changed",
        lambda lab: _spliced(lab, 0, BLOCK, altered(_HEADER, type=b"2", linkname=b"/etc/passwd")),
    ),
    _head(
        "delta-size-long",
        "claimed a longer list",
        "truncated within delta.json",
        lambda lab: delta(lab)[: lab.layout.list_offset] + member_header("delta.json", 900_000, 0o644) + TEXT,
    ),
    _head(
        "delta-padding",
        "hid bytes behind the list",
        "the padding behind delta.json was changed",
        lambda lab: _spliced(lab, BLOCK + len(TEXT), BLOCK + len(TEXT) + 4, b"evil"),
    ),
    _head(
        "delta-cut",
        "cut it within the list",
        "truncated within delta.json",
        lambda lab: delta(lab)[: lab.layout.list_offset + BLOCK + 10],
    ),
    Attack(
        name="delta-folder-link",
        did="made the list of a folder a link",
        build=_linked,
        stage=Stage.OPEN,
        words="is a link or not a regular file",
    ),
    Attack(
        name="delta-folder-1-gb",
        did="sent a folder with a list of 1 GB",
        build=_huge_folder,
        stage=Stage.OPEN,
        words="1000000000 bytes, at most 1000000 are allowed",
    ),
)

LAYOUTS: Final = (
    _laid(
        "delta-out-of-range",
        "named a file beyond the manifest",
        "the manifest has ",
        lambda lab: delta(lab, delta_text(BASE, [*_ALL, len(_ALL)]), _ALL),
        {},
    ),
    _laid(
        "delta-no-bootstrap",
        "left the verifier out",
        "a delta carries all of bootstrap/",
        lambda lab: delta(lab, delta_text(BASE, CARRIED[1:]), CARRIED[1:]),
    ),
    _laid("delta-fewer", "carried less than its list says", "truncated: ", lambda lab: delta(lab, TEXT, CARRIED[:-1])),
    _laid(
        "delta-more",
        "carried more than its list says",
        " bytes after its end, expected ",
        lambda lab: delta(lab, TEXT, [*CARRIED, len(_ALL) - 1]),
    ),
    _laid(
        "delta-other-file",
        "carried another file of the same size",
        "header or padding changed at byte ",
        lambda lab: delta(
            lab,
            delta_text(BASE, [*CARRIED, _PATHS.index("models/tiny/one.bin")]),
            [*CARRIED, _PATHS.index("models/tiny/two.bin")],
        ),
    ),
    _laid(
        "delta-two-lists",
        "sent a second list",
        " bytes after its end, expected ",
        lambda lab: _spliced(lab, 0, 0, _HEADER + TEXT + padding(TEXT)),
    ),
    Attack(
        name="delta-folder-extra",
        did="put a file into a folder that its list doesn't name",
        build=_extra_in_folder,
        stage=Stage.LAYOUT,
        words="models/evil.bin: not in delta.json",
        others={"preflight": NO_BASE},
    ),
)

CONTENTS: Final = (
    Attack(
        name="delta-content",
        did="changed a file that a delta carries",
        build=_content,
        stage=Stage.CONTENT,
        words=f"{WHEEL}: expected sha256 ",
        others=_NEEDS_BASE,
    ),
    Attack(
        name="delta-leaves-out",
        did="left out what no base has",
        build=lambda lab: lab.write(delta(lab)),
        stage=Stage.CONTENT,
        words=NO_BASE.words,
        others={**_NEEDS_BASE, "verify": Outcome(code=0, words="were not looked at, since it doesn't carry them")},
    ),
)

DELTA_ATTACKS: Final = (*LISTS, *HEADS, *LAYOUTS, *CONTENTS)
