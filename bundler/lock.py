"""The lock: every byte that a bundle will hold, where it comes from, and what decided so."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from manifests.canonical import Json
from manifests.errors import SpecError
from manifests.fields import Fields
from manifests.files import write_atomic
from manifests.manifest import TIME_PATTERN, AppEntry, HostNeeds, ModelEntry, Probe, Target
from manifests.paths import path_problem
from manifests.rehearsal import RehearsalPlan, parse_plan

LOCK_TYPE: Final = "urn:sealift:lock:1"
_HEX: Final = r"[0-9a-f]{64}"
_KEYS: Final = (
    *("_type", "alternatives", "apps", "builds", "created", "environment", "installer", "minimum", "models", "name"),
    *("next_signers", "policy", "probes", "python", "recommended", "rehearsal", "resolver", "sealift", "sequence"),
    *("spec_digest", "target", "version", "wheels"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedFile:
    """One file of the bundle.

    ``origin`` is a package URL; ``source`` says how it was had, without passwords and paths of this machine:
    ``index URL``, ``local FILE`` (find-links, or an index in a folder), ``built SOURCE``, ``folder``, ``commit``,
    ``wheel``, ``hub`` or ``converted``, the latter two with the branch or tag that was asked for; ``origin_sha256`` is
    the digest of what it was made from, where it was made.
    """

    path: str
    size: int
    sha256: str
    chunks: tuple[str, ...] = ()
    origin: str = ""
    source: str = ""
    origin_sha256: str = ""
    executable: bool = False

    def to_json(self) -> dict[str, Json]:
        """Return the lock's object for this file; what is empty is left out."""
        values: dict[str, Json] = {
            "chunks": list(self.chunks),
            "executable": self.executable,
            "origin": self.origin,
            "origin_sha256": self.origin_sha256,
            "source": self.source,
        }
        required: dict[str, Json] = {"path": self.path, "sha256": self.sha256, "size": self.size}
        return required | {key: value for key, value in values.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedModel:
    """A model: its entry in the manifest, its files, and what it was converted with, if it was.

    ``license`` is an SPDX expression, as declared in the spec or by the model's own page, else empty. ``facts`` is what
    a policy decides on, as :mod:`bundler.snapshots.modelfacts` found it.
    """

    entry: ModelEntry
    files: tuple[LockedFile, ...]
    converter: str = ""
    license: str = ""
    facts: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedApp:
    """An application's plain files."""

    entry: AppEntry
    files: tuple[LockedFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedBuild:
    """A wheel that was built here. ``source`` is the file name of the sdist, or ``project NAME`` for a folder's.

    ``requirements`` are the pins (``NAME==VERSION``) of the isolated environment that it was built in.
    """

    wheel: str
    wheel_sha256: str
    source: str
    source_sha256: str
    requirements: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedPython:
    """The interpreter that travels: its version, such as ``3.11.9``, and its archive in ``bootstrap/``."""

    version: str
    file: LockedFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """A whole lock.

    ``sealift`` pins what the bundle takes of Sealift itself: file -> sha256. ``alternatives`` holds the wheels of the
    same versions that were not chosen: ``NAME==VERSION`` -> file name -> sha256.
    """

    spec_digest: str
    sealift: Mapping[str, str]
    created: str
    sequence: int
    name: str
    version: str
    target: Target
    resolver: str
    wheels: tuple[LockedFile, ...]
    installer: LockedFile
    models: tuple[LockedModel, ...] = ()
    apps: tuple[LockedApp, ...] = ()
    minimum: HostNeeds = HostNeeds()
    recommended: HostNeeds = HostNeeds()
    policy: Mapping[str, Json] = field(default_factory=dict)
    probes: tuple[Probe, ...] = ()
    next_signers: LockedFile | None = None
    python: LockedPython | None = None
    builds: tuple[LockedBuild, ...] = ()
    alternatives: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    rehearsal: RehearsalPlan = field(default_factory=RehearsalPlan)

    def all_files(self) -> Iterator[LockedFile]:
        """Yield every file that comes out of the store."""
        yield self.installer
        if self.python:
            yield self.python.file
        yield from self.wheels
        for model in self.models:
            yield from model.files
        for app in self.apps:
            yield from app.files
        if self.next_signers:
            yield self.next_signers

    def model_entries(self) -> tuple[ModelEntry, ...]:
        """Return the models as the manifest lists them."""
        return tuple(model.entry for model in self.models)

    def app_entries(self) -> tuple[AppEntry, ...]:
        """Return the applications as the manifest lists them."""
        return tuple(app.entry for app in self.apps)

    def encode(self) -> bytes:
        """Return the bytes of the lock: indented JSON, sorted keys, so that two locks can be compared line by line."""
        return json.dumps(self._to_json(), indent=1, sort_keys=True, ensure_ascii=False).encode("utf-8") + b"\n"

    def _to_json(self) -> dict[str, Json]:
        return self._optional_json() | {
            "_type": LOCK_TYPE,
            "apps": [
                {"files": _files_json(app.files), "name": app.entry.name, "origin": app.entry.origin}
                for app in self.apps
            ],
            "created": self.created,
            "installer": self.installer.to_json(),
            "minimum": _needs_json(self.minimum),
            "models": [_model_json(model) for model in self.models],
            "name": self.name,
            "policy": self.policy,
            "probes": [
                {"expect": probe.expect, "inputs": list(probe.inputs), "kind": probe.kind, "model": probe.model}
                for probe in self.probes
            ],
            "recommended": _needs_json(self.recommended),
            "resolver": self.resolver,
            "sealift": self.sealift,
            "sequence": self.sequence,
            "spec_digest": self.spec_digest,
            "target": {
                "accelerator": self.target.accelerator,
                "platform": self.target.platform,
                "python": self.target.python,
            },
            "version": self.version,
            "wheels": _files_json(self.wheels),
        }

    def _optional_json(self) -> dict[str, Json]:
        python = self.python
        values: dict[str, Json] = {
            "alternatives": self.alternatives,
            "builds": [_build_json(build) for build in self.builds],
            "environment": self.environment,
            "next_signers": self.next_signers.to_json() if self.next_signers else {},
            "python": {"file": python.file.to_json(), "version": python.version} if python else {},
            "rehearsal": self.rehearsal.to_json(),
        }
        return {key: value for key, value in values.items() if value}


def write_lock(path: Path, lock: Lock) -> None:
    """Write a lock so that a reader sees the old one or the new one.

    Raises:
        DiskError: It can't be written.
    """
    write_atomic(path, lock.encode())


def load_lock(path: Path) -> Lock:
    """Read a lock.

    Raises:
        SpecError: There is none, or it is damaged.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{path}: there is no lock yet", hint=f"bundler lock {path.with_suffix('.toml')}") from None
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: can't be read: {error}", hint="make it again: bundler lock SPEC") from None
    return parse_lock(data, str(path))


def parse_lock(data: object, where: str) -> Lock:
    """Return the lock that parsed JSON describes.

    Raises:
        SpecError: A key is unknown, missing or of the wrong type.
    """
    fields = Fields(data, where=f"{where}: ", known=_KEYS, error=SpecError)
    if fields.text("_type", "") != LOCK_TYPE:
        raise SpecError(f"{where}: not a lock of this Sealift", hint="make it again: bundler lock SPEC")
    target = fields.table("target", ("accelerator", "platform", "python"))
    return Lock(
        spec_digest=fields.text("spec_digest", pattern=_HEX),
        sealift=cast("Mapping[str, str]", fields.mapping("sealift")),
        created=fields.text("created", pattern=TIME_PATTERN),
        sequence=fields.integer("sequence"),
        name=fields.text("name"),
        version=fields.text("version"),
        target=Target(
            platform=target.text("platform"), python=target.text("python"), accelerator=target.text("accelerator")
        ),
        resolver=fields.text("resolver"),
        wheels=_parse_files(fields, "wheels"),
        installer=_parse_file(fields.mapping("installer"), fields.path("installer")),
        models=tuple(_parse_model(item, path) for path, item in fields.items("models")),
        apps=tuple(_parse_app(item, path) for path, item in fields.items("apps")),
        minimum=_parse_needs(fields, "minimum"),
        recommended=_parse_needs(fields, "recommended"),
        policy=cast("Mapping[str, Json]", fields.mapping("policy")),
        probes=tuple(_parse_probe(item, path) for path, item in fields.items("probes")),
        next_signers=(
            _parse_file(fields.mapping("next_signers"), fields.path("next_signers"))
            if "next_signers" in fields
            else None
        ),
        python=_parse_python(fields) if "python" in fields else None,
        builds=tuple(_parse_build(item, path) for path, item in fields.items("builds")),
        alternatives=cast("Mapping[str, Mapping[str, str]]", fields.mapping("alternatives")),
        environment=cast("Mapping[str, str]", fields.mapping("environment")),
        rehearsal=parse_plan(fields.mapping("rehearsal"), fields.path("rehearsal"), SpecError),
    )


def _parse_python(fields: Fields) -> LockedPython:
    table = fields.table("python", ("file", "version"))
    return LockedPython(version=table.text("version"), file=_parse_file(table.mapping("file"), table.path("file")))


def _parse_build(item: object, where: str) -> LockedBuild:
    known = ("requirements", "source", "source_sha256", "wheel", "wheel_sha256")
    fields = Fields(item, where=where, known=known, error=SpecError)
    return LockedBuild(
        wheel=fields.text("wheel"),
        wheel_sha256=fields.text("wheel_sha256", pattern=_HEX),
        source=fields.text("source"),
        source_sha256=fields.text("source_sha256", pattern=_HEX),
        requirements=fields.texts("requirements", ()),
    )


def _parse_files(fields: Fields, key: str) -> tuple[LockedFile, ...]:
    return tuple(_parse_file(item, path) for path, item in fields.items(key))


def _parse_file(item: object, where: str) -> LockedFile:
    known = ("chunks", "executable", "origin", "origin_sha256", "path", "sha256", "size", "source")
    fields = Fields(item, where=where, known=known, error=SpecError)
    path = fields.text("path")
    if problem := path_problem(path):
        raise fields.fail("path", f"{path[:200]!r} {problem}")
    return LockedFile(
        path=path,
        size=fields.integer("size"),
        sha256=fields.text("sha256", pattern=_HEX),
        chunks=fields.texts("chunks", ()),
        origin=fields.text("origin", ""),
        source=fields.text("source", ""),
        origin_sha256=fields.text("origin_sha256", ""),
        executable=fields.raw("executable") is True,
    )


def _parse_model(item: object, where: str) -> LockedModel:
    known = ("adapter", "converter", "facts", "files", "format", "license", "name", "origin", "settings")
    fields = Fields(item, where=where, known=known, error=SpecError)
    name = fields.text("name")
    entry = ModelEntry(
        name=name,
        adapter=fields.text("adapter"),
        path=f"models/{name}",
        format=fields.text("format"),
        origin=fields.text("origin"),
        settings=cast("Mapping[str, Json]", fields.mapping("settings")),
    )
    return LockedModel(
        entry=entry,
        files=_parse_files(fields, "files"),
        converter=fields.text("converter", ""),
        license=fields.text("license", ""),
        facts=cast("Mapping[str, Json]", fields.mapping("facts")),
    )


def _parse_app(item: object, where: str) -> LockedApp:
    fields = Fields(item, where=where, known=("files", "name", "origin"), error=SpecError)
    name = fields.text("name")
    entry = AppEntry(name=name, path=f"app/{name}", origin=fields.text("origin"))
    return LockedApp(entry=entry, files=_parse_files(fields, "files"))


def _parse_needs(fields: Fields, key: str) -> HostNeeds:
    needs = fields.table(key, ("cpu-cores", "disk", "memory"))
    return HostNeeds(
        cpu_cores=needs.integer("cpu-cores", 0), memory=needs.integer("memory", 0), disk=needs.integer("disk", 0)
    )


def _parse_probe(item: object, where: str) -> Probe:
    fields = Fields(item, where=where, known=("expect", "inputs", "kind", "model"), error=SpecError)
    expect = cast("Json", fields.raw("expect"))
    return Probe(model=fields.text("model"), kind=fields.text("kind"), inputs=fields.texts("inputs"), expect=expect)


def _model_json(model: LockedModel) -> dict[str, Json]:
    entry = model.entry
    values: dict[str, Json] = {
        "adapter": entry.adapter,
        "converter": model.converter,
        "facts": model.facts,
        "files": _files_json(model.files),
        "format": entry.format,
        "license": model.license,
        "name": entry.name,
        "origin": entry.origin,
        "settings": entry.settings,
    }
    return {key: value for key, value in values.items() if value or key not in {"facts", "license"}}


def _build_json(build: LockedBuild) -> dict[str, Json]:
    return {
        "requirements": list(build.requirements),
        "source": build.source,
        "source_sha256": build.source_sha256,
        "wheel": build.wheel,
        "wheel_sha256": build.wheel_sha256,
    }


def _files_json(files: tuple[LockedFile, ...]) -> list[Json]:
    return [file.to_json() for file in files]


def _needs_json(needs: HostNeeds) -> dict[str, Json]:
    return {"cpu-cores": needs.cpu_cores, "disk": needs.disk, "memory": needs.memory}
