"""Making a lock: resolve for the target, have every byte in the store, write down what and where from."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Final

from packaging.utils import canonicalize_name, parse_wheel_filename

from bundler.fetch import fetch_pins
from bundler.lock import Lock, LockedApp, LockedFile
from bundler.models import app_files, lock_model
from bundler.pipconfig import PipConfig
from bundler.resolver import Resolver
from bundler.rotation import lock_next_signers
from bundler.selfpack import self_digests
from bundler.spec import AppSpec, Spec
from bundler.store import Store
from manifests.manifest import AppEntry

SERVING_REQUIREMENTS: Final = (
    "numpy>=1.26",
    "pyyaml>=6",
    "safetensors>=0.4.5",
    "starlette>=0.41",
    "torch>=2.6",
    "transformers>=4.52",
    "uvicorn>=0.32",
)
"""What a bundle with models needs on top of its own requirements: pyproject's extra ``adapters``."""


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
    report("resolve")
    requirements = [*spec.packages.requirements, *(SERVING_REQUIREMENTS if spec.models else ())]
    resolution = resolver.resolve(requirements, spec.target, _kept(previous)) if requirements else None
    report("fetch wheels")
    wheels = fetch_pins(resolution.pins, store, spec.target) if resolution else ()
    installer = _lock_installer(spec, store, resolver)
    models = []
    for model in spec.models:
        report(f"model {model.name}")
        models.append(lock_model(model, spec, store, config))
    created = _now()
    lock = Lock(
        spec_digest=spec.digest,
        sealift=dict(self_digests()),
        created=f"{created:%Y-%m-%dT%H:%M:%SZ}",
        sequence=spec.sequence if spec.sequence is not None else int(created.timestamp()),
        name=spec.name,
        version=spec.version,
        target=spec.target,
        resolver=resolution.resolver if resolution else "none",
        wheels=wheels,
        installer=installer,
        models=tuple(models),
        apps=tuple(_lock_app(app, spec, store) for app in spec.apps),
        minimum=spec.minimum,
        recommended=spec.recommended,
        policy=spec.policy,
        probes=spec.probes,
        next_signers=lock_next_signers(spec, store),
    )
    return _undated(lock, previous)


def _undated(lock: Lock, previous: Lock | None) -> Lock:
    """Return the previous lock where nothing but the time differs, so that locking again changes no byte."""
    if previous is None:
        return lock
    same_time = replace(lock, created=previous.created, sequence=previous.sequence)
    return previous if same_time == previous and lock.sequence in {previous.sequence, _seconds(lock)} else lock


def _seconds(lock: Lock) -> int:
    return int(datetime.fromisoformat(lock.created).timestamp())


def _kept(previous: Lock | None) -> Mapping[str, str]:
    wheels = previous.wheels if previous else ()
    parsed = (parse_wheel_filename(wheel.path.rsplit("/", 1)[-1]) for wheel in wheels)
    return {canonicalize_name(name): str(number) for name, number, _, _ in parsed}


def _lock_installer(spec: Spec, store: Store, resolver: Resolver) -> LockedFile:
    """Lock the uv that the closed side installs with: the version in use here, for the target."""
    found = resolver.resolve([f"uv=={version('uv')}"], spec.target, {})
    (locked,) = fetch_pins(found.pins, store, spec.target, folder="bootstrap")
    return locked


def _lock_app(app: AppSpec, spec: Spec, store: Store) -> LockedApp:
    origin = f"pkg:generic/{app.name}"
    files = []
    for name, path in app_files(app, spec):
        digest = store.add_file(path)
        files.append(
            LockedFile(
                path=f"app/{app.name}/{name}",
                size=digest.size,
                sha256=digest.sha256,
                chunks=digest.chunks,
                origin=origin,
                source="folder",
                executable=os.access(path, os.X_OK),
            )
        )
    return LockedApp(entry=AppEntry(name=app.name, path=f"app/{app.name}", origin=origin), files=tuple(files))


def _now() -> datetime:
    """Return the time of the lock: now, or SOURCE_DATE_EPOCH (reproducible-builds.org)."""
    seconds = os.environ.get("SOURCE_DATE_EPOCH")
    return datetime.fromtimestamp(int(seconds) if seconds else int(time.time()), UTC)
