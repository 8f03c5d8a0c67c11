"""What is told of the evidence of a rehearsal: all that it says it isn't, and nothing of what can't be believed."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from bundler.rehearsal.evidence import Rehearsal, evidence_document, evidence_path, write_evidence
from bundler.review.rehearsed import EvidenceSource, evidence_lines, find_evidence, read_evidence
from bundler.review.report import ReportOptions, make_report
from bundler.review.reportpage import render_page
from bundler.review.summary import inspect_bundle
from bundler.sealing.keys import allowed_signers_line, load_signer
from bundler.store import Store
from manifests.canonical import Json, encode_canonical
from manifests.errors import UsageError
from manifests.manifest import TIME_PATTERN, ModelEntry, manifest_digest
from manifests.pieces import Silent
from manifests.rehearsal import RecordedAgreement, RehearsalPlan
from manifests.sshsig import BUNDLE_NAMESPACE
from manifests.trust import TrustRoot, parse_allowed_signers
from tests.factories import SMALL_FILES, Key, make_bundle, make_manifest, unpack_bundle
from tests.factories_review import Sources, clean_lock, make_bundle_of

NOW: Final = datetime(2026, 2, 1, tzinfo=UTC)
MODEL: Final = ModelEntry(name="tiny", adapter="bge-m3", path="models/tiny", format="safetensors", origin="dir")
ASKED: Final[Mapping[str, Any]] = {
    "answers": [{"vectors": []}],
    "compared": 0,
    "device": "cpu",
    "dtype": "float32",
    "name": "tiny",
    "probes": 1,
    "problems": [],
    "seconds": "0.1",
    "worst": "",
}
ATTEMPT: Final[Mapping[str, Any]] = {
    "address": "t.example:80",
    "allowed": "counts nothing",
    "callers": [],
    "event": "socket.connect",
    "module": "phone",
}
DONE: Final = Rehearsal(
    isolation="network namespace (unshare)",
    is_closed=True,
    user="ordinary",
    steps={"install": "1.0"},
    kernel={"install": 0},
    found={"attempts": [ATTEMPT], "imports": ["six", "click"], "models": [ASKED], "versions": {"torch": "2"}},
)
FOREIGN: Final = Rehearsal(
    reason="the bundle is for another",
    host_wheels={"models": [ASKED], "attempts": [], "versions": {"torch": "2", "transformers": "5"}},
)
NOT_COMPARED: Final = "model tiny: its answers were not compared, none are recorded"


@pytest.fixture
def bundle(tmp_path: Path, key: Key) -> Path:
    """A signed bundle with a model, nothing beside it."""
    return make_bundle(tmp_path, SMALL_FILES, key=key, models=(MODEL,))


DIGEST: Final = manifest_digest(make_manifest(SMALL_FILES, models=(MODEL,)).encode())


def document_of(done: Rehearsal, **changes: Json) -> dict[str, Json]:
    return {**evidence_document(make_manifest(SMALL_FILES, models=(MODEL,)), DIGEST, done), **changes}


def file_beside(bundle: Path, document: Mapping[str, Json], key: Key | None = None) -> Path:
    path = evidence_path(bundle.name, bundle.parent)
    write_evidence(path, document, load_signer(key.path) if key else None)
    return path


def trust_of(key: Key) -> TrustRoot:
    """Return the trust in a key as ``bundler keygen`` writes it, for bundles and rehearsals."""
    return parse_allowed_signers(allowed_signers_line(key.public, key.identity), where="trust")


def told_of(bundle: Path) -> tuple[Any, list[str]]:
    told: Any = inspect_bundle(bundle)["rehearsal"]
    return told, list(evidence_lines(told))


def test_what_a_rehearsal_did_and_did_not(bundle: Path, key: Key) -> None:
    path = file_beside(bundle, document_of(DONE), key)
    told, lines = told_of(bundle)
    time = told["time"]
    assert told == {
        "asked": [{"compared": 0, "name": "tiny", "probes": 1, "problems": [], "where": "bundle"}],
        "attempts": 1,
        "imports": 2,
        "isolation": "network namespace (unshare)",
        "not_rehearsed": [NOT_COMPARED],
        "path": path.name,
        "present": True,
        "problem": "",
        "rehearsed": True,
        "signature_problem": "",
        "signatures": [{"fingerprint": key.public.fingerprint, "fits": True, "type": "ssh-ed25519"}],
        "signers": [],
        "time": time,
        "verified": None,
    }
    assert lines == [
        f"rehearsed {time}, says {path.name}, whose signature {key.public.fingerprint} fits it",
        f"  not rehearsed: {NOT_COMPARED}",
    ]
    assert json.loads(path.read_text())["models"][0].get("answers") is None


def test_what_was_asked_on_other_wheels_is_told_as_that(bundle: Path) -> None:
    path = file_beside(bundle, document_of(FOREIGN))
    told, lines = told_of(bundle)
    assert [(item["name"], item["where"]) for item in told["asked"]] == [("tiny", "host")]
    assert lines == [
        f"NOT rehearsed {told['time']}, says {path.name}, not signed",
        "  not rehearsed: the bundle is for another: installation, imports and network",
        (
            "  not rehearsed: the bundle is for another: model tiny, adapter bge-m3; on this host's own wheels, "
            "not the target's (torch 2, transformers 5), it loaded and answered 1 probes, 0 as recorded"
        ),
    ]


def test_volumes_and_folders_have_the_same_evidence(bundle: Path, tmp_path: Path) -> None:
    path = file_beside(bundle, document_of(DONE))
    stem = bundle.name.removesuffix(".bundle.tar")
    assert find_evidence(bundle.with_name(f"{bundle.name}.001"), stem) == path
    assert find_evidence(bundle.with_name("renamed.tar"), stem) == path
    folder = unpack_bundle(bundle, tmp_path / "unpacked")
    rehearsal: Any = inspect_bundle(folder)["rehearsal"]
    assert rehearsal["rehearsed"] is True


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda _: b"no json", "the evidence: not canonical JSON: Expecting value: line 1 column 1 (char 0)"),
        (
            lambda document: encode_canonical({**document, "digest": "0" * 64}),
            f"the evidence: is about another bundle, manifest digest {'0' * 64}",
        ),
        (lambda document: encode_canonical({**document, "_type": "x"}), "the evidence: not of this Sealift"),
        (lambda document: encode_canonical({**document, "more": 1}), "the evidence: more: unknown key"),
        (
            lambda document: encode_canonical({**document, "not_rehearsed": ["\x1b[2Jall is well"]}),
            "the evidence: '\\x1b[2Jall is well' isn't text that can be shown",
        ),
        (
            lambda document: encode_canonical({**document, "time": "yesterday"}),
            f"the evidence: time: 'yesterday' does not have the form {TIME_PATTERN}",
        ),
        (lambda _: b"x" * (4 * 1024 * 1024 + 7), "the evidence: 4194305 bytes, at most 4194304 are allowed"),
    ],
)
def test_evidence_that_says_nothing(
    bundle: Path, key: Key, spoil: Callable[[Mapping[str, Json]], bytes], problem: str
) -> None:
    document = document_of(DONE)
    path = file_beside(bundle, document, key)
    path.write_bytes(spoil(document))
    told, lines = told_of(bundle)
    assert (told["rehearsed"], told["asked"], told["imports"], told["problem"]) == (False, [], 0, problem)
    assert lines == [f"NOT rehearsed as far as is known: {path.name}: {problem}"]


def test_a_link_is_no_evidence(bundle: Path, tmp_path: Path) -> None:
    path = evidence_path(bundle.name, bundle.parent)
    path.symlink_to(tmp_path / "elsewhere")
    told, _ = told_of(bundle)
    assert (told["present"], told["problem"]) == (True, f"{path}: is a link or not a regular file")


def test_whose_word_it_is(bundle: Path, key: Key, second_key: Key, tmp_path: Path) -> None:
    path = evidence_path(bundle.name, bundle.parent)
    trusting = EvidenceSource(trust=trust_of(key), now=NOW)

    def read() -> tuple[object, object, object]:
        told = read_evidence(path, DIGEST, trusting)
        return told["verified"], told["signers"], told["signature_problem"]

    file_beside(bundle, document_of(DONE))
    assert read() == (False, [], "it is not signed")
    file_beside(bundle, document_of(DONE), second_key)
    words = f"it has 0 of 1 trusted signatures; key {second_key.public.fingerprint} is not among the allowed signers"
    assert read() == (False, [], words)
    file_beside(bundle, document_of(DONE), key)
    assert read() == (True, [key.identity], "")
    narrow = read_evidence(path, DIGEST, EvidenceSource(trust=key.trust, now=NOW))
    words = f"key {key.public.fingerprint} ({key.identity}) is not allowed in namespace sealift-rehearsal-v1"
    assert narrow["signature_problem"] == f"it has 0 of 1 trusted signatures; {words}", "trusted for bundles alone"
    path.write_bytes(path.read_bytes().replace(b'"rehearsed":true', b'"rehearsed":false'))
    who = f"{key.identity} ({key.public.fingerprint})"
    assert read() == (False, [], f"the signature by {who} does not fit the evidence: one of the two was changed")
    signature = path.with_name(f"{path.name}.sig")
    signature.write_bytes(load_signer(key.path).sign(path.read_bytes(), BUNDLE_NAMESPACE))
    assert "signed for namespace 'sealift-bundle-v1', expected 'sealift-rehearsal-v1'" in str(read()[2])
    signature.write_bytes(b"junk")
    assert read()[0] is False
    with pytest.raises(UsageError, match=r"/none\.json: no such evidence$"):
        read_evidence(tmp_path / "none.json", DIGEST, EvidenceSource(path=tmp_path / "none.json"))


def test_the_report_says_it(tmp_path: Path, key: Key) -> None:
    sources = Sources(store=Store(tmp_path / "cache"), folder=tmp_path / "files")
    lock = clean_lock(sources)
    tar, manifest = make_bundle_of(lock, sources.store, tmp_path / "clean.bundle.tar", key)
    options = ReportOptions(now=NOW, trust=trust_of(key))
    bare = make_report(tar, options, Silent())
    assert bare.worst is None
    page = render_page(bare.document)
    assert ">Not rehearsed</span>" in page
    assert "There is no evidence of a rehearsal." in page
    document = evidence_document(manifest, manifest_digest(manifest.encode()), DONE)
    write_evidence(evidence_path(tar.name, tmp_path), document, load_signer(key.path))
    page = render_page(make_report(tar, options, Silent()).document)
    assert ">Rehearsed in part</span>" in page
    assert f"<li>{NOT_COMPARED}</li>" in page
    assert f'Evidence signed by</span><span lang="ko">증거 서명자</span> {key.identity}' in page
    assert '2 <span lang="en">modules imported,</span>' in page
    assert '1 <span lang="en">attempts at the network, each excused in the signed manifest.</span>' in page
    elsewhere = evidence_document(manifest, manifest_digest(manifest.encode()), FOREIGN)
    write_evidence(tmp_path / "other.json", elsewhere, None)
    page = render_page(make_report(tar, replace(options, evidence=tmp_path / "other.json"), Silent()).document)
    assert ">Not rehearsed</span>" in page
    assert "the rehearsing host&#39;s own wheels, not the target&#39;s</span>" in page
    assert "The evidence is signed by nobody who is trusted</span>" in page
    assert ": it is not signed" in page
    assert ">no attempt at the network.</span>" in page


@pytest.mark.parametrize("measured", [True, False])
def test_how_far_8_bit_numbers_are_from_exact_ones(tmp_path: Path, key: Key, *, measured: bool) -> None:
    sources = Sources(store=Store(tmp_path / "cache"), folder=tmp_path / "files")
    lock = clean_lock(sources)
    (model,) = lock.models
    found = RecordedAgreement(texts=12, cosine_min="0.998700", cosine_mean="0.999100", top=10, overlap="0.9500")
    quick = replace(model, entry=replace(model.entry, adapter="bge-m3", settings={"performance": {"int8": True}}))
    plan = RehearsalPlan(agreement={"tiny": found} if measured else {})
    tar, _ = make_bundle_of(
        replace(lock, models=(quick,), rehearsal=plan), sources.store, tmp_path / "quick.bundle.tar", key
    )
    report = make_report(tar, ReportOptions(now=NOW), Silent())
    models: Any = report.document["models"]
    words = "12 texts, cosine at least 0.998700, on average 0.999100, 0.9500 of the nearest 10 in common"
    assert models[0]["int8"] == ({"measured": found.to_json(), "words": words} if measured else {"measured": None})
    page = render_page(report.document)
    assert "computes with 8-bit numbers (int8)." in page
    assert (words in page) is measured
    assert ("How far they are from exact ones was not measured" in page) is not measured
    plain, _ = make_bundle_of(lock, sources.store, tmp_path / "plain.bundle.tar", key)
    models = make_report(plain, ReportOptions(now=NOW), Silent()).document["models"]
    assert models[0]["int8"] is None
