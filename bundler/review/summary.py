"""What ``bundler inspect`` tells of a bundle. It says whose signatures there are, not whether to trust them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from bundler.review.rehearsed import EvidenceSource, evidence_lines, find_evidence, read_evidence
from manifests.canonical import Json
from manifests.delta import Delta
from manifests.errors import TrustError
from manifests.manifest import KINDS, Manifest, manifest_digest, parse_manifest
from manifests.medium import open_medium
from manifests.progress import format_size
from manifests.reference import Remote
from manifests.sources import Supply
from manifests.sshsig import BUNDLE_NAMESPACE, parse_signatures


def inspect_bundle(
    path: Path | Remote, supply: Supply | None = None, evidence: Path | None = None
) -> Mapping[str, Json]:
    """Return what a bundle says of itself, and its evidence of a rehearsal, as a JSON document.

    The layout is checked against the manifest, contents are not (``runtime verify`` does that).

    Args:
        path: The bundle.
        supply: As for :func:`open_medium`.
        evidence: Where the evidence is; None for beside the bundle.

    Raises:
        IntegrityError: Not a bundle, malformed, truncated.
        UsageError: The evidence that was named isn't there.
    """
    with open_medium(path, supply) as medium:
        manifest = parse_manifest(medium.manifest_bytes)
        medium.check_layout(manifest)
        signatures = _signatures(medium.manifest_bytes, medium.signature_slot)
        digest = manifest_digest(medium.manifest_bytes)
        place = evidence or find_evidence(path, manifest.stem)
        return {
            "bundle": manifest.stem,
            "created": manifest.created,
            "delta": _delta(medium.delta, manifest),
            "digest": digest,
            "files": [entry.to_json() for entry in manifest.files],
            "kinds": _kinds(manifest),
            "models": [{"adapter": m.adapter, "name": m.name, "origin": m.origin} for m in manifest.models],
            "name": manifest.name,
            "rehearsal": read_evidence(place, digest, EvidenceSource(path=evidence)),
            "sequence": manifest.sequence,
            "signatures": signatures,
            "size": manifest.payload_size,
            "target": {
                "accelerator": manifest.target.accelerator,
                "platform": manifest.target.platform,
                "python": manifest.target.python,
            },
            "version": manifest.version,
        }


def _signatures(manifest: bytes, slot: bytes) -> list[Json]:
    try:
        found = parse_signatures(slot)
    except TrustError as error:
        return [{"problem": error.message}]
    return [
        {"fingerprint": item.key.fingerprint, "fits": item.verifies(manifest, BUNDLE_NAMESPACE), "type": item.key.type}
        for item in found
    ]


def _delta(delta: Delta | None, manifest: Manifest) -> Json:
    """Return what a delta says of itself, None for a full bundle; nobody signed it."""
    if delta is None:
        return None
    carried = delta.files(manifest)
    return {
        "base": delta.base,
        "base_version": delta.base_version,
        "files": len(carried),
        "left_out": len(manifest.files) - len(carried),
        "size": sum(entry.size for entry in carried),
    }


def _kinds(manifest: Manifest) -> dict[str, Json]:
    return {
        kind: {"files": len(entries), "size": sum(entry.size for entry in entries)}
        for kind in KINDS
        if (entries := manifest.of_kind(kind))
    }


def summary_lines(document: Mapping[str, Json]) -> Iterator[str]:
    """Yield the lines that a person reads."""
    yield f"{document['bundle']}  created {document['created']}  sequence {document['sequence']}"
    yield f"manifest digest {document['digest']}"
    delta = document.get("delta")
    if isinstance(delta, Mapping):
        size = delta["size"]
        carried = format_size(size if isinstance(size, int) else 0)
        yield f"a delta to version {delta['base_version']}, manifest digest {delta['base']}"
        yield f"  carries {delta['files']} files, {carried}; {delta['left_out']} must be in the prefix already"
    kinds = document["kinds"]
    if isinstance(kinds, Mapping):
        for kind, numbers in kinds.items():
            if isinstance(numbers, Mapping):
                size = numbers["size"]
                yield f"  {kind:10} {numbers['files']:>5} files {format_size(size if isinstance(size, int) else 0):>10}"
    for model in _objects(document["models"]):
        yield f"model {model['name']} ({model['adapter']}) from {model['origin']}"
    rehearsal = document["rehearsal"]
    if isinstance(rehearsal, Mapping):
        yield from evidence_lines(rehearsal)
    signatures = list(_objects(document["signatures"]))
    for item in signatures:
        fits = "fits the manifest" if item.get("fits") else "does NOT fit the manifest"
        yield item["problem"] if "problem" in item else f"signature {item['fingerprint']} {fits}"  # type: ignore[misc] # both are strings
    yield (
        "not signed"
        if not signatures
        else "whether to trust a signer is decided by: runtime verify BUNDLE --trust FILE"
    )


def _objects(value: Json) -> Iterator[Mapping[str, Json]]:
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, Mapping))
