"""Making a lock: resolve for the target, have every byte in the store, write down what and where from."""

import os
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import PurePath

from packaging.utils import parse_wheel_filename

from bundler.contents.apps import FILE_SCHEMES, lock_app
from bundler.lock import Lock, LockedFile, LockedModel
from bundler.packages.closure import SERVING_REQUIREMENTS, Closure, lock_closure
from bundler.packages.completeness import check_lock_complete
from bundler.packages.fetch import fetch_pins
from bundler.packages.interpreter import lock_python
from bundler.packages.pipconfig import PipConfig
from bundler.packages.requirements import collect_requirements
from bundler.packages.resolver import Resolver
from bundler.rehearsal.answers import keep_answers
from bundler.rehearsal.importplan import plan_rehearsal
from bundler.review.policy import check_lock_policy
from bundler.sealing.rotation import lock_next_signers
from bundler.selfpack import self_digests
from bundler.snapshots.models import lock_model
from bundler.spec import Spec
from bundler.store import Store

__all__ = ("SERVING_REQUIREMENTS", "closure_roots", "lock_spec")


def lock_spec(
    spec: Spec,
    store: Store,
    resolver: Resolver,
    config: PipConfig,
    *,
    previous: Lock | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Lock:
    """Resolve a spec and have all of it in the store.

    Args:
        spec: What a person wrote.
        store: Where every byte goes, once.
        resolver: Decides versions.
        config: The user's pip configuration.
        previous: A lock whose versions are kept where they still satisfy; None to take the newest.
        report: Told of every step, in a few words.

    Raises:
        SourceError: Something can't be had.
        SpecError: A model's or an application's folder can't be used.
        PolicyError: The policy refuses what is there.
    """
    sysconfig.get_config_vars()  # both threads find uv by this table, which isn't filled safely by two at once
    with ThreadPoolExecutor(max_workers=1) as beside:  # both wait for programs and indexes most of their time
        waited = beside.submit(_lock_installer, spec, store, resolver)
        closure = lock_closure(spec, store, resolver, previous=previous, report=report)
        installer = waited.result()
    python = lock_python(spec, store, previous.python if previous else None, report)
    models = tuple(_lock_models(spec, store, config, previous, report))
    created = _now()
    lock = Lock(
        spec_digest=spec.digest,
        sealift=dict(self_digests()),
        created=f"{created:%Y-%m-%dT%H:%M:%SZ}",
        sequence=spec.sequence if spec.sequence is not None else int(created.timestamp()),
        name=spec.name,
        version=spec.version,
        target=spec.target,
        resolver=closure.resolver,
        wheels=closure.wheels,
        installer=installer,
        python=python,
        models=models,
        apps=tuple(lock_app(app, spec, store) for app in spec.apps if app.scheme in FILE_SCHEMES),
        minimum=spec.minimum,
        recommended=spec.recommended,
        policy=spec.policy,
        probes=spec.probes,
        next_signers=lock_next_signers(spec, store),
        builds=closure.builds,
        alternatives=closure.alternatives,
        environment=spec.environment,
    )
    lock = replace(lock, rehearsal=plan_rehearsal(spec, _listed(spec, lock), lock.wheels, store))
    _check(lock, closure, store, report)
    return _undated(keep_answers(lock, previous, report), previous)


def _lock_models(
    spec: Spec, store: Store, config: PipConfig, previous: Lock | None, report: Callable[[str], None]
) -> Iterator[LockedModel]:
    for model in spec.models:
        report(f"model {model.name}")
        earlier = next((old for old in previous.models if old.entry.name == model.name), None) if previous else None
        yield lock_model(model, spec, store, config, previous=earlier, report=report)


def _check(lock: Lock, closure: Closure, store: Store, report: Callable[[str], None]) -> None:
    check_lock_policy(lock, store)
    for name in check_lock_complete(lock, closure.roots, store):
        report(f"{name}: nothing needs it")


def closure_roots(spec: Spec, lock: Lock | None = None) -> tuple[str, ...]:
    """Return what a bundle's environment is for: everything that the spec asks for, and what serving its models needs.

    With a lock, applications that became wheels are among it.

    Raises:
        SpecError: A file that the spec names can't be used.
    """
    serving = SERVING_REQUIREMENTS if spec.models else ()
    return (*collect_requirements(spec).requirements, *serving, *(_app_roots(spec, lock) if lock else ()))


def _listed(spec: Spec, lock: Lock) -> tuple[str, ...]:
    """Return the requirements that somebody chose: not all of a closure, which a uv.lock or pylock.toml lists."""
    chosen = replace(spec, packages=replace(spec.packages, lock_file=""))
    return (*collect_requirements(chosen).requirements, *_app_roots(spec, lock))


def _app_roots(spec: Spec, lock: Lock) -> Iterator[str]:
    built = {build.source: build.wheel for build in lock.builds}
    for app in spec.apps:
        if app.scheme in FILE_SCHEMES:
            continue
        filename = built.get(f"project {app.name}") if app.scheme == "project" else PurePath(app.location).name
        if filename is not None:
            name, number, _, _ = parse_wheel_filename(filename)
            yield f"{name}[{','.join(app.extras)}]=={number}"


def _undated(lock: Lock, previous: Lock | None) -> Lock:
    """Return the previous lock where nothing but the time differs, so that locking again changes no byte."""
    if previous is None:
        return lock
    same_time = replace(lock, created=previous.created, sequence=previous.sequence)
    return previous if same_time == previous and lock.sequence in {previous.sequence, _seconds(lock)} else lock


def _seconds(lock: Lock) -> int:
    return int(datetime.fromisoformat(lock.created).timestamp())


def _lock_installer(spec: Spec, store: Store, resolver: Resolver) -> LockedFile:
    """Lock the uv that the closed side installs with: the version in use here, for the target."""
    found = resolver.resolve([f"uv=={version('uv')}"], spec.target, {})
    (locked,) = fetch_pins(found.pins, store, spec.target, folder="bootstrap")
    return locked


def _now() -> datetime:
    """Return the time of the lock: now, or SOURCE_DATE_EPOCH (reproducible-builds.org)."""
    seconds = os.environ.get("SOURCE_DATE_EPOCH")
    return datetime.fromtimestamp(int(seconds) if seconds else int(time.time()), UTC)
