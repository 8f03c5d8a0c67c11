"""The signed manifest: what is in a bundle, for which target, and how it is launched.

Invariants that :func:`parse_manifest` guarantees of every :class:`Manifest` it returns: the bytes were canonical, every
path is safe everywhere (:mod:`manifests.paths`), files are in bundle order (by kind, then by the bytes of the path), a
file has chunk digests if and only if it is larger than 64 MiB, and every model and app points at files that are there.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, cast

from manifests.canonical import Json, encode_canonical, parse_canonical
from manifests.digests import CHUNK_SIZE, chunk_count, sha256_hex
from manifests.errors import IntegrityError
from manifests.fields import Fields
from manifests.paths import find_collision, path_problem

MANIFEST_TYPE: Final = "urn:sealift:bundle-manifest:1"
MANIFEST_NAME: Final = "manifest.json"
SIGNATURE_NAME: Final = "manifest.json.sig"
MAX_MANIFEST_SIZE: Final = 16 * 1000 * 1000 - 1
KINDS: Final = {
    "bootstrap": "bootstrap",
    "wheel": "wheels",
    "model": "models",
    "app": "app",
    "config": "config",
    "doc": "docs",
}
"""Kind of file -> the only top-level folder it may lie in; the order is the order in the bundle."""

NAME_PATTERN: Final = r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?"
VERSION_PATTERN: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._+]{0,62}[A-Za-z0-9])?"
PLATFORM_PATTERN: Final = r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?"
PYTHON_PATTERN: Final = r"3\.(?:[89]|[1-9][0-9])"
ACCELERATOR_PATTERN: Final = r"cpu|mps|cuda-[0-9]{1,2}\.[0-9]{1,2}"
TIME_PATTERN: Final = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"
_HEX: Final = r"[0-9a-f]{64}"
_KEYS: Final = (
    "_type",
    "app",
    "created",
    "files",
    "launch",
    "models",
    "name",
    "policy",
    "probes",
    "requires",
    "sequence",
    "target",
    "version",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One payload file.

    ``size`` is in bytes, ``sha256`` lower-case hex of the whole file, ``mode`` 0o644 or 0o755, ``origin`` a package URL
    or empty. ``chunks`` holds the sha256 of each 64 MiB and is empty for files of at most 64 MiB.
    """

    path: str
    size: int
    sha256: str
    mode: int
    kind: str
    origin: str = ""
    chunks: tuple[str, ...] = ()

    @property
    def executable(self) -> bool:
        """Whether the file gets mode 0755."""
        return self.mode == 0o755

    @property
    def store_key(self) -> str:
        """The name of this content in a store: what the closed side verified, plus ``x`` for an executable."""
        return store_key(self.sha256, self.chunks, executable=self.executable)

    def to_json(self) -> dict[str, Json]:
        """Return the JSON object of this entry; ``chunks`` only where there are any."""
        data: dict[str, Json] = {
            "kind": self.kind,
            "mode": f"{self.mode:04o}",
            "origin": self.origin,
            "path": self.path,
            "sha256": self.sha256,
            "size": self.size,
        }
        return data | {"chunks": list(self.chunks)} if self.chunks else data


def store_key(sha256: str, chunks: tuple[str, ...], *, executable: bool) -> str:
    """Return the store's name for a content: its sha256, or that of its chunk list, and ``x`` for an executable."""
    digest = sha256_hex("".join(f"{chunk}\n" for chunk in chunks).encode()) if chunks else sha256
    return f"{digest}x" if executable else digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a bundle runs on: uv's platform name, ``3.N``, and ``cpu``, ``mps`` or ``cuda-X.Y``."""

    platform: str
    python: str
    accelerator: str

    @property
    def label(self) -> str:
        """The target in a file name, such as ``x86_64-manylinux_2_28-cp311-cpu``."""
        return f"{self.platform}-cp{self.python.replace('.', '')}-{self.accelerator}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One model: its id in the API, its adapter, its folder in the bundle, its settings (decimals are strings)."""

    name: str
    adapter: str
    path: str
    format: str
    origin: str
    settings: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppEntry:
    """One application that travels along, as a folder below ``app/`` or as a distribution among the wheels."""

    name: str
    path: str
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostNeeds:
    """What a host must have; 0 means nothing is asked. Memory and disk are in bytes."""

    cpu_cores: int = 0
    memory: int = 0
    disk: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A question to a model and, once recorded, the answer it must give again."""

    model: str
    kind: str
    inputs: tuple[str, ...]
    expect: Json = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A whole manifest. ``sequence`` is what rollback protection compares; ``created`` is UTC, ``...Z``."""

    name: str
    version: str
    created: str
    sequence: int
    target: Target
    files: tuple[FileEntry, ...]
    models: tuple[ModelEntry, ...] = ()
    app: tuple[AppEntry, ...] = ()
    minimum: HostNeeds = HostNeeds()
    recommended: HostNeeds = HostNeeds()
    policy: Mapping[str, Json] = field(default_factory=dict)
    launch: Mapping[str, Json] = field(default_factory=dict)
    probes: tuple[Probe, ...] = ()

    @property
    def stem(self) -> str:
        """The bundle's file name without its ending: ``NAME-VERSION-TARGET``."""
        return f"{self.name}-{self.version}-{self.target.label}"

    @property
    def payload_size(self) -> int:
        """All files together, in bytes."""
        return sum(entry.size for entry in self.files)

    def of_kind(self, kind: str) -> tuple[FileEntry, ...]:
        """Return the files of one kind, in bundle order."""
        return tuple(entry for entry in self.files if entry.kind == kind)

    def encode(self) -> bytes:
        """Return the canonical bytes, those that are signed."""
        return encode_canonical(self._to_json())

    def _to_json(self) -> dict[str, Json]:
        return {
            "_type": MANIFEST_TYPE,
            "app": [{"name": app.name, "origin": app.origin, "path": app.path} for app in self.app],
            "created": self.created,
            "files": [entry.to_json() for entry in self.files],
            "launch": self.launch,
            "models": [_model_json(model) for model in self.models],
            "name": self.name,
            "policy": self.policy,
            "probes": [_probe_json(probe) for probe in self.probes],
            "requires": {"minimum": _needs_json(self.minimum), "recommended": _needs_json(self.recommended)},
            "sequence": self.sequence,
            "target": {
                "accelerator": self.target.accelerator,
                "platform": self.target.platform,
                "python": self.target.python,
            },
            "version": self.version,
        }


def bundle_order(entry: FileEntry) -> tuple[int, bytes]:
    """Return the sort key of files in a bundle: the kind's place in :data:`KINDS`, then the path's UTF-8 bytes."""
    return list(KINDS).index(entry.kind), entry.path.encode("utf-8")


def manifest_digest(data: bytes) -> str:
    """Return the digest by which people compare bundles: the sha256 of manifest.json, lower-case hex."""
    return sha256_hex(data)


def parse_manifest(data: bytes) -> Manifest:
    """Parse and validate the bytes of manifest.json.

    Raises:
        IntegrityError: Not canonical, of another type or version, or an invariant of this module is broken.
    """
    document = parse_canonical(data, what=MANIFEST_NAME, max_size=MAX_MANIFEST_SIZE)
    kind = document.get("_type") if isinstance(document, Mapping) else None
    if kind != MANIFEST_TYPE:
        msg = f"{MANIFEST_NAME}: _type is {str(kind)[:80]!r}, this Sealift reads {MANIFEST_TYPE!r}"
        raise IntegrityError(msg, hint="use the runtime.pyz of the bundle's own kit")
    fields = Fields(document, where=f"{MANIFEST_NAME}: ", known=_KEYS)
    target = fields.table("target", ("platform", "python", "accelerator"))
    requires = fields.table("requires", ("minimum", "recommended"))
    manifest = Manifest(
        name=fields.text("name", pattern=NAME_PATTERN),
        version=fields.text("version", pattern=VERSION_PATTERN),
        created=_parse_created(fields),
        sequence=fields.integer("sequence"),
        target=Target(
            platform=target.text("platform", pattern=PLATFORM_PATTERN),
            python=target.text("python", pattern=PYTHON_PATTERN),
            accelerator=target.text("accelerator", pattern=ACCELERATOR_PATTERN),
        ),
        files=tuple(_parse_file(item, where) for where, item in fields.items("files")),
        models=tuple(_parse_model(item, where) for where, item in fields.items("models")),
        app=tuple(_parse_app(item, where) for where, item in fields.items("app")),
        minimum=_parse_needs(requires, "minimum"),
        recommended=_parse_needs(requires, "recommended"),
        policy=cast("Mapping[str, Json]", fields.mapping("policy")),
        launch=cast("Mapping[str, Json]", fields.mapping("launch")),
        probes=tuple(_parse_probe(item, where) for where, item in fields.items("probes")),
    )
    _check_files(manifest.files)
    _check_references(manifest)
    if manifest.encode() != data:
        msg = f"{MANIFEST_NAME}: a key is missing or written in a form of its own"
        raise IntegrityError(msg)
    return manifest


def _parse_created(fields: Fields) -> str:
    created = fields.text("created", pattern=TIME_PATTERN)
    try:
        datetime.fromisoformat(created)
    except ValueError:
        raise fields.fail("created", f"{created!r} is not a time") from None
    return created


def _parse_file(item: object, where: str) -> FileEntry:
    fields = Fields(item, where=where, known=("chunks", "kind", "mode", "origin", "path", "sha256", "size"))
    path = fields.text("path")
    if problem := path_problem(path):
        raise fields.fail("path", f"{path[:200]!r} {problem}")
    kind = fields.choice("kind", tuple(KINDS))
    if not path.startswith(f"{KINDS[kind]}/"):
        raise fields.fail("path", f"{path!r} is of kind {kind}, so it must lie in {KINDS[kind]}/")
    size = fields.integer("size")
    chunks = fields.texts("chunks", ())
    if len(chunks) != (chunk_count(size) if size > CHUNK_SIZE else 0):
        raise fields.fail("chunks", f"{len(chunks)} chunk digests for {size} bytes")
    if not all(re.fullmatch(_HEX, chunk) for chunk in chunks):
        raise fields.fail("chunks", "a chunk digest is not 64 lower-case hex digits")
    return FileEntry(
        path=path,
        size=size,
        sha256=fields.text("sha256", pattern=_HEX),
        mode=int(fields.choice("mode", ("0644", "0755")), 8),
        kind=kind,
        origin=fields.text("origin"),
        chunks=chunks,
    )


def _parse_model(item: object, where: str) -> ModelEntry:
    fields = Fields(item, where=where, known=("adapter", "format", "name", "origin", "path", "settings"))
    name = fields.text("name", pattern=NAME_PATTERN)
    return ModelEntry(
        name=name,
        adapter=fields.text("adapter", pattern=NAME_PATTERN),
        path=fields.choice("path", (f"models/{name}",)),
        format=fields.text("format"),
        origin=fields.text("origin"),
        settings=cast("Mapping[str, Json]", fields.mapping("settings")),
    )


def _parse_app(item: object, where: str) -> AppEntry:
    fields = Fields(item, where=where, known=("name", "origin", "path"))
    return AppEntry(
        name=fields.text("name", pattern=NAME_PATTERN), path=fields.text("path"), origin=fields.text("origin")
    )


def _parse_needs(requires: Fields, key: str) -> HostNeeds:
    fields = requires.table(key, ("cpu-cores", "disk", "memory"))
    return HostNeeds(
        cpu_cores=fields.integer("cpu-cores", 0), memory=fields.integer("memory", 0), disk=fields.integer("disk", 0)
    )


def _parse_probe(item: object, where: str) -> Probe:
    fields = Fields(item, where=where, known=("expect", "inputs", "kind", "model"))
    return Probe(
        model=fields.text("model", pattern=NAME_PATTERN),
        kind=fields.choice("kind", ("embedding", "chat")),
        inputs=fields.texts("inputs"),
        expect=cast("Json", fields.raw("expect")),
    )


def _check_files(files: tuple[FileEntry, ...]) -> None:
    order = [bundle_order(entry) for entry in files]
    for index in range(1, len(order)):
        if order[index - 1] >= order[index]:
            msg = f"{MANIFEST_NAME}: files[{index}] {files[index].path!r} is a duplicate or out of order"
            raise IntegrityError(msg)
    if collision := find_collision(entry.path for entry in files):
        msg = f"{MANIFEST_NAME}: {collision[0]!r} and {collision[1]!r} can't exist side by side on every file system"
        raise IntegrityError(msg)


def _check_references(manifest: Manifest) -> None:
    names = [model.name for model in manifest.models]
    if len(set(names)) != len(names):
        raise IntegrityError(f"{MANIFEST_NAME}: two models have the same name")
    for model in manifest.models:
        if not any(entry.path.startswith(f"{model.path}/") for entry in manifest.files):
            raise IntegrityError(f"{MANIFEST_NAME}: model {model.name!r} has no files")
    for app in manifest.app:
        if not any(f"{entry.path}/".startswith(f"{app.path}/") for entry in manifest.files):
            raise IntegrityError(f"{MANIFEST_NAME}: app {app.name!r} has no files at {app.path[:200]!r}")
    for probe in manifest.probes:
        if probe.model not in names:
            raise IntegrityError(f"{MANIFEST_NAME}: a probe asks the unknown model {probe.model!r}")


def _model_json(model: ModelEntry) -> dict[str, Json]:
    return {
        "adapter": model.adapter,
        "format": model.format,
        "name": model.name,
        "origin": model.origin,
        "path": model.path,
        "settings": model.settings,
    }


def _probe_json(probe: Probe) -> dict[str, Json]:
    return {"expect": probe.expect, "inputs": list(probe.inputs), "kind": probe.kind, "model": probe.model}


def _needs_json(needs: HostNeeds) -> dict[str, Json]:
    return {"cpu-cores": needs.cpu_cores, "disk": needs.disk, "memory": needs.memory}
