"""The recorded answers in a lock: kept where nothing changed that they depend on, dropped with a note otherwise."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from packaging.utils import canonicalize_name, parse_wheel_filename

from bundler.lock import Lock
from bundler.spec import ADAPTERS
from manifests.canonical import Json
from manifests.manifest import Probe

DEFAULT_INPUTS: Final = ("Is anyone there?", "거기 누구 있나요?")
"""What a model is asked that has no ``[[probe]]``, once answers are recorded."""
_DECISIVE: Final = ("torch", "transformers")


def with_default_probes(lock: Lock) -> tuple[Probe, ...]:
    """Return the lock's probes, and one for each model that has none."""
    asked = {probe.model for probe in lock.probes}
    models = [model.entry for model in lock.models if model.entry.name not in asked]
    more = (Probe(model=entry.name, kind=ADAPTERS[entry.adapter], inputs=DEFAULT_INPUTS) for entry in models)
    return (*lock.probes, *more)


def keep_answers(lock: Lock, previous: Lock | None, report: Callable[[str], None]) -> Lock:
    """Return a new lock with the answers of an earlier one, as far as they still hold.

    They hold for the same model files, adapter and settings, the same inputs, and the same versions of torch and
    transformers. So does how far a model's 8-bit vectors are from the exact ones, for all of its inputs together.
    """
    recorded = [probe for probe in (previous.probes if previous else ()) if probe.expect is not None]
    if previous is None or not recorded:
        return lock
    reasons = {model.entry.name: _changed(lock, previous, model.entry.name) for model in lock.models}
    answers = {_question(probe): probe.expect for probe in recorded if reasons.get(probe.model) == ""}
    asked = {probe.model for probe in lock.probes}
    probes = [replace(probe, expect=answers.get(_question(probe))) for probe in lock.probes]
    probes += [probe for probe in recorded if probe.model not in asked and _question(probe) in answers]
    kept = {_question(probe) for probe in probes if probe.expect is not None}
    for probe in recorded:
        if _question(probe) not in kept:
            why = reasons.get(probe.model, "it is gone") or "it is asked something else"
            report(f"model {probe.model}: its recorded answers are dropped: {why}; bundler lock --record")
    agreement = {
        name: item
        for name, item in previous.rehearsal.agreement.items()
        if reasons.get(name) == "" and _questions(name, probes) == _questions(name, previous.probes)
    }
    return replace(lock, probes=tuple(probes), rehearsal=replace(lock.rehearsal, agreement=agreement))


def fill_answers(lock: Lock, models: Mapping[str, tuple[list[Json], Mapping[str, Json]]]) -> Lock:
    """Return a lock with what the models answered: name -> answers in the order of its probes, and their versions."""
    given = {name: list(answers) for name, (answers, _) in models.items()}
    probes = []
    for probe in lock.probes:
        answers = given.get(probe.model, [])
        answer = answers.pop(0) if answers else None
        versions = models.get(probe.model, ([], {}))[1]
        expect = {**answer, "versions": versions} if isinstance(answer, Mapping) else None
        probes.append(replace(probe, expect=expect))
    return replace(lock, probes=tuple(probes))


def _changed(lock: Lock, previous: Lock, name: str) -> str:
    """Return what changed that a model's answers depend on, empty for nothing."""
    new = next((model for model in lock.models if model.entry.name == name), None)
    old = next((model for model in previous.models if model.entry.name == name), None)
    if new is None or old is None:
        return "it is new"
    if [(file.path, file.sha256) for file in new.files] != [(file.path, file.sha256) for file in old.files]:
        return "its files changed"
    if (new.entry.adapter, new.entry.settings) != (old.entry.adapter, old.entry.settings):
        return "its adapter or settings changed"
    ours, theirs = _versions(lock), _versions(previous)
    changed = (item for item in _DECISIVE if ours.get(item) != theirs.get(item))
    return ", ".join(f"{item} {theirs.get(item)} became {ours.get(item)}" for item in changed)


def _question(probe: Probe) -> tuple[str, tuple[str, ...]]:
    return probe.model, probe.inputs


def _questions(model: str, probes: Iterable[Probe]) -> list[tuple[str, tuple[str, ...]]]:
    return [_question(probe) for probe in probes if probe.model == model]


def _versions(lock: Lock) -> Mapping[str, str]:
    parsed = (parse_wheel_filename(wheel.path.rsplit("/", 1)[-1]) for wheel in lock.wheels)
    return {str(canonicalize_name(name)): str(number) for name, number, _, _ in parsed}
