"""A rehearsal inside the prefix: import what the bundle declares, ask every model, write down all that happened.

The builder runs it with the runtime.pyz of the bundle, in a namespace without network; what it finds decides whether
the bundle is signed, and its answers are what ``bundler lock --record`` writes down.
"""

import json
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from manifests.canonical import Json
from manifests.errors import AdapterError, InstallError, IntegrityError, PolicyError
from manifests.manifest import Manifest
from manifests.rehearsal import RecordedAgreement, RehearsalPlan, declares_int8, parse_agreement, plan_of
from runtime.hostfacts import Host
from runtime.launch import LaunchCommand, server_command
from runtime.layout import Prefix, Release
from runtime.probe import PROBE_MODULE, Asked, AskedModel, ask_models
from runtime.smoke import ImportAttempt, ImportFailure, import_modules

_AGREEMENT_MODULE: Final = "runtime.adapters.agreeing"
_EMBEDDERS: Final = frozenset({"bge-m3", "sentence-transformer"})
# The code is the bundle's own, whatever Sealift that Python may have; all else is that Python's.
_ELSEWHERE: Final = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """What was found.

    ``imports`` are the modules that import, ``failed`` those that don't; ``attempts`` come from imports and models
    alike; ``unroutable`` counts, for each of the two, the packets that the kernel refused for want of a route.
    ``agreement`` is what was measured of the models that compute with 8-bit numbers.
    """

    plan: RehearsalPlan
    imports: tuple[str, ...]
    failed: tuple[ImportFailure, ...]
    attempts: tuple[ImportAttempt, ...]
    asked: Asked
    unroutable: Mapping[str, int | None]
    agreement: Mapping[str, RecordedAgreement] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0, or the code of the gravest: 8 for an import, 9 for a model, 10 for the network."""
        found = {
            InstallError.exit_code: bool(self.failed),
            AdapterError.exit_code: any(model.problems for model in self.asked.models),
            PolicyError.exit_code: bool(self.refused),
        }
        return next((code for code, is_so in found.items() if is_so), 0)

    @property
    def refused(self) -> tuple[ImportAttempt, ...]:
        """The attempts that nothing excuses."""
        return tuple(item for item in self.attempts if not self.plan.reason_for(item.address, item.callers))

    def to_json(self) -> dict[str, Json]:
        """Return the document that the builder reads; numbers with a fraction are text."""
        last = next((line for line in self.asked.lines if "versions" in line), {})
        return {
            "agreement": {name: item.to_json() for name, item in self.agreement.items()},
            "attempts": [_attempt_json(item, self.plan) for item in self.attempts],
            "failed": [_failure_json(item) for item in self.failed],
            "imports": list(self.imports),
            "models": list(_models_json(self.asked)),
            "unroutable": dict(self.unroutable),
            "versions": {str(key): str(value) for key, value in _mapping(last.get("versions")).items()},
        }


def rehearse(prefix: Prefix, release: Release, report: Callable[[str], None]) -> Rehearsed:
    """Import and ask.

    Where a model computes with 8-bit numbers and nobody recorded yet how far they are from the exact ones, that is
    measured, too.

    Raises:
        InstallError: The process that imports ends of itself.
        AdapterError: The process that measures doesn't come to its end.
    """
    manifest, host = release.manifest(), Host()
    plan = plan_of(manifest.launch)
    report(f"import {len(plan.modules)} modules")
    before = host.unroutable()
    imported = import_modules(prefix, release, plan.modules)
    after = host.unroutable()
    asked = _ask(prefix, release, manifest, report)
    agreement, knocks = _measure(prefix, release, _unmeasured(manifest, asked), report)
    failed = {failure.module for failure in imported.failed}
    return Rehearsed(
        plan=plan,
        imports=tuple(module for module in plan.modules if module not in failed),
        failed=imported.failed,
        attempts=(*imported.attempts, *_attempts_in(asked.lines), *knocks),
        asked=asked,
        unroutable={
            "imports": None if before is None or after is None else after - before,
            "models": asked.unroutable,
        },
        agreement=agreement,
    )


def rehearse_elsewhere(prefix: Prefix, release: Release, python: Path, report: Callable[[str], None]) -> Rehearsed:
    """Ask the models of a folder that holds a bundle's files, with the libraries of another Python.

    It is for a bundle whose own wheels don't run here: Sealift's code is the bundle's, all other libraries are those of
    ``python``. Nothing is installed and nothing is imported but what the models need.

    Raises:
        IntegrityError: The folder isn't named by its manifest's digest, or holds no wheel of Sealift.
        PolicyError: The signed policy refuses a file of a model.
    """
    manifest = release.manifest()
    wheel = next((release.path / "wheels").glob("sealift-*.whl"), None)
    if wheel is None:
        raise IntegrityError(f"{release.path}: holds no wheels/sealift-*.whl")
    inside = server_command(prefix, release, PROBE_MODULE, ())
    own = inside.arguments[inside.arguments.index(PROBE_MODULE) :]
    arguments = (str(python), "-I", "-B", "-c", _ELSEWHERE, str(wheel), *own)
    asked = _ask(prefix, release, manifest, report, LaunchCommand(arguments=arguments, environment=inside.environment))
    return Rehearsed(
        plan=plan_of(manifest.launch),
        imports=(),
        failed=(),
        attempts=tuple(_attempts_in(asked.lines)),
        asked=asked,
        unroutable={"imports": None, "models": asked.unroutable},
    )


def _ask(
    prefix: Prefix,
    release: Release,
    manifest: Manifest,
    report: Callable[[str], None],
    command: LaunchCommand | None = None,
) -> Asked:
    if not manifest.models:
        return Asked(models=(), unroutable=0)
    report(f"ask {len(manifest.models)} models")
    try:
        return ask_models(prefix, release, manifest, command=command)
    except AdapterError as error:  # what the imports showed is worth telling all the same
        return Asked(models=(AskedModel(name=manifest.models[0].name, problems=(error.message,)),))


def _unmeasured(manifest: Manifest, asked: Asked) -> tuple[str, ...]:
    """Return the models with 8-bit vectors that nobody compared with the exact ones yet, of those that answer."""
    known, answering = plan_of(manifest.launch).agreement, {item.name for item in asked.models if not item.problems}
    probed = {probe.model for probe in manifest.probes}
    return tuple(
        model.name
        for model in manifest.models
        if model.adapter in _EMBEDDERS
        and declares_int8(model.settings)
        and model.name not in known
        and model.name in answering & probed
    )


def _measure(
    prefix: Prefix, release: Release, names: Sequence[str], report: Callable[[str], None]
) -> tuple[dict[str, RecordedAgreement], tuple[ImportAttempt, ...]]:
    if not names:
        return {}, ()
    report(f"compare 8-bit with exact vectors of {', '.join(names)}")
    options = [word for name in names for word in ("--model", name)]
    command = server_command(prefix, release, _AGREEMENT_MODULE, options)
    done = subprocess.run(
        command.arguments, env=command.environment, capture_output=True, text=True, check=False, cwd=prefix.var
    )
    if done.returncode:
        words = done.stderr.strip()[-2000:] or f"no message, status {done.returncode}"
        raise AdapterError(f"8-bit and exact vectors could not be compared: {words}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    measured = {str(line["model"]): line["agreement"] for line in lines if "agreement" in line}
    agreement = {
        name: parse_agreement(item, f"agreement.{name}", error=AdapterError) for name, item in measured.items()
    }
    return agreement, tuple(_attempts_in(lines))


def _attempts_in(lines: Iterable[Mapping[str, object]]) -> Iterator[ImportAttempt]:
    for line in lines:
        for item in _sequence(line.get("network")):
            told = _mapping(item)
            callers = tuple(str(caller) for caller in _sequence(told.get("callers")))
            event, address = str(told.get("event")), str(told.get("address"))
            yield ImportAttempt(module="", event=event, address=address, callers=callers)


def _models_json(asked: Asked) -> Iterator[dict[str, Json]]:
    lines = {str(line["model"]): line for line in asked.lines if "model" in line}
    for model in asked.models:
        answers = lines.get(model.name, {}).get("answers")
        yield {
            "answers": answers if isinstance(answers, list) else [],
            "compared": model.compared,
            "device": model.device,
            "dtype": model.dtype,
            "name": model.name,
            "probes": model.probes,
            "problems": list(model.problems),
            "seconds": model.seconds,
            "worst": "" if model.worst is None else f"{model.worst:.2g}",
        }


def _attempt_json(item: ImportAttempt, plan: RehearsalPlan) -> dict[str, Json]:
    return {
        "address": item.address,
        "allowed": plan.reason_for(item.address, item.callers),
        "callers": list(item.callers),
        "event": item.event,
        "module": item.module,
    }


def _failure_json(item: ImportFailure) -> dict[str, Json]:
    return {"importer": item.importer, "missing": item.missing, "module": item.module, "words": item.words}


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else []
