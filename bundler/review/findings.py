"""Findings: what a security officer has to decide on, each of a class that a policy refuses or allows."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from bundler.review.spdx import satisfies
from manifests.canonical import Json
from manifests.manifest import Manifest
from manifests.policy import Policy, Verdict, Waiver

_SHOWN = 8  # libraries that one finding names


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Finding:
    """One finding: its class (:data:`manifests.policy.CLASSES`), what it is about, and what exactly was seen.

    ``what`` is a path in the bundle, of a vulnerability ``ID NAME==VERSION``; waivers are globs over it.
    """

    kind: str
    what: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A finding, and what the policy decides about it."""

    finding: Finding
    verdict: Verdict
    waiver: Waiver | None = None

    def to_json(self) -> dict[str, Json]:
        """Return the report's object."""
        return {
            "class": self.finding.kind,
            "decision": self.verdict,
            "detail": self.finding.detail,
            "waiver": self.waiver.to_json() if self.waiver else None,
            "what": self.finding.what,
        }


def judge(findings: Iterable[Finding], policy: Policy, created: str) -> tuple[Judged, ...]:
    """Return what a policy decides at a manifest's time, refused findings first."""
    order = {"refused": 0, "waived": 1, "allowed": 2}
    judged = []
    for finding in sorted(set(findings)):
        verdict, waiver = policy.judge(finding.kind, finding.what, created)
        judged.append(Judged(finding=finding, verdict=verdict, waiver=waiver))
    return tuple(sorted(judged, key=lambda item: order[item.verdict]))


def license_findings(what: str, license_: str, policy: Policy) -> Iterator[Finding]:
    """Yield what there is to say of a component's licence."""
    if not license_:
        yield Finding(kind="unknown-license", what=what, detail="no licence is declared, and no text is a known one")
    elif policy.licenses is not None and not satisfies(license_, policy.licenses):
        yield Finding(kind="license", what=what, detail=f"{license_} is not in the allow-list")


def native_findings(what: str, native: tuple[str, ...]) -> Iterator[Finding]:
    """Yield a wheel's native libraries, as one finding."""
    if native:
        more = f", and {len(native) - _SHOWN} more" if len(native) > _SHOWN else ""
        count = "1 library" if len(native) == 1 else f"{len(native)} libraries"
        yield Finding(kind="native-code", what=what, detail=f"{count}: {', '.join(native[:_SHOWN])}{more}")


def built_findings(what: str, source: str) -> Iterator[Finding]:
    """Yield that a wheel was built here, from ``source``; nothing where that is empty."""
    if source:
        yield Finding(kind="built-from-source", what=what, detail=f"built by the builder from {source}")


def model_findings(path: str, facts: Mapping[str, Json]) -> Iterator[Finding]:
    """Yield what a model's files hold, from the facts of :meth:`bundler.snapshots.modelfacts.ModelFacts.to_json`."""
    for name in _texts(facts, "pickles"):
        yield Finding(kind="pickle", what=f"{path}/{name}", detail="a pickle, by its content or its name")
    for name in _texts(facts, "code"):
        yield Finding(kind="remote-code", what=f"{path}/{name}", detail="code in a model's folder")
    for key in ("auto-map", "model-file"):
        for item in _texts(facts, key):
            name, _, value = item.partition(": ")
            detail = f"{key.replace('-', '_')} names code to be loaded: {value}"
            yield Finding(kind="auto-map", what=f"{path}/{name}", detail=detail)
    for name in _texts(facts, "remote-repos"):
        yield Finding(kind="auto-map", what=path, detail=f"names code of another repository: {name}")


def secret_findings(path: str, found: Iterable[str]) -> Iterator[Finding]:
    """Yield what looks like a secret in a file."""
    for item in found:
        yield Finding(kind="secrets", what=path, detail=item)


def undeclared_findings(manifest: Manifest, listed: frozenset[str] | None) -> Iterator[Finding]:
    """Yield the files that nobody declared.

    Args:
        manifest: Whose files.
        listed: What the SBOM lists, files or folders; None without one, which is a finding of its own.
    """
    if listed is None:
        yield Finding(kind="undeclared", what="docs/sbom.cdx.json", detail="there is no SBOM that can be read")
    folders = [f"{model.path}/" for model in manifest.models] + [f"{app.path}/" for app in manifest.app]
    wheels = {app.path for app in manifest.app}
    for entry in manifest.files:
        if listed is not None and entry.path not in listed and not _is_below(entry.path, listed):
            yield Finding(kind="undeclared", what=entry.path, detail="the SBOM doesn't list it")
        elif entry.kind in {"model", "app"} and not entry.path.startswith(tuple(folders)) and entry.path not in wheels:
            yield Finding(kind="undeclared", what=entry.path, detail=f"no {entry.kind} of the manifest has it")


def _is_below(path: str, listed: frozenset[str]) -> bool:
    parts = path.split("/")
    return any(f"{'/'.join(parts[:count])}/" in listed for count in range(1, len(parts)))


def _texts(facts: Mapping[str, Json], key: str) -> list[str]:
    value = facts.get(key)
    return [str(item) for item in value] if isinstance(value, list) else []
