"""A rehearsal inside the prefix: import what the bundle declares, ask every model, write down all that happened.

The builder runs it with the runtime.pyz of the bundle, in a namespace without network; what it finds decides whether
the bundle is signed, and its answers are what ``bundler lock --record`` writes down.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from manifests.canonical import Json
from manifests.errors import AdapterError, InstallError, PolicyError
from manifests.manifest import Manifest
from manifests.rehearsal import RehearsalPlan, plan_of
from runtime.hostfacts import Host
from runtime.layout import Prefix, Release
from runtime.probe import Asked, AskedModel, ask_models
from runtime.smoke import ImportAttempt, ImportFailure, import_modules


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """What was found.

    ``imports`` are the modules that import, ``failed`` those that don't; ``attempts`` come from imports and models
    alike; ``unroutable`` counts, for each of the two, the packets that the kernel refused for want of a route.
    """

    plan: RehearsalPlan
    imports: tuple[str, ...]
    failed: tuple[ImportFailure, ...]
    attempts: tuple[ImportAttempt, ...]
    asked: Asked
    unroutable: Mapping[str, int | None]

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
            "attempts": [_attempt_json(item, self.plan) for item in self.attempts],
            "failed": [_failure_json(item) for item in self.failed],
            "imports": list(self.imports),
            "models": list(_models_json(self.asked)),
            "unroutable": dict(self.unroutable),
            "versions": {str(key): str(value) for key, value in _mapping(last.get("versions")).items()},
        }


def rehearse(prefix: Prefix, release: Release, report: Callable[[str], None]) -> Rehearsed:
    """Import and ask.

    Raises:
        InstallError: The process that imports ends of itself.
    """
    manifest, host = release.manifest(), Host()
    plan = plan_of(manifest.launch)
    report(f"import {len(plan.modules)} modules")
    before = host.unroutable()
    imported = import_modules(prefix, release, plan.modules)
    after = host.unroutable()
    asked = _ask(prefix, release, manifest, report)
    failed = {failure.module for failure in imported.failed}
    return Rehearsed(
        plan=plan,
        imports=tuple(module for module in plan.modules if module not in failed),
        failed=imported.failed,
        attempts=(*imported.attempts, *_model_attempts(asked)),
        asked=asked,
        unroutable={
            "imports": None if before is None or after is None else after - before,
            "models": asked.unroutable,
        },
    )


def _ask(prefix: Prefix, release: Release, manifest: Manifest, report: Callable[[str], None]) -> Asked:
    if not manifest.models:
        return Asked(models=(), unroutable=0)
    report(f"ask {len(manifest.models)} models")
    try:
        return ask_models(prefix, release, manifest)
    except AdapterError as error:  # what the imports showed is worth telling all the same
        return Asked(models=(AskedModel(name=manifest.models[0].name, problems=(error.message,)),))


def _model_attempts(asked: Asked) -> Iterator[ImportAttempt]:
    for line in asked.lines:
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
