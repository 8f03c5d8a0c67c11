"""What the evidence beside a bundle says of its rehearsal, and what it does not; it may be as hostile as the bundle.

Evidence that is missing, damaged or about another bundle says nothing: then nothing is known to have been rehearsed.
All else is shown together with whose word it is.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, cast

from bundler.rehearsal.evidence import EVIDENCE_TYPE, evidence_path
from manifests.canonical import Json, parse_canonical
from manifests.errors import IntegrityError, SealiftError, TrustError, UsageError
from manifests.fields import Fields, shown
from manifests.files import open_regular_fd
from manifests.manifest import TIME_PATTERN
from manifests.reference import Remote
from manifests.sshsig import REHEARSAL_NAMESPACE, parse_signatures
from manifests.trust import TrustRoot, verify_signatures

_LIMIT: Final = 4 * 1024 * 1024
_SIGNATURE_LIMIT: Final = 64 * 1024
_KEYS: Final = (
    *("_type", "agreement", "attempts", "bundle", "digest", "host", "host_wheels", "imports", "models"),
    *("not_rehearsed", "rehearsed", "steps", "time", "unroutable", "versions"),
)
_NOTHING: Final[Mapping[str, Json]] = {
    "asked": [],
    "attempts": 0,
    "imports": 0,
    "isolation": "",
    "not_rehearsed": [],
    "rehearsed": False,
    "time": "",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceSource:
    """Where the evidence is looked for, and whose signature on it counts.

    ``path`` None is beside the bundle; ``trust`` None leaves signatures unverified, ``now`` is when they are judged.
    """

    path: Path | None = None
    trust: TrustRoot | None = None
    now: datetime | None = None


def find_evidence(bundle: Path | Remote, stem: str) -> Path | None:
    """Return where the evidence about a bundle lies: beside it, named as it is, or by its ``stem`` if that is there.

    None for a bundle in a registry, which holds bundles alone.
    """
    if not isinstance(bundle, Path):
        return None
    named = evidence_path(bundle.name, bundle.parent)
    usual = bundle.absolute().parent / f"{stem}.rehearsal.json"
    return usual if not named.exists() and usual.exists() else named


def read_evidence(path: Path | None, digest: str, source: EvidenceSource) -> dict[str, Json]:
    """Return what the evidence at ``path`` says of the bundle with this manifest ``digest``, as a JSON document.

    ``present`` says whether there is a file, ``problem`` why it says nothing; ``signatures``, ``signers`` and
    ``verified`` are as of a bundle. The rest is of the evidence: ``rehearsed``, ``time``, ``isolation``, how many
    ``imports`` and ``attempts`` there were, ``asked`` models (``name``, ``probes``, ``compared``, ``problems``, and
    ``where`` they were asked: ``bundle`` or ``host``), and ``not_rehearsed``.

    Raises:
        UsageError: It was named, and isn't there.
        DiskError: It can't be read.
    """
    document = {**_NOTHING, **_unsigned(""), "path": "", "present": False, "problem": ""}
    if path is None:
        return document
    try:
        data = _read(path, _LIMIT)
        if data is None and source.path is not None:
            raise UsageError(f"{path}: no such evidence", hint="bundler rehearse BUNDLE --trust FILE --evidence FILE")
        if data is None:
            return document
        document |= {**_signatures(path, data, source), "path": path.name, "present": True}
        return document | _content(data, digest)
    except IntegrityError as error:
        return document | {"path": path.name, "present": True, "problem": error.message}


def _content(data: bytes, digest: str) -> dict[str, Json]:
    """Return what evidence says; what isn't as a rehearsal writes it is an IntegrityError."""
    what = "the evidence"
    value = parse_canonical(data, what=what, max_size=_LIMIT)
    _check_texts(value)
    fields = Fields(value, where=f"{what}: ", known=_KEYS)
    if fields.text("_type", "") != EVIDENCE_TYPE:
        raise IntegrityError(f"{what}: not of this Sealift")
    if fields.text("digest") != digest:
        raise IntegrityError(f"{what}: is about another bundle, manifest digest {shown(fields.text('digest'))}")
    own = Fields(fields.raw("host_wheels") or {}, where=fields.path("host_wheels"), known=("models", "versions"))
    return {
        "asked": [*_asked(fields, "bundle"), *_asked(own, "host")],
        "attempts": sum(1 for _ in fields.items("attempts")),
        "imports": len(fields.texts("imports", ())),
        "isolation": str(fields.mapping("host").get("isolation", "")),
        "not_rehearsed": list(fields.texts("not_rehearsed")),
        "rehearsed": fields.raw("rehearsed") is True,
        "time": fields.text("time", pattern=TIME_PATTERN),
    }


def _asked(fields: Fields, where: str) -> Iterator[dict[str, Json]]:
    known = ("compared", "device", "dtype", "name", "probes", "problems", "seconds", "worst")
    for place, item in fields.items("models"):
        model = Fields(item, where=place, known=known)
        yield {
            "compared": model.integer("compared"),
            "name": model.text("name"),
            "probes": model.integer("probes"),
            "problems": list(model.texts("problems", ())),
            "where": where,
        }


def _check_texts(value: Json) -> None:
    """Refuse texts that a terminal would interpret."""
    if isinstance(value, str):
        if not value.replace("\n", " ").isprintable():
            raise IntegrityError(f"the evidence: {shown(value)} isn't text that can be shown")
    elif isinstance(value, Mapping):
        _check_texts(list(value))
        _check_texts(list(value.values()))
    elif isinstance(value, Sequence):
        for item in value:
            _check_texts(item)


def _signatures(path: Path, data: bytes, source: EvidenceSource) -> dict[str, Json]:
    slot = _read(path.with_name(f"{path.name}.sig"), _SIGNATURE_LIMIT)
    if not slot:
        return _unsigned("" if source.trust is None else "it is not signed") | {"verified": _untrusted(source)}
    try:
        found = parse_signatures(slot)
    except TrustError as error:
        return _unsigned(error.message) | {"verified": _untrusted(source)}
    listed: list[Json] = [
        {"fingerprint": one.key.fingerprint, "fits": one.verifies(data, REHEARSAL_NAMESPACE), "type": one.key.type}
        for one in found
    ]
    told: dict[str, Json] = {"signature_problem": "", "signatures": listed, "signers": [], "verified": None}
    if source.trust is None or source.now is None:
        return told
    try:
        good = verify_signatures(data, slot, source.trust, namespace=REHEARSAL_NAMESPACE, now=source.now)
    except SealiftError as error:  # its words are about bundles
        words = error.message.replace("the bundle", "it").replace("the manifest", "the evidence")
        return told | {"signature_problem": words, "verified": False}
    return told | {"signers": [one.principals for one in good], "verified": True}


def _untrusted(source: EvidenceSource) -> bool | None:
    return None if source.trust is None else False


def _unsigned(problem: str) -> dict[str, Json]:
    return {"signature_problem": problem, "signatures": [], "signers": [], "verified": None}


def _read(path: Path, limit: int) -> bytes | None:
    """Return a file's bytes, at most one more than ``limit``; None where there is none."""
    if not os.path.lexists(path):
        return None
    with os.fdopen(open_regular_fd(path), "rb") as stream:
        return stream.read(limit + 1)


def evidence_lines(document: Mapping[str, Json]) -> Iterator[str]:
    """Yield the lines that a person reads of what :func:`read_evidence` returned."""
    if not document["present"]:
        yield "NOT rehearsed as far as is known: there is no evidence beside the bundle"
        return
    if document["problem"]:
        yield f"NOT rehearsed as far as is known: {document['path']}: {document['problem']}"
        return
    what = "rehearsed" if document["rehearsed"] else "NOT rehearsed"
    yield f"{what} {document['time']}, says {document['path']}, {signature_words(document)}"
    for words in cast("Sequence[str]", document["not_rehearsed"]):
        yield f"  not rehearsed: {words}"


def signature_words(document: Mapping[str, Json]) -> str:
    """Return in a few words whose word the evidence is."""
    if document["verified"]:
        return f"signed by {', '.join(cast('Sequence[str]', document['signers']))}"
    if document["verified"] is False:
        return f"which nobody who is trusted signed: {document['signature_problem']}"
    listed = cast("Sequence[Mapping[str, Json]]", document["signatures"])
    if not listed:
        return "not signed"
    fits = "fits it" if all(one["fits"] for one in listed) else "does NOT fit it"
    return f"whose signature {', '.join(str(one['fingerprint']) for one in listed)} {fits}"
