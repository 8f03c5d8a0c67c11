"""Recording answers: a bundle of the lock is built and rehearsed in a throw-away folder, and what it answers kept."""

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from bundler.lock import Lock
from bundler.rehearsal.answers import fill_answers, with_default_probes
from bundler.rehearsal.evidence import NONE_RECORDED, Rehearsal
from bundler.rehearsal.rehearse import unrehearsable
from bundler.sealing.build import BuildOptions, build_bundle
from bundler.spec import Spec
from bundler.store import Store
from manifests.canonical import Json
from manifests.pieces import Progress
from manifests.rehearsal import parse_agreement


def record_answers(
    spec: Spec,
    lock: Lock,
    store: Store,
    *,
    progress: Callable[[int], contextlib.AbstractContextManager[Progress]],
    report: Callable[[str], None],
) -> Lock:
    """Return the lock with the answers of its models, as this host gives them.

    Each probe's ``expect`` gets ``vectors`` and ``sparse``, or ``texts``, and ``versions``. A model without a probe
    gets one. Of an embedder whose settings say ``int8`` it is recorded, too, how far its vectors are from the exact
    ones, on the texts of its probes. Where this host can't run the target, the lock stays as it is: what isn't
    recorded stays ``null``.

    Raises:
        SealiftError: The bundle can't be built, or fails its rehearsal.
    """
    if not lock.models:
        report("nothing to record: the bundle has no models")
        return lock
    if (reason := unrehearsable(lock.target)) is not None:
        report(f"unrecorded: {reason}")
        return lock
    asked = with_default_probes(lock)
    unmeasured = replace(lock.rehearsal, agreement={})
    fresh = replace(lock, probes=tuple(replace(probe, expect=None) for probe in asked), rehearsal=unmeasured)
    folder = spec.path.absolute().parent / f".{spec.path.stem}.record-{os.getpid()}"

    def told(words: str) -> None:
        if not words.endswith(NONE_RECORDED):  # that nothing was compared yet goes without saying here
            report(words)

    try:
        options = BuildOptions(output=folder, signer=None)
        built = build_bundle(spec, fresh, store, options, progress=progress, report=told)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    done = built.rehearsal
    if done is None:
        raise AssertionError("a build with the default options rehearses")
    found = {name: parse_agreement(item, f"agreement.{name}") for name, item in done.agreement.items()}
    for name, agreement in found.items():
        report(f"model {name}: 8-bit against exact vectors: {agreement.words}")
    measured = replace(fresh, rehearsal=replace(unmeasured, agreement=found))
    return fill_answers(measured, {str(model["name"]): _answers(model, done, fresh) for model in done.models})


def _answers(model: Mapping[str, Any], done: Rehearsal, lock: Lock) -> tuple[list[Json], dict[str, Json]]:
    entry = next(item for item in lock.model_entries() if item.name == model["name"])
    own = {"adapter": entry.adapter, "device": model["device"], "dtype": model["dtype"]}
    return list(model["answers"]), {**done.versions, **own}
