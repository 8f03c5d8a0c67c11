"""The wheels of a bundle: what is asked for from everywhere, resolved, fetched, and built where it has to be."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from bundler.contents.apps import FILE_SCHEMES, AppWheel, lock_app_wheel
from bundler.lock import Lock, LockedBuild, LockedFile
from bundler.packages.accelerator import check_budget
from bundler.packages.fetch import fetch_pins
from bundler.packages.requirements import Inputs, check_hashes, collect_requirements
from bundler.packages.resolver import Pin, Resolution, Resolver, closure_packages
from bundler.packages.sdists import Builder, built_file, fetch_sdist
from bundler.spec import Spec
from bundler.store import Store
from manifests.errors import SourceError, SpecError

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Closure:
    """All wheels, sorted by path, and how they came about.

    ``roots`` is what was asked for, applications included; ``resolver`` names what decided, ``none`` where nothing had
    to be decided; ``alternatives`` are as in the lock.
    """

    wheels: tuple[LockedFile, ...]
    builds: tuple[LockedBuild, ...]
    roots: tuple[str, ...]
    resolver: str
    alternatives: Mapping[str, Mapping[str, str]]


def lock_closure(
    spec: Spec,
    store: Store,
    resolver: Resolver,
    *,
    previous: Lock | None,
    report: Callable[[str], None],
) -> Closure:
    """Have every wheel of a spec in the store.

    Args:
        spec: What a person wrote.
        store: Gets what it lacks.
        resolver: Decides versions.
        previous: A lock whose versions and builds are kept where they still satisfy.
        report: Told of every step.

    Raises:
        SpecError: A requirement, an input file or an application can't be used.
        SourceError: Something can't be had or built.
        IntegrityError: A file isn't what it should be.
        PolicyError: The wheels are larger than the spec's ``max-size``.
    """
    builder = Builder(
        store=store, resolver=resolver, target=spec.target, known=previous.builds if previous is not None else ()
    )
    apps = list(_app_wheels(spec, builder, report))
    inputs = collect_requirements(spec)
    asked = [*inputs.requirements, *_app_requirements(apps), *(SERVING_REQUIREMENTS if spec.models else ())]
    report("resolve")
    resolution = _resolve(asked, inputs, spec, resolver, previous) if asked else None
    pins = resolution.pins if resolution else ()
    _check_names(pins, apps, spec)
    check_hashes(pins, inputs.hashes)
    report(check_budget(closure_packages(pins), spec.policy.get("max-size")))
    report("fetch wheels")
    wheels = fetch_pins([pin for pin in pins if not pin.is_source], store, spec.target)
    builds = [*(app.build for app in apps if app.build), *_build_sources(pins, builder, report)]
    files = [*wheels, *(app.file for app in apps), *(built_file(build, store) for build in _unplaced(builds, apps))]
    return Closure(
        wheels=tuple(sorted(files, key=lambda file: file.path)),
        builds=tuple(sorted(builds, key=lambda build: build.wheel)),
        roots=(*asked, *(_root(app, spec) for app in apps)),
        resolver=resolution.resolver if resolution else "none",
        alternatives={f"{pin.name}=={pin.version}": pin.alternatives for pin in pins if pin.alternatives},
    )


def kept_versions(previous: Lock | None) -> Mapping[str, str]:
    """Return name -> version of the wheels of an earlier lock."""
    wheels = previous.wheels if previous else ()
    parsed = (parse_wheel_filename(wheel.path.rsplit("/", 1)[-1]) for wheel in wheels)
    return {canonicalize_name(name): str(number) for name, number, _, _ in parsed}


def _resolve(asked: Sequence[str], inputs: Inputs, spec: Spec, resolver: Resolver, previous: Lock | None) -> Resolution:
    """Resolve to wheels alone where that is possible, else with the source distributions that the spec allows."""
    keep, sources = kept_versions(previous), spec.packages.build_from_source
    try:
        return resolver.resolve(asked, spec.target, keep, constraints=inputs.constraints)
    except SourceError:
        if not sources:
            raise
    return resolver.resolve(asked, spec.target, keep, constraints=inputs.constraints, sources=sources)


def _app_wheels(spec: Spec, builder: Builder, report: Callable[[str], None]) -> Iterator[AppWheel]:
    for app in spec.apps:
        if app.scheme not in FILE_SCHEMES:
            report(f"app {app.name}")
            yield lock_app_wheel(app, spec, builder)


def _app_requirements(apps: Sequence[AppWheel]) -> Iterator[str]:
    """Yield what applications require of others than each other; the closure's proof looks at those."""
    own = {app.name for app in apps}
    for app in apps:
        yield from (text for text in app.requirements if canonicalize_name(Requirement(text).name) not in own)


def _root(app: AppWheel, spec: Spec) -> str:
    wanted = ",".join(next(item.extras for item in spec.apps if item.name == app.app))
    return f"{app.name}[{wanted}]=={app.version}"


def _check_names(pins: Sequence[Pin], apps: Sequence[AppWheel], spec: Spec) -> None:
    names = {app.name for app in apps}
    for pin in pins:
        if pin.name in names:
            msg = f"{spec.path}: app {pin.name!r} is asked for as a package of an index too, {pin.version}"
            raise SpecError(msg, hint="only one of them can be installed: rename one, or drop the [[app]]")


def _build_sources(pins: Sequence[Pin], builder: Builder, report: Callable[[str], None]) -> Iterator[LockedBuild]:
    for pin in pins:
        if pin.is_source:
            report(f"build {pin.filename}")
            yield builder.build(fetch_sdist(pin, builder.store))


def _unplaced(builds: Sequence[LockedBuild], apps: Sequence[AppWheel]) -> Iterator[LockedBuild]:
    own = {app.file.path for app in apps}
    return (build for build in builds if f"wheels/{build.wheel}" not in own)
