"""The spec: the TOML file in which a person writes what a bundle shall hold, parsed into frozen dataclasses."""

import json
import os
import platform
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from jinja2 import Environment, StrictUndefined
from packaging.requirements import InvalidRequirement, Requirement

from bundler.selfpack import template_root
from bundler.units import parse_size
from manifests.canonical import Json, encode_canonical
from manifests.digests import sha256_hex
from manifests.errors import SpecError
from manifests.fields import Fields, nearest_hint, type_name
from manifests.files import write_atomic
from manifests.manifest import (
    ACCELERATOR_PATTERN,
    NAME_PATTERN,
    PYTHON_PATTERN,
    VERSION_PATTERN,
    HostNeeds,
    Probe,
    Target,
)

ADAPTERS: Final = {"bge-m3": "embedding", "sentence-transformer": "embedding", "causal-lm": "chat", "hcx": "chat"}
"""Adapter -> the kind of probe that its models answer."""

PLATFORM_PATTERN: Final = r"(?:x86_64|aarch64)-(?:manylinux_2_[0-9]{2}|apple-darwin|pc-windows-msvc)"
_TABLES: Final = ("app", "bundle", "model", "packages", "policy", "probe", "python", "requires", "target")
_MODEL_KEYS: Final = ("adapter", "exclude", "format", "include", "license", "name", "settings", "source")
_POLICY_KEYS: Final = ("licenses", "max-size", "pickle", "remote-code")
_Named = TypeVar("_Named", "ModelSpec", "AppSpec")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One ``[[model]]``. ``source`` keeps its scheme; ``include`` and ``exclude`` are globs of paths in the model."""

    name: str
    source: str
    adapter: str
    format: str = "safetensors"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    settings: Mapping[str, Json] = field(default_factory=dict)
    license: str = ""

    @property
    def scheme(self) -> str:
        """``dir`` or ``wheel``."""
        return self.source.partition(":")[0]

    @property
    def location(self) -> str:
        """What follows the scheme: a folder, or ``DISTRIBUTION==VERSION``."""
        return self.source.partition(":")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class AppSpec:
    """One ``[[app]]``: a plain folder, which travels as ``app/NAME/``."""

    name: str
    source: str

    @property
    def location(self) -> str:
        """The folder as written."""
        return self.source.partition(":")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A whole spec. ``sequence`` None means the time of the lock; sizes are in bytes."""

    path: Path
    name: str
    version: str
    target: Target
    sequence: int | None = None
    requirements: tuple[str, ...] = ()
    models: tuple[ModelSpec, ...] = ()
    apps: tuple[AppSpec, ...] = ()
    minimum: HostNeeds = field(default_factory=HostNeeds)
    recommended: HostNeeds = field(default_factory=HostNeeds)
    policy: Mapping[str, Json] = field(default_factory=dict)
    probes: tuple[Probe, ...] = ()
    next_signers: str = ""

    @property
    def lock_path(self) -> Path:
        """Where the lock lies: ``NAME.lock`` beside the spec, after the spec's own file name."""
        return self.path.with_suffix(".lock")

    @property
    def digest(self) -> str:
        """The sha256 of the content: comments, white space and the order of keys don't matter, nor where it lies."""
        return sha256_hex(encode_canonical(self._to_json()))

    def resolve_folder(self, location: str) -> Path:
        """Return the absolute path of a ``dir:`` location, which is relative to the spec's folder."""
        return Path(os.path.normpath(self.path.absolute().parent / Path(location).expanduser()))

    def _to_json(self) -> dict[str, Json]:
        return ({"next-signers": self.next_signers} if self.next_signers else {}) | {
            "app": [[app.name, app.source] for app in self.apps],
            "models": [
                {key: _frozen(getattr(model, key)) for key in ModelSpec.__slots__ if key not in {"scheme", "location"}}
                for model in self.models
            ],
            "name": self.name,
            "policy": self.policy,
            "probes": [[probe.model, probe.kind, list(probe.inputs)] for probe in self.probes],
            "requirements": list(self.requirements),
            "requires": [_needs_list(self.minimum), _needs_list(self.recommended)],
            "sequence": self.sequence,
            "target": self.target.label,
            "version": self.version,
        }


def host_target() -> Target:
    """Return the target of this host's own kind, without an accelerator."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    system = {"darwin": "apple-darwin", "win32": "pc-windows-msvc"}.get(sys.platform, "manylinux_2_28")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Target(platform=f"{machine}-{system}", python=python, accelerator="cpu")


def load_spec(path: Path) -> Spec:
    """Read a spec.

    Raises:
        SpecError: It can't be read, isn't TOML (with the line), or breaks a rule (with the key path).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise SpecError(f"{path}: {reason}", hint=f"`bundler init {path}` writes a commented spec") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: {_with_line(error)}") from None
    return parse_spec(data, path)


def check_spec(spec: Spec) -> None:
    """Check what can be checked without a network: requirements, and the folders of models and applications.

    Raises:
        SpecError: With every problem that was found.
    """
    from bundler.models import app_files, folder_files  # noqa: PLC0415 - it needs this module's dataclasses
    from bundler.rotation import check_next_signers  # noqa: PLC0415 - as the next one

    problems = list(_requirement_problems(spec))
    for model in (model for model in spec.models if model.scheme == "dir"):
        where = f"{spec.path}: model {model.name!r}"
        problems += _problems_of(partial(folder_files, spec.resolve_folder(model.location), model, where))
    for app in spec.apps:
        problems += _problems_of(partial(app_files, app, spec))
    if spec.next_signers:
        problems += _problems_of(partial(check_next_signers, spec))
    if problems:
        message = "\n".join(error.message for error in problems)
        raise SpecError(message, hint=problems[0].hint if len(problems) == 1 else None)


def _requirement_problems(spec: Spec) -> Iterator[SpecError]:
    for index, text in enumerate(spec.requirements):
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            reason = str(error).splitlines()[0]
            yield SpecError(f"{spec.path}: packages.requirements[{index}]: {text!r} is not a requirement: {reason}")
            continue
        if requirement.url is not None:
            where = f"{spec.path}: packages.requirements[{index}]"
            yield SpecError(f"{where}: {text!r}: a direct url is not supported", hint="name a version of an index")


def _problems_of(action: Callable[[], object]) -> list[SpecError]:
    try:
        action()
    except SpecError as error:
        return [error]
    return []


def init_spec(path: Path) -> None:
    """Write a commented spec, for this host's own kind of target.

    Raises:
        SpecError: There is a file already, which stays as it is.
        DiskError: No space, no permission.
    """
    if path.exists() or path.is_symlink():
        raise SpecError(f"{path}: exists already", hint="choose another name; it is never overwritten")
    name = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._")[:64] or "bundle"
    template = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)  # noqa: S701 - TOML
    text = (template_root() / "spec.toml.j2").read_text(encoding="utf-8")
    write_atomic(path, template.from_string(text).render(name=name, target=host_target()).encode())


def _with_line(error: tomllib.TOMLDecodeError) -> str:
    match = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", str(error))
    return f"line {match[2]}, column {match[3]}: {match[1]}" if match else str(error)


def parse_spec(data: Mapping[str, object], path: Path) -> Spec:
    """Return the spec that parsed TOML describes; ``path`` is for messages and relative folders.

    Raises:
        SpecError: A key is unknown, missing or of the wrong type; a value breaks a rule.
    """
    fields = Fields(data, where=f"{path}: ", known=_TABLES, error=SpecError)
    bundle = _table(fields, "bundle", ("name", "next-signers", "sequence", "version"))
    for key in fields.mapping("python"):
        raise SpecError(f"{path}: python.{key}: carrying the interpreter is not supported yet", hint="remove [python]")
    packages = _table(fields, "packages", ("build-from-source", "requirements"))
    if packages.texts("build-from-source", ()):
        hint = "make the wheel with `pip wheel --no-deps` and point pip's find-links at its folder"
        raise packages.fail("build-from-source", "building sdists is not supported yet", hint=hint)
    requires = _table(fields, "requires", ("cpu-cores", "disk", "memory", "recommended"))
    models = tuple(_parse_model(item, where) for where, item in _items(fields, "model"))
    return Spec(
        path=path,
        name=bundle.text("name", pattern=NAME_PATTERN),
        version=bundle.text("version", pattern=VERSION_PATTERN),
        sequence=bundle.integer("sequence") if "sequence" in bundle else None,
        target=_parse_target(_table(fields, "target", ("accelerator", "platform", "python"))),
        requirements=packages.texts("requirements", ()),
        models=_unique(fields, "model", models),
        apps=_unique(fields, "app", tuple(_parse_app(item, where) for where, item in _items(fields, "app"))),
        minimum=_parse_needs(requires),
        recommended=_parse_needs(_table(requires, "recommended", ("cpu-cores", "disk", "memory"))),
        policy=_parse_policy(_table(fields, "policy", _POLICY_KEYS)),
        probes=tuple(_parse_probe(item, where, models) for where, item in _items(fields, "probe")),
        next_signers=bundle.text("next-signers", ""),
    )


def _table(fields: Fields, key: str, known: tuple[str, ...]) -> Fields:
    # Fields.table joins with a dot; at the top of a file the path is "FILE: key".
    return Fields(fields.mapping(key), where=fields.path(key), known=known, error=SpecError)


def _items(fields: Fields, key: str) -> list[tuple[str, object]]:
    return list(fields.items(key))


def _parse_target(fields: Fields) -> Target:
    host = host_target()
    hint = "uv's names: x86_64-manylinux_2_28, aarch64-manylinux_2_28, aarch64-apple-darwin, x86_64-pc-windows-msvc"
    name = fields.text("platform", host.platform)
    if re.fullmatch(PLATFORM_PATTERN, name, re.ASCII) is None:
        raise fields.fail("platform", f"{name!r} is not a platform that wheels are made for", hint=hint)
    python = fields.text("python", host.python)
    if re.fullmatch(PYTHON_PATTERN, python, re.ASCII) is None:
        raise fields.fail("python", f"{python!r} is not a version such as '3.11'")
    if int(python.partition(".")[2]) < 11:
        raise fields.fail("python", f"{python} is older than 3.11, which the closed side needs at least")
    accelerator = fields.text("accelerator", host.accelerator)
    if re.fullmatch(ACCELERATOR_PATTERN, accelerator, re.ASCII) is None:
        raise fields.fail("accelerator", f"{accelerator!r} is not cpu, mps or cuda-X.Y such as cuda-12.6")
    return Target(platform=name, python=python, accelerator=accelerator)


def _parse_model(item: object, where: str) -> ModelSpec:
    fields = Fields(item, where=where, known=_MODEL_KEYS, error=SpecError)
    return ModelSpec(
        name=fields.text("name", pattern=NAME_PATTERN),
        source=_parse_model_source(fields),
        adapter=fields.choice("adapter", tuple(ADAPTERS)),
        format=fields.choice("format", ("safetensors",), "safetensors"),
        include=fields.texts("include", ()),
        exclude=fields.texts("exclude", ()),
        settings={key: _to_json(value, f"{where}.settings.{key}") for key, value in fields.mapping("settings").items()},
        license=fields.text("license", ""),
    )


def _parse_model_source(fields: Fields) -> str:
    source = fields.text("source")
    scheme, _, location = source.partition(":")
    if scheme == "hf":
        hint = "download it with `hf download` and write source = 'dir:FOLDER'"
        raise fields.fail("source", f"{source!r}: models from the Hub are not supported yet", hint=hint)
    if scheme not in {"dir", "wheel"}:
        hint = nearest_hint(scheme, ("dir:", "wheel:"))
        raise fields.fail("source", f"{source!r} doesn't begin with dir: or wheel:", hint=hint)
    if not location:
        raise fields.fail("source", f"{source!r}: nothing follows the colon")
    if scheme == "wheel" and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+]+", location, re.ASCII) is None:
        raise fields.fail("source", f"{source!r} does not have the form wheel:DISTRIBUTION==VERSION")
    return source


def _parse_app(item: object, where: str) -> AppSpec:
    fields = Fields(item, where=where, known=("name", "source"), error=SpecError)
    source = fields.text("source")
    scheme, _, location = source.partition(":")
    if scheme != "dir" or not location:
        raise fields.fail("source", f"{source!r}: only a folder is supported yet", hint="write source = 'dir:FOLDER'")
    default = re.sub(r"[^a-z0-9._-]+", "-", Path(location).name.lower()).strip("-._") or None
    return AppSpec(name=fields.text("name", default, pattern=NAME_PATTERN), source=source)


def _parse_needs(fields: Fields) -> HostNeeds:
    return HostNeeds(
        cpu_cores=fields.integer("cpu-cores", 0),
        memory=_parse_bytes(fields, "memory"),
        disk=_parse_bytes(fields, "disk"),
    )


def _parse_bytes(fields: Fields, key: str) -> int:
    value = fields.raw(key)
    if not isinstance(value, str):
        return fields.integer(key, 0)
    try:
        return parse_size(value)
    except ValueError as error:
        raise fields.fail(key, str(error)) from None


def _parse_policy(fields: Fields) -> dict[str, Json]:
    policy: dict[str, Json] = {
        key: fields.choice(key, ("refuse", "allow"), "refuse") for key in ("pickle", "remote-code")
    }
    if "licenses" in fields:
        policy["licenses"] = list(fields.texts("licenses"))
    if "max-size" in fields:
        policy["max-size"] = _parse_bytes(fields, "max-size")
    return policy


def _parse_probe(item: object, where: str, models: tuple[ModelSpec, ...]) -> Probe:
    fields = Fields(item, where=where, known=("inputs", "model"), error=SpecError)
    adapters = {model.name: model.adapter for model in models}
    name = fields.choice("model", tuple(adapters)) if adapters else fields.text("model")
    if name not in adapters:
        raise fields.fail("model", f"{name!r}: the spec has no [[model]]")
    inputs = fields.texts("inputs")
    if not inputs or not all(inputs):
        raise fields.fail("inputs", "expected at least one text, and none empty")
    return Probe(model=name, kind=ADAPTERS[adapters[name]], inputs=inputs)


def _unique(fields: Fields, key: str, items: tuple[_Named, ...]) -> tuple[_Named, ...]:
    seen: set[str] = set()
    for item in items:
        if item.name in seen:
            raise fields.fail(key, f"two of them are named {item.name!r}")
        seen.add(item.name)
    return items


def _to_json(value: object, where: str) -> Json:
    """Return a TOML value for the manifest, in which a number with a fraction is a decimal string."""
    if isinstance(value, Mapping):
        return {str(key): _to_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_to_json(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float):
        if value - value != 0:
            raise SpecError(f"{where}: {value} is not a number that can be written down")
        return json.dumps(value)
    if isinstance(value, str | int):
        return value
    raise SpecError(f"{where}: expected text, a number, a boolean, a list or a table, got {type_name(value)}")


def _frozen(value: object) -> Json:
    return list(value) if isinstance(value, tuple) else value  # type: ignore[return-value] # fields of ModelSpec are Json or tuples


def _needs_list(needs: HostNeeds) -> list[Json]:
    return [needs.cpu_cores, needs.memory, needs.disk]
