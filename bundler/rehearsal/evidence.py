"""What a rehearsal showed: the error that keeps a bundle from being signed, and ``NAME.rehearsal.json``."""

import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bundler.rehearsal.importplan import SPEC_IMPORTS
from bundler.sealing.keys import Signer
from manifests.canonical import Json, encode_canonical
from manifests.errors import AdapterError, InstallError, PolicyError, SealiftError, list_problems
from manifests.files import write_atomic
from manifests.manifest import Manifest
from manifests.rehearsal import RehearsalPlan, plan_of
from manifests.sshsig import REHEARSAL_NAMESPACE

EVIDENCE_TYPE: Final = "urn:sealift:rehearsal:1"
AS_ROOT: Final = "an ordinary user: it was root, whom permissions don't stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What happened.

    ``reason`` is why this host could not run the bundle, empty where it did. ``steps`` are the runtime's commands with
    their seconds as text; ``kernel`` counts, for each, the packets that the kernel refused for want of a route, and is
    empty without a namespace. ``found`` is the document of ``runtime rehearse``.
    """

    reason: str = ""
    isolation: str = ""
    is_closed: bool = False
    user: str = ""
    steps: Mapping[str, str] = field(default_factory=dict)
    kernel: Mapping[str, int] = field(default_factory=dict)
    found: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rehearsed(self) -> bool:
        """Whether the bundle was installed and asked."""
        return not self.reason

    @property
    def models(self) -> Sequence[Mapping[str, Any]]:
        """What each model did, with its raw answers."""
        models: Sequence[Mapping[str, Any]] = self.found.get("models", ())
        return models

    @property
    def versions(self) -> Mapping[str, str]:
        """The versions that gave the answers, and the CPU's kind."""
        versions: Mapping[str, str] = self.found.get("versions", {})
        return versions


def rehearsal_problem(rehearsal: Rehearsal, manifest: Manifest) -> SealiftError | None:
    """Return (not raise) what keeps the bundle from being signed: imports first, then models, then the network."""
    plan = plan_of(manifest.launch)
    failed: Sequence[Mapping[str, str]] = rehearsal.found.get("failed", ())
    if failed:
        problems = [_import_words(item, manifest, plan) for item in failed]
        return InstallError(list_problems("the rehearsal's imports", problems), hint=_import_hint(failed[0]))
    problems = [problem for model in rehearsal.models for problem in model["problems"]]
    if problems:
        return AdapterError(list_problems("the rehearsal's models", problems), hint=_model_hint(problems))
    return _network_problem(rehearsal, manifest, plan)


def _import_words(item: Mapping[str, str], manifest: Manifest, plan: RehearsalPlan) -> str:
    by = f", wanted by {item['importer']}" if item["importer"] else ""
    return f"import {item['module']}{_wheel_of(item['module'], manifest, plan)}: {item['words']}{by}"


def _wheel_of(module: str, manifest: Manifest, plan: RehearsalPlan) -> str:
    """Return the wheel that a module is listed for, in brackets, where one is."""
    name = plan.distribution_of(module)
    if name in {"", SPEC_IMPORTS}:
        return ""
    start = f"wheels/{name.replace('-', '_')}-"
    wheels = (entry.path for entry in manifest.of_kind("wheel"))
    found = next((path for path in wheels if path.lower().replace(".", "_").startswith(start)), f"wheels/{name}")
    return f" ({found})"


def _import_hint(item: Mapping[str, str]) -> str:
    skip = f'[rehearsal] skip-imports = ["{item["module"]}"] leaves it out'
    if not item["missing"]:
        return f"if nobody needs the module: {skip}"
    top = item["missing"].partition(".")[0]
    return f"add what has the module {top!r} to packages.requirements, then: bundler lock SPEC; or {skip}"


def _model_hint(problems: Sequence[str]) -> str:
    if any(", recorded " in problem or "from the recorded" in problem for problem in problems):
        return "if the new answers are right: bundler lock SPEC --record"
    return "include and exclude of the [[model]] decide which of its files travel; add what is missing to its folder"


def _network_problem(rehearsal: Rehearsal, manifest: Manifest, plan: RehearsalPlan) -> SealiftError | None:
    refused = [item for item in rehearsal.found.get("attempts", ()) if not item["allowed"]]
    if refused:
        words = [_attempt_words(item, manifest, plan) for item in refused]
        host = refused[0]["address"].partition(":")[0] or "*"
        hint = f'if it does no harm: [rehearsal] allow-network = [{{ host = "{host}", why = "..." }}]'
        return PolicyError(list_problems("the rehearsal tried to reach the network", words), hint=hint)
    native = [f"{count} packets during {step}" for step, count in rehearsal.kernel.items() if count > 0]
    if native and not any(item.host == "*" and not item.module for item in plan.allowed):
        msg = f"the rehearsal tried to reach the network, by native code that Python doesn't see: {', '.join(native)}"
        hint = 'leave out the wheel that does, or: [rehearsal] allow-network = [{ host = "*", why = "..." }]'
        return PolicyError(msg, hint=hint)
    return None


def _attempt_words(item: Mapping[str, Any], manifest: Manifest, plan: RehearsalPlan) -> str:
    module, callers = item["module"], " < ".join(item["callers"]) or "unknown"
    where = f"import {module}{_wheel_of(module, manifest, plan)}: " if module else ""
    return f"{where}{item['event']} {item['address']}, by {callers}"


def evidence_document(manifest: Manifest, digest: str, rehearsal: Rehearsal) -> dict[str, Json]:
    """Return the content of ``NAME.rehearsal.json``; it names no host, no user and no folder."""
    return {
        "_type": EVIDENCE_TYPE,
        "attempts": [dict(item) for item in rehearsal.found.get("attempts", ())],
        "bundle": manifest.stem,
        "digest": digest,
        "host": host_kind(rehearsal),
        "imports": list(rehearsal.found.get("imports", ())),
        "models": [{key: value for key, value in model.items() if key != "answers"} for model in rehearsal.models],
        "not_rehearsed": list(not_rehearsed(manifest, rehearsal)),
        "rehearsed": rehearsal.rehearsed,
        "steps": [{"seconds": seconds, "step": step} for step, seconds in rehearsal.steps.items()],
        "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "unroutable": dict(rehearsal.kernel) if rehearsal.is_closed else None,
        "versions": dict(rehearsal.versions),
    }


def host_kind(rehearsal: Rehearsal) -> dict[str, Json]:
    """Return what kind of host it was."""
    return {
        "cores": os.cpu_count() or 0,
        "isolation": rehearsal.isolation,
        "libc": " ".join(platform.libc_ver()).strip(),
        "machine": platform.machine(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "system": platform.system(),
        "user": rehearsal.user,
    }


def not_rehearsed(manifest: Manifest, rehearsal: Rehearsal) -> Iterator[str]:
    """Yield everything that the rehearsal does not vouch for, in words."""
    if rehearsal.reason:
        yield f"{rehearsal.reason}: installation, imports and network"
        yield from (f"{rehearsal.reason}: model {model.name}, adapter {model.adapter}" for model in manifest.models)
        return
    if not rehearsal.is_closed:
        yield "native code's way to the network: this host has no namespaces, only Python's guard watched"
    if rehearsal.user == "root":
        yield AS_ROOT
    compared = {model["name"]: model["compared"] for model in rehearsal.models}
    for model in manifest.models:
        if not compared.get(model.name):
            yield f"model {model.name}: its answers were not compared, none are recorded"


def evidence_path(tar_name: str, folder: Path) -> Path:
    """Return where the evidence about a bundle goes: beside it."""
    return folder / f"{tar_name.removesuffix('.bundle.tar')}.rehearsal.json"


def write_evidence(path: Path, document: Mapping[str, Json], signer: Signer | None) -> tuple[Path, ...]:
    """Write the evidence, and its signature beside it where there is a signer; return what was written.

    Raises:
        DiskError: It can't be written.
    """
    data, signature = encode_canonical(document), path.with_name(f"{path.name}.sig")
    signature.unlink(missing_ok=True)
    write_atomic(path, data)
    if signer is None:
        return (path,)
    write_atomic(signature, signer.sign(data, REHEARSAL_NAMESPACE))
    return path, signature
