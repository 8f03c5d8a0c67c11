"""What a rehearsal showed: the error that keeps a bundle from being signed, and ``NAME.rehearsal.json``."""

import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bundler.rehearsal.importplan import SPEC_IMPORTS
from bundler.sealing.keys import Signer
from manifests.canonical import Json, encode_canonical
from manifests.errors import AdapterError, InstallError, PolicyError, SealiftError, UsageError, list_problems
from manifests.files import write_atomic
from manifests.manifest import Manifest
from manifests.rehearsal import RehearsalPlan, plan_of
from manifests.sshsig import REHEARSAL_NAMESPACE

EVIDENCE_TYPE: Final = "urn:sealift:rehearsal:1"
_TAR_SUFFIX: Final = re.compile(r"\.bundle\.tar(\.[0-9]+)?$", re.ASCII)
_PLACES: Final = re.compile(r"(?<![\w./])/(?:[^\s/'\":,;]+/)+")
NONE_RECORDED: Final = "its answers were not compared, none are recorded"
AS_ROOT: Final = "an ordinary user: it was root, whom permissions don't stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What happened.

    ``reason`` is why this host could not run the bundle, empty where it did. ``steps`` are the runtime's commands with
    their seconds as text; ``kernel`` counts, for each, the packets that the kernel refused for want of a route, and is
    empty without a namespace. ``found`` is the document of ``runtime rehearse``.

    Where the host could not run the bundle, ``host_wheels`` is the document of asking its models on this host's own
    wheels, empty where nobody could, and ``unasked`` says of each model that was not asked so why. ``manifest`` and its
    ``digest`` are the bundle's, where :func:`bundler.rehearsal.rehearse.rehearse_bundle` rehearsed it.
    """

    reason: str = ""
    isolation: str = ""
    is_closed: bool = False
    user: str = ""
    steps: Mapping[str, str] = field(default_factory=dict)
    kernel: Mapping[str, int] = field(default_factory=dict)
    found: Mapping[str, Any] = field(default_factory=dict)
    host_wheels: Mapping[str, Any] = field(default_factory=dict)
    unasked: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""
    manifest: Manifest | None = None

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

    @property
    def attempts(self) -> Sequence[Mapping[str, Any]]:
        """Every attempt at the network, on the bundle's wheels or on this host's."""
        return [*self.found.get("attempts", ()), *self.host_wheels.get("attempts", ())]

    @property
    def left_out(self) -> tuple[str, ...]:
        """Everything that the rehearsal does not vouch for, in words."""
        return tuple(not_rehearsed(self.manifest, self)) if self.manifest is not None else ()

    @property
    def agreement(self) -> Mapping[str, Mapping[str, Any]]:
        """Model -> how its 8-bit vectors agree with the exact ones, where that was measured just now."""
        agreement: Mapping[str, Mapping[str, Any]] = self.found.get("agreement", {})
        return agreement


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
    refused = [item for item in rehearsal.attempts if not item["allowed"]]
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
        "agreement": {name: dict(item) for name, item in rehearsal.agreement.items()},
        "attempts": [dict(item) for item in rehearsal.attempts],
        "bundle": manifest.stem,
        "digest": digest,
        "host": host_kind(rehearsal),
        "host_wheels": _host_wheels(rehearsal),
        "imports": list(rehearsal.found.get("imports", ())),
        "models": _without_answers(rehearsal.models),
        "not_rehearsed": list(not_rehearsed(manifest, rehearsal)),
        "rehearsed": rehearsal.rehearsed,
        "steps": [{"seconds": seconds, "step": step} for step, seconds in rehearsal.steps.items()],
        "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "unroutable": dict(rehearsal.kernel) if rehearsal.is_closed else None,
        "versions": dict(rehearsal.versions),
    }


def _host_wheels(rehearsal: Rehearsal) -> Json:
    """Return what the models did on this host's own wheels, not the target's; None where nobody asked them so."""
    if not rehearsal.host_wheels:
        return None
    versions: Mapping[str, str] = rehearsal.host_wheels.get("versions", {})
    return {"models": _without_answers(rehearsal.host_wheels.get("models", ())), "versions": dict(versions)}


def nameless(value: Any, folder: Path) -> Any:  # noqa: ANN401 # parsed JSON, of the same shape as it was
    """Return a document without the places of this host that messages name: ``folder`` and what lies above anything."""
    if isinstance(value, str):
        return _PLACES.sub("", value.replace(f"{folder.absolute()}/", ""))
    if isinstance(value, Mapping):
        return {key: nameless(item, folder) for key, item in value.items()}
    return [nameless(item, folder) for item in value] if isinstance(value, list) else value


def _without_answers(models: Sequence[Mapping[str, Any]]) -> list[Json]:
    return [{key: value for key, value in model.items() if key != "answers"} for model in models]


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
        for model in manifest.models:
            yield f"{rehearsal.reason}: model {model.name}, adapter {model.adapter}{_instead(model.name, rehearsal)}"
        return
    if not rehearsal.is_closed:
        yield "native code's way to the network: this host has no namespaces, only Python's guard watched"
    if rehearsal.user == "root":
        yield AS_ROOT
    compared = {model["name"]: model["compared"] for model in rehearsal.models}
    for model in manifest.models:
        if not compared.get(model.name):
            yield f"model {model.name}: {NONE_RECORDED}"


def _instead(name: str, rehearsal: Rehearsal) -> str:
    """Return what was done with a model instead, on this host's own wheels, or why that wasn't possible either."""
    if name in rehearsal.unasked:
        return f", nor on this host's own wheels: {rehearsal.unasked[name]}"
    model = next((item for item in rehearsal.host_wheels.get("models", ()) if item["name"] == name), None)
    if model is None:
        return ", nor on this host's own wheels: nobody came as far as this one" if rehearsal.host_wheels else ""
    versions: Mapping[str, str] = rehearsal.host_wheels.get("versions", {})
    libraries = ", ".join(f"{item} {versions[item]}" for item in ("torch", "transformers") if item in versions)
    where = f"on this host's own wheels, not the target's{f' ({libraries})' if libraries else ''}"
    if model["problems"]:
        return f"; {where}, it failed: {'; '.join(model['problems'])}"
    return f"; {where}, it loaded and answered {model['probes']} probes, {model['compared']} as recorded"


def evidence_path(tar_name: str, folder: Path) -> Path:
    """Return where the evidence about a bundle goes: beside it, whichever volume of it ``tar_name`` is."""
    return folder / f"{_TAR_SUFFIX.sub('', tar_name)}.rehearsal.json"


def check_evidence_place(path: Path, signer: Signer | None) -> None:
    """Refuse, before a long rehearsal, a place where its evidence can't or mustn't be written.

    Raises:
        UsageError: There is no such folder; or signed evidence lies there, and this one would not be signed.
    """
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such folder for the evidence", hint="make it first, or name another file")
    if signer is None and path.with_name(f"{path.name}.sig").exists():
        msg = f"{path}: is signed evidence, and this rehearsal's would not be signed"
        raise UsageError(msg, hint="sign it: --key FILE; or write it elsewhere: --evidence FILE")


def file_evidence(done: Rehearsal, path: Path, signer: Signer | None) -> tuple[Path, ...]:
    """Write the evidence of a rehearsal that :func:`bundler.rehearsal.rehearse.rehearse_bundle` returned.

    Returns:
        What was written: the evidence, and its signature where there is a signer.

    Raises:
        UsageError: As :func:`check_evidence_place`.
        DiskError: It can't be written.
    """
    if done.manifest is None:
        raise AssertionError("a rehearsal says of which bundle it was")
    check_evidence_place(path, signer)
    return write_evidence(path, evidence_document(done.manifest, done.digest, done), signer)


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
