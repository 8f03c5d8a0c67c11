"""``bundler report``: what a security officer has to know of a bundle, as one page and as data.

It works from the bundle alone, which may be hostile: names and texts are shown, never believed; digests are those that
the contents had just now; and what could not be checked is said.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

from bundler.review.audit import Auditor
from bundler.review.diff import Described, diff_bundles, diff_lines
from bundler.review.findings import (
    Finding,
    Judged,
    built_findings,
    judge,
    license_findings,
    model_findings,
    native_findings,
    secret_findings,
    undeclared_findings,
)
from bundler.review.licenses import WheelReview, component_of, review_wheel
from bundler.review.payload import open_payload
from bundler.review.rehearsed import EvidenceSource, find_evidence, read_evidence
from bundler.review.sbom import SBOM_LIMIT, SBOM_PATH, Listed, ReadSbom, read_sbom, sbom_problem
from bundler.review.secretscan import find_secrets
from bundler.review.spdx import model_license
from bundler.snapshots.modelfacts import ModelFacts, find_facts_in
from manifests.bundle import carried_files, verify_content
from manifests.canonical import Json
from manifests.errors import IntegrityError, PolicyError, SealiftError, SourceError, TrustError, UsageError
from manifests.manifest import FileEntry, Manifest, ModelEntry, manifest_digest, parse_manifest
from manifests.medium import Medium, open_medium
from manifests.pieces import Progress
from manifests.policy import Policy, parse_policy
from manifests.rehearsal import declares_int8, plan_of
from manifests.sources import Supply
from manifests.sshsig import BUNDLE_NAMESPACE, parse_signatures
from manifests.trust import TrustRoot, verify_signatures

REPORT_TYPE: Final = "urn:sealift:report:1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """What a report is asked for.

    ``now`` is the time that signatures are judged by and that the report bears; ``base`` is the earlier delivery;
    ``trust`` None leaves signatures unverified; ``auditor`` None leaves vulnerabilities unchecked; ``evidence`` is the
    rehearsal's, None for what lies beside the bundle.
    """

    now: datetime
    base: Described | None = None
    trust: TrustRoot | None = None
    auditor: Auditor | None = None
    supply: Supply | None = None
    evidence: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A report: its document, and the worst that it has to say as an error (not raised), None if there is nothing."""

    document: Mapping[str, Json]
    worst: SealiftError | None


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What was found while reading. ``is_whole`` says that every byte on the medium was the manifest's."""

    manifest: Manifest
    policy: Policy
    sbom: ReadSbom | None = None
    sbom_problem: str = ""
    is_whole: bool = False
    reviews: dict[str, WheelReview]
    facts: dict[str, ModelFacts]
    findings: list[Finding]
    problems: list[str]
    unread: list[str]


def make_report(bundle: Path, options: ReportOptions, progress: Progress) -> Report:
    """Read a bundle and say what is in it.

    Args:
        bundle: A tar, a first volume or an unpacked folder.
        options: What else is to be said.
        progress: Told of every payload byte that is verified.

    Raises:
        UsageError: There is nothing at ``bundle``, or no evidence where it was said to be.
        IntegrityError: It is no bundle; damage to its files is part of the report.
        DiskError: It can't be read.
    """
    with open_medium(bundle, options.supply) as medium:
        manifest = parse_manifest(medium.manifest_bytes)
        rehearsal = _rehearsal(bundle, medium, manifest, options)
        seen = _read(medium, manifest, progress)
        signatures = _signatures(medium, options)
        audit = _audit(manifest, options, seen)
        judged = judge(seen.findings, seen.policy, manifest.created)
        document: dict[str, Json] = {
            **_heading(medium, manifest, options),
            "signatures": signatures,
            "rehearsal": rehearsal,
            "content": {
                "problems": list(seen.problems),
                "unread": list(seen.unread),
                "verified": seen.is_whole,
            },
            "sbom": {"present": seen.sbom is not None, "problem": seen.sbom_problem},
            "wheels": [_wheel(entry, seen) for entry in _wheel_entries(manifest)],
            "models": [_model(manifest, model.path, seen) for model in manifest.models],
            "other": [_plain(entry) for entry in manifest.files if entry.kind not in {"wheel", "model"}],
            "findings": [item.to_json() for item in judged],
            "waivers": [
                item.to_json() | {"expired": not item.holds(f"{options.now:%Y-%m-%d}")} for item in seen.policy.waivers
            ],
            "policy": dict(manifest.policy),
            "vulnerabilities": audit,
            "changes": _changes(manifest, medium, options),
        }
    return Report(document=document, worst=_worst(seen, signatures, judged))


def _heading(medium: Medium, manifest: Manifest, options: ReportOptions) -> dict[str, Json]:
    target = manifest.target
    delta = None if medium.delta is None else {"base": medium.delta.base, "version": medium.delta.base_version}
    return {
        "_type": REPORT_TYPE,
        "bundle": {
            "created": manifest.created,
            "delta": delta,
            "digest": manifest_digest(medium.manifest_bytes),
            "files": len(manifest.files),
            "name": manifest.name,
            "sequence": manifest.sequence,
            "size": manifest.payload_size,
            "stem": manifest.stem,
            "target": {"accelerator": target.accelerator, "platform": target.platform, "python": target.python},
            "version": manifest.version,
        },
        "reported": f"{options.now:%Y-%m-%dT%H:%M:%SZ}",
    }


def _rehearsal(bundle: Path, medium: Medium, manifest: Manifest, options: ReportOptions) -> Json:
    place = options.evidence or find_evidence(bundle, manifest.stem)
    source = EvidenceSource(path=options.evidence, trust=options.trust, now=options.now)
    return read_evidence(place, manifest_digest(medium.manifest_bytes), source)


def _signatures(medium: Medium, options: ReportOptions) -> dict[str, Json]:
    """Return whose signatures there are; ``verified`` is None where nobody said whom to trust."""
    try:
        found = parse_signatures(medium.signature_slot)
        problem = ""
    except TrustError as error:
        found, problem = (), error.message
    listed: list[Json] = [
        {
            "fingerprint": item.key.fingerprint,
            "fits": item.verifies(medium.manifest_bytes, BUNDLE_NAMESPACE),
            "type": item.key.type,
        }
        for item in found
    ]
    signers: list[Json] = []
    verified: bool | None = None
    if options.trust is not None:
        try:
            trusted = verify_signatures(
                medium.manifest_bytes, medium.signature_slot, options.trust, threshold=1, now=options.now
            )
            signers = [{"fingerprint": item.fingerprint, "principals": item.principals} for item in trusted]
            verified = True
        except TrustError as error:
            verified, problem = False, error.message
    return {"found": listed, "problem": problem, "signers": signers, "verified": verified}


def _read(medium: Medium, manifest: Manifest, progress: Progress) -> _Seen:
    seen = _Seen(
        manifest=manifest, policy=Policy(actions={}), reviews={}, facts={}, findings=[], problems=[], unread=[]
    )
    try:
        seen.policy = parse_policy(manifest.policy)
    except IntegrityError as error:
        seen.problems.append(error.message)
    try:
        verify_content(medium, manifest, progress)
    except IntegrityError as error:
        seen.problems.append(error.message)
        seen.unread = [entry.path for entry in manifest.files]
        return seen
    seen.is_whole = True
    carried = carried_files(medium, manifest)
    there = {entry.path for entry in carried}
    seen.unread = [entry.path for entry in manifest.files if entry.path not in there]
    _read_sbom(medium, carried, seen)
    _read_wheels(medium, carried, seen)
    _read_models(medium, carried, seen)
    for entry in carried:
        if entry.kind in {"app", "config"}:
            with open_payload(medium, entry) as stream:
                seen.findings += secret_findings(entry.path, find_secrets(stream))
    return seen


def _read_sbom(medium: Medium, carried: Sequence[FileEntry], seen: _Seen) -> None:
    entry = next((entry for entry in carried if entry.path == SBOM_PATH), None)
    if entry is None and SBOM_PATH in seen.unread:
        seen.sbom_problem = "not on this medium: see the report of the base"
        return
    if entry is not None and entry.size <= SBOM_LIMIT:
        with open_payload(medium, entry) as stream:
            data = stream.read()
        try:
            seen.sbom = read_sbom(data)
            seen.sbom_problem = sbom_problem(data)
        except ValueError as error:
            seen.sbom_problem = f"can't be read: {error}"
        except UsageError as error:
            seen.sbom_problem = f"not checked against the schema: {error.message}"
    listed = seen.sbom.paths if seen.sbom is not None else None
    seen.findings += undeclared_findings(seen.manifest, listed)
    for path, item in (seen.sbom.items if seen.sbom is not None else {}).items():
        real = next((found for found in seen.manifest.files if found.path == path), None)
        if real is not None and item.sha256 not in {"", real.sha256}:
            seen.findings.append(Finding(kind="undeclared", what=path, detail="the SBOM gives another digest"))


def _read_wheels(medium: Medium, carried: Sequence[FileEntry], seen: _Seen) -> None:
    wheels = {entry.path for entry in _wheel_entries(seen.manifest)}
    for entry in carried:
        if entry.path not in wheels:
            continue
        try:
            with open_payload(medium, entry) as stream:
                review, _ = review_wheel(stream, entry.path)
        except IntegrityError as error:
            seen.problems.append(error.message.replace("not in the store as a readable wheel", "no readable wheel"))
            continue
        seen.reviews[entry.path] = review
        seen.findings += license_findings(entry.path, review.license, seen.policy)
        seen.findings += native_findings(entry.path, review.native)
        seen.findings += built_findings(entry.path, _listed(seen, entry.path).built_from)


def _read_models(medium: Medium, carried: Sequence[FileEntry], seen: _Seen) -> None:
    for model in seen.manifest.models:
        prefix = f"{model.path}/"
        files = {
            entry.path.removeprefix(prefix): partial(open_payload, medium, entry)
            for entry in carried
            if entry.path.startswith(prefix)
        }
        facts = find_facts_in(files)
        seen.facts[model.path] = facts
        seen.findings += model_findings(model.path, facts.to_json())
        seen.findings += license_findings(model.path, _model_license(model.path, seen), seen.policy)


def _model_license(path: str, seen: _Seen) -> str:
    facts = seen.facts.get(path)
    return _listed(seen, path).license or (model_license(facts.license) if facts else "")


def _listed(seen: _Seen, path: str) -> Listed:
    return seen.sbom.items.get(path, Listed()) if seen.sbom is not None else Listed()


def _wheel_entries(manifest: Manifest) -> Iterator[FileEntry]:
    for entry in manifest.files:
        if entry.kind == "wheel" or (entry.kind == "bootstrap" and entry.path.endswith(".whl")):
            yield entry


def _wheel(entry: FileEntry, seen: _Seen) -> dict[str, Json]:
    name, _, number = component_of(entry.path).rpartition("-")
    review, listed = seen.reviews.get(entry.path, WheelReview()), _listed(seen, entry.path)
    return {
        **_plain(entry),
        "built_from": listed.built_from,
        "confirmed_by": listed.confirmed_by,
        "license": review.license,
        "license_from": review.license_from,
        "name": name or number,
        "native": len(review.native),
        "source": listed.source,
        "version": number if name else "",
    }


def _model(manifest: Manifest, path: str, seen: _Seen) -> dict[str, Json]:
    model = next(item for item in manifest.models if item.path == path)
    files = [entry for entry in manifest.files if entry.path.startswith(f"{path}/")]
    sources = sorted({_listed(seen, entry.path).source for entry in files} - {""})
    confirmed = [_listed(seen, entry.path).confirmed_by for entry in files]
    facts = seen.facts.get(path)
    return {
        "adapter": model.adapter,
        "confirmed_by": confirmed[0] if confirmed and len(set(confirmed)) == 1 else "",
        "confirmed_files": sum(1 for item in confirmed if item),
        "facts": facts.to_json() if facts else {},
        "files": [_plain(entry) for entry in files],
        "int8": _int8(manifest, model),
        "license": _model_license(path, seen),
        "name": model.name,
        "origin": model.origin,
        "path": path,
        "size": sum(entry.size for entry in files),
        "source": ", ".join(sources),
        "version": model.origin.rpartition("@")[2] if "@" in model.origin else _listed(seen, path).version,
    }


def _int8(manifest: Manifest, model: ModelEntry) -> Json:
    """Return how far a model's 8-bit numbers are from exact ones, None where its settings don't ask for any."""
    if not declares_int8(model.settings):
        return None
    try:
        agreement = plan_of(manifest.launch).agreement.get(model.name)
    except IntegrityError:
        agreement = None
    return {"measured": None} if agreement is None else {"measured": agreement.to_json(), "words": agreement.words}


def _plain(entry: FileEntry) -> dict[str, Json]:
    return {
        "kind": entry.kind,
        "origin": entry.origin,
        "path": entry.path,
        "sha256": entry.sha256,
        "size": entry.size,
    }


def _audit(manifest: Manifest, options: ReportOptions, seen: _Seen) -> dict[str, Json]:
    when = f"{options.now:%Y-%m-%dT%H:%M:%SZ}"
    if options.auditor is None:
        return {"checked": False, "when": when, "why": "nobody asked: bundler report --audit does"}
    pairs = [component_of(entry.path).rpartition("-") for entry in _wheel_entries(manifest)]
    packages = {name: number for name, _, number in pairs if name and name != "sealift"}
    try:
        found = options.auditor.audit(packages)
    except SourceError as error:
        return {"checked": False, "when": when, "why": error.message}
    seen.findings += found.findings
    if len(found.unanswered) >= len(packages):
        why = found.unanswered[0] if found.unanswered else "there is no package"
        return {"checked": False, "when": when, "why": f"no package could be checked; {why}"}
    unanswered: list[Json] = list(found.unanswered)
    return {"checked": True, "found": len(found.findings), "unanswered": unanswered, "when": when}


def _changes(manifest: Manifest, medium: Medium, options: ReportOptions) -> Json:
    if options.base is None:
        return None
    new = Described(manifest=manifest, digest=manifest_digest(medium.manifest_bytes))
    document = diff_bundles(options.base, new)
    return {"document": document, "lines": list(diff_lines(document))}


def _worst(seen: _Seen, signatures: Mapping[str, Json], judged: Sequence[Judged]) -> SealiftError | None:
    if signatures["verified"] is False:
        return TrustError(f"{seen.manifest.stem}: {signatures['problem']}", hint="the report says who signed it")
    if seen.problems:
        return IntegrityError(seen.problems[0], hint="the report lists everything that is wrong")
    expired = seen.policy.expired(seen.manifest.created)
    refused = [item.finding for item in judged if item.verdict == "refused"]
    if refused or expired:
        first = f"{refused[0].kind}: {refused[0].what}" if refused else f"the waiver for {expired[0].what} had run out"
        msg = f"{seen.manifest.stem}: its own policy refuses {len(refused)} findings, first {first}"
        return PolicyError(msg, hint="the report lists all of them")
    return None
