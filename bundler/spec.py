"""The spec: what a person wants a bundle to hold, as frozen dataclasses. :mod:`bundler.specfile` reads it from TOML."""

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from manifests.canonical import Json, encode_canonical
from manifests.digests import sha256_hex
from manifests.manifest import HostNeeds, Probe, Target
from manifests.rehearsal import AllowedAttempt

ADAPTERS: Final = {"bge-m3": "embedding", "sentence-transformer": "embedding", "causal-lm": "chat", "hcx": "chat"}
"""Adapter -> the kind of probe that its models answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSpec:
    """One ``[[packages.index]]``: the only index that these packages may come from."""

    url: str
    packages: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagesSpec:
    """``[packages]``: where requirements come from. Paths are as written, relative to the spec's folder.

    ``pyproject`` gives its ``project.dependencies`` with the named ``extras`` and dependency ``groups`` (PEP 735);
    ``lock_file`` is a ``uv.lock`` or ``pylock.toml`` whose versions are taken as they are.
    """

    requirements: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    pyproject: str = ""
    extras: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    lock_file: str = ""
    build_from_source: tuple[str, ...] = ()
    indexes: tuple[IndexSpec, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Every file that has a say in what is resolved."""
        return (*self.files, *(item for item in (self.pyproject, self.lock_file) if item))


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonSpec:
    """``[python]``: the interpreter to carry.

    Either ``version`` (``3.11`` or ``3.11.9``, fetched by uv), or ``source``: the file or url of
    python-build-standalone's ``install_only`` archive, together with its ``sha256``.
    """

    version: str = ""
    source: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One ``[[model]]``. ``source`` keeps its scheme; ``include`` and ``exclude`` are globs of paths in the model."""

    name: str
    source: str
    adapter: str
    format: str = "safetensors"
    dtype: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    settings: Mapping[str, Json] = field(default_factory=dict)
    license: str = ""

    @property
    def scheme(self) -> str:
        """``dir``, ``wheel`` or ``hf``."""
        return self.source.partition(":")[0]

    @property
    def location(self) -> str:
        """What follows the scheme: a folder, ``DISTRIBUTION==VERSION``, or ``ORG/NAME@REVISION``."""
        return self.source.partition(":")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class AppSpec:
    """One ``[[app]]``.

    ``dir:FOLDER`` and ``git:CHECKOUT@COMMIT`` travel as plain files, ``app/NAME/``; ``wheel:FILE`` and
    ``project:FOLDER`` (built to a wheel here) go into the venv, and their requirements join the closure.
    """

    name: str
    source: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()

    @property
    def scheme(self) -> str:
        """``dir``, ``git``, ``wheel`` or ``project``."""
        return self.source.partition(":")[0]

    @property
    def location(self) -> str:
        """What follows the scheme, as written."""
        return self.source.partition(":")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalSpec:
    """``[rehearsal]``: more modules to import, modules or distributions not to import, and what of the network may be.

    Without it, every top-level module of every requirement that the spec lists is imported, and no attempt is excused.
    """

    imports: tuple[str, ...] = ()
    skip_imports: tuple[str, ...] = ()
    allowed: tuple[AllowedAttempt, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """Return what it says, for the digest of the spec."""
        allowed: list[Json] = [item.to_json() for item in self.allowed]
        values: dict[str, Json] = {"imports": list(self.imports), "skip-imports": list(self.skip_imports)}
        return {key: value for key, value in (values | {"allow-network": allowed}).items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A whole spec.

    ``sequence`` None means the time of the lock; sizes are in bytes; ``environment`` goes into ``config/offline.env``;
    ``input_digests`` holds the sha256 of every file that :attr:`PackagesSpec.inputs` names, so that a lock notices when
    one changes.
    """

    path: Path
    name: str
    version: str
    target: Target
    sequence: int | None = None
    packages: PackagesSpec = field(default_factory=PackagesSpec)
    python: PythonSpec | None = None
    models: tuple[ModelSpec, ...] = ()
    apps: tuple[AppSpec, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    minimum: HostNeeds = field(default_factory=HostNeeds)
    recommended: HostNeeds = field(default_factory=HostNeeds)
    policy: Mapping[str, Json] = field(default_factory=dict)
    probes: tuple[Probe, ...] = ()
    rehearsal: RehearsalSpec = field(default_factory=RehearsalSpec)
    next_signers: str = ""
    input_digests: Mapping[str, str] = field(default_factory=dict)
    is_retargeted: bool = False

    @property
    def lock_path(self) -> Path:
        """Where the lock lies: ``NAME.lock`` beside the spec, ``NAME.TARGET.lock`` for another target than its own."""
        return self.path.with_suffix(f".{self.target.label}.lock" if self.is_retargeted else ".lock")

    @property
    def digest(self) -> str:
        """The sha256 of the content: comments, white space and the order of keys don't matter, nor where it lies."""
        return sha256_hex(encode_canonical(self._to_json()))

    def resolve_folder(self, location: str) -> Path:
        """Return the absolute path of a location, which is relative to the spec's folder."""
        return Path(os.path.normpath(self.path.absolute().parent / Path(location).expanduser()))

    def _to_json(self) -> dict[str, Json]:
        needs = [_needs_list(self.minimum), _needs_list(self.recommended)]
        values: dict[str, Json] = {
            "apps": [_slots_json(app) for app in self.apps],
            "environment": self.environment,
            "inputs": self.input_digests,
            "models": [_slots_json(model) for model in self.models],
            "name": self.name,
            "next-signers": self.next_signers,
            "packages": _slots_json(self.packages),
            "policy": self.policy,
            "probes": [[probe.model, probe.kind, list(probe.inputs)] for probe in self.probes],
            "python": _slots_json(self.python) if self.python else {},
            "rehearsal": self.rehearsal.to_json(),
            "requires": needs,
            "sequence": self.sequence,
            "target": self.target.label,
            "version": self.version,
        }
        return {key: value for key, value in values.items() if value or key == "sequence"}


def host_target() -> Target:
    """Return the target of this host's own kind, without an accelerator."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    system = {"darwin": "apple-darwin", "win32": "pc-windows-msvc"}.get(sys.platform, "manylinux_2_28")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Target(platform=f"{machine}-{system}", python=python, accelerator="cpu")


def _slots_json(value: ModelSpec | AppSpec | PackagesSpec | PythonSpec | IndexSpec) -> dict[str, Json]:
    """Return the fields of a dataclass that say something."""
    found = {key: _to_json(getattr(value, key)) for key in value.__slots__}
    return {key: item for key, item in found.items() if item}


def _to_json(value: object) -> Json:
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, IndexSpec):
        return _slots_json(value)
    return value  # type: ignore[return-value] # every other field is Json


def _needs_list(needs: HostNeeds) -> list[Json]:
    return [needs.cpu_cores, needs.memory, needs.disk]
