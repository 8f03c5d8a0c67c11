"""From a parsed TOML document to a spec: every key, its form, and what a mistake in it is called."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeVar

from bundler.spec import (
    ADAPTERS,
    AppSpec,
    IndexSpec,
    ModelSpec,
    PackagesSpec,
    PythonSpec,
    RehearsalSpec,
    Spec,
    host_target,
)
from bundler.units import parse_size
from manifests.canonical import Json
from manifests.errors import SpecError
from manifests.fields import Fields, nearest_hint, type_name
from manifests.manifest import (
    ACCELERATOR_PATTERN,
    NAME_PATTERN,
    PYTHON_PATTERN,
    VERSION_PATTERN,
    HostNeeds,
    Probe,
    Target,
)
from manifests.modelsettings import KINDS, SettingsError, read_settings
from manifests.policy import CLASSES, parse_waiver
from manifests.rehearsal import MODULE_PATTERN, parse_allowed

PLATFORM_PATTERN: Final = r"(?:x86_64|aarch64)-(?:manylinux_2_[0-9]{2}|apple-darwin|pc-windows-msvc)"
_TABLES: Final = (
    "app",
    "bundle",
    "env",
    "extends",
    "model",
    "packages",
    "policy",
    "probe",
    "python",
    "rehearsal",
    "requires",
    "target",
)
_PACKAGE_KEYS: Final = (
    *("build-from-source", "extras", "files", "groups", "index", "lock-file", "pyproject", "requirements"),
)
_MODEL_KEYS: Final = ("adapter", "dtype", "exclude", "format", "include", "license", "name", "settings", "source")
_POLICY_KEYS: Final = (*CLASSES, "licenses", "max-size", "waiver")
_TARGET_KEYS: Final = ("accelerator", "platform", "python")
_APP_SCHEMES: Final = ("dir:", "git:", "project:", "wheel:")
_MODEL_SCHEMES: Final = ("dir:", "hf:", "wheel:")
_MODEL_FORMS: Final = {
    "wheel": (r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+]+", "wheel:DISTRIBUTION==VERSION"),
    "hf": (r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?(?:@[A-Za-z0-9][\w./-]*)?", "hf:ORG/NAME@REVISION"),
}
_Named = TypeVar("_Named", ModelSpec, AppSpec)


def parse_spec(data: Mapping[str, object], path: Path) -> Spec:
    """Return the spec that parsed TOML describes; ``path`` is for messages and relative folders.

    Raises:
        SpecError: A key is unknown, missing or of the wrong type; a value breaks a rule.
    """
    fields = Fields(data, where=f"{path}: ", known=_TABLES, error=SpecError)
    bundle = _table(fields, "bundle", ("name", "next-signers", "sequence", "version"))
    requires = _table(fields, "requires", ("cpu-cores", "disk", "memory", "recommended"))
    models = tuple(_parse_model(item, where) for where, item in _items(fields, "model"))
    return Spec(
        path=path,
        name=bundle.text("name", pattern=NAME_PATTERN),
        version=bundle.text("version", pattern=VERSION_PATTERN),
        sequence=bundle.integer("sequence") if "sequence" in bundle else None,
        target=parse_target(fields.mapping("target"), fields.path("target")),
        packages=_parse_packages(_table(fields, "packages", _PACKAGE_KEYS)),
        python=_parse_python(_table(fields, "python", ("file", "sha256", "url", "version")))
        if "python" in fields
        else None,
        models=_unique(fields, "model", models),
        apps=_unique(fields, "app", tuple(_parse_app(item, where) for where, item in _items(fields, "app"))),
        environment=_parse_environment(fields),
        minimum=_parse_needs(requires),
        recommended=_parse_needs(_table(requires, "recommended", ("cpu-cores", "disk", "memory"))),
        policy=_parse_policy(_table(fields, "policy", _POLICY_KEYS)),
        probes=tuple(_parse_probe(item, where, models) for where, item in _items(fields, "probe")),
        rehearsal=_parse_rehearsal(_table(fields, "rehearsal", ("allow-network", "imports", "skip-imports"))),
        next_signers=bundle.text("next-signers", ""),
    )


def _table(fields: Fields, key: str, known: tuple[str, ...]) -> Fields:
    # Fields.table joins with a dot; at the top of a file the path is "FILE: key".
    return Fields(fields.mapping(key), where=fields.path(key), known=known, error=SpecError)


def _items(fields: Fields, key: str) -> list[tuple[str, object]]:
    return list(fields.items(key))


def parse_target(data: Mapping[str, object], where: str) -> Target:
    """Return the target that a table describes; what it doesn't say is this host's.

    Raises:
        SpecError: A value isn't one.
    """
    fields = Fields(data, where=where, known=_TARGET_KEYS, error=SpecError)
    host = host_target()
    hint = "uv's names: x86_64-manylinux_2_28, aarch64-manylinux_2_28, aarch64-apple-darwin, x86_64-pc-windows-msvc"
    name = fields.text("platform", host.platform)
    if re.fullmatch(PLATFORM_PATTERN, name, re.ASCII) is None:
        musl = ": musl (Alpine) is left out, since PyTorch has no wheels for it" if "musl" in name else ""
        raise fields.fail("platform", f"{name!r} is not a platform that bundles are made for{musl}", hint=hint)
    python = fields.text("python", host.python)
    if re.fullmatch(PYTHON_PATTERN, python, re.ASCII) is None:
        raise fields.fail("python", f"{python!r} is not a version such as '3.11'")
    if int(python.partition(".")[2]) < 11:
        raise fields.fail("python", f"{python} is older than 3.11, which the closed side needs at least")
    accelerator = fields.text("accelerator", host.accelerator)
    if re.fullmatch(ACCELERATOR_PATTERN, accelerator, re.ASCII) is None:
        raise fields.fail("accelerator", f"{accelerator!r} is not cpu, mps or cuda-X.Y such as cuda-12.6")
    is_mac = name.endswith("apple-darwin")
    if accelerator != "cpu" and is_mac != (accelerator == "mps"):
        hint = "aarch64-apple-darwin has cpu and mps, every other platform cpu and cuda-X.Y"
        raise fields.fail("accelerator", f"{name} has no {accelerator}", hint=hint)
    return Target(platform=name, python=python, accelerator=accelerator)


def _parse_model(item: object, where: str) -> ModelSpec:
    fields = Fields(item, where=where, known=_MODEL_KEYS, error=SpecError)
    adapter = fields.choice("adapter", tuple(ADAPTERS))
    return ModelSpec(
        name=fields.text("name", pattern=NAME_PATTERN),
        source=_parse_model_source(fields),
        adapter=adapter,
        format=fields.choice("format", ("safetensors",), "safetensors"),
        dtype=fields.choice("dtype", ("", "float32", "float16", "bfloat16"), ""),
        include=fields.texts("include", ()),
        exclude=fields.texts("exclude", ()),
        settings=_parse_settings(fields, adapter),
        license=fields.text("license", ""),
    )


def _parse_settings(fields: Fields, adapter: str) -> Mapping[str, Json]:
    """Return a model's settings; what its adapter would refuse on the closed side is refused here."""
    where = fields.path("settings")
    settings = {key: _to_json(value, f"{where}.{key}") for key, value in fields.mapping("settings").items()}
    try:
        read_settings(adapter, settings, KINDS[adapter])
    except SettingsError as error:
        raise SpecError(f"{where}.{error}", hint=error.hint) from None
    return settings


def _parse_model_source(fields: Fields) -> str:
    scheme, location = _split_source(fields, _MODEL_SCHEMES)
    source = f"{scheme}:{location}"
    pattern, form = _MODEL_FORMS.get(scheme, (".*", ""))
    if re.fullmatch(pattern, location, re.ASCII | re.DOTALL) is None:
        raise fields.fail("source", f"{source!r} does not have the form {form}")
    return source


def _split_source(fields: Fields, schemes: tuple[str, ...]) -> tuple[str, str]:
    source = fields.text("source")
    scheme, _, location = source.partition(":")
    if f"{scheme}:" not in schemes:
        names = f"{', '.join(schemes[:-1])} or {schemes[-1]}"
        raise fields.fail("source", f"{source!r} doesn't begin with {names}", hint=nearest_hint(f"{scheme}:", schemes))
    if not location:
        raise fields.fail("source", f"{source!r}: nothing follows the colon")
    return scheme, location


def _parse_app(item: object, where: str) -> AppSpec:
    fields = Fields(item, where=where, known=("exclude", "extras", "include", "name", "source"), error=SpecError)
    scheme, location = _split_source(fields, _APP_SCHEMES)
    place, _, revision = location.rpartition("@") if scheme == "git" else (location, "", "")
    if scheme == "git" and (not place or re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", revision) is None):
        hint = "name the whole commit: git -C CHECKOUT rev-parse HEAD"
        raise fields.fail("source", f"'git:{location}' does not have the form git:CHECKOUT@COMMIT", hint=hint)
    stem = Path(place).name.split("-")[0] if scheme == "wheel" else Path(place).name.removesuffix(".git")
    default = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._") or None
    return AppSpec(
        name=fields.text("name", default, pattern=NAME_PATTERN),
        source=f"{scheme}:{location}",
        include=fields.texts("include", ()),
        exclude=fields.texts("exclude", ()),
        extras=fields.texts("extras", ()),
    )


def _parse_packages(fields: Fields) -> PackagesSpec:
    packages = PackagesSpec(
        requirements=fields.texts("requirements", ()),
        files=fields.texts("files", ()),
        pyproject=fields.text("pyproject", ""),
        extras=fields.texts("extras", ()),
        groups=fields.texts("groups", ()),
        lock_file=fields.text("lock-file", ""),
        build_from_source=fields.texts("build-from-source", ()),
        indexes=tuple(_parse_index(item, where) for where, item in fields.items("index")),
    )
    for key in ("extras", "groups"):
        if fields.texts(key, ()) and not (packages.pyproject or packages.lock_file):
            raise fields.fail(key, "there is no pyproject that could have them", hint='pyproject = "pyproject.toml"')
    return packages


def _parse_index(item: object, where: str) -> IndexSpec:
    fields = Fields(item, where=where, known=("packages", "url"), error=SpecError)
    url = fields.text("url")
    if "@" in url.partition("://")[2].partition("/")[0]:
        hint = "keep them in ~/.netrc, in pip's keyring, or in pip's own configuration"
        raise fields.fail("url", "credentials don't belong in a spec", hint=hint)
    names = fields.texts("packages")
    if not names:
        raise fields.fail("packages", "expected at least one name")
    return IndexSpec(url=url, packages=names)


def _parse_python(fields: Fields) -> PythonSpec:
    given = [key for key in ("version", "file", "url") if key in fields]
    if len(given) != 1:
        raise fields.fail("version", f"expected one of version, file and url, got {', '.join(given) or 'none'}")
    if given == ["version"]:
        return PythonSpec(version=fields.text("version", pattern=r"3\.[0-9]{1,2}(?:\.[0-9]{1,2})?"))
    return PythonSpec(source=fields.text(given[0]), sha256=fields.text("sha256", pattern="[0-9a-f]{64}"))


def _parse_environment(fields: Fields) -> dict[str, str]:
    table = Fields(fields.mapping("env"), where=fields.path("env"), known=tuple(fields.mapping("env")), error=SpecError)
    for key in fields.mapping("env"):
        if re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", key, re.ASCII) is None:
            raise table.fail(key, "is not the name of a variable, such as LOG_LEVEL")
        if re.search("[\x00-\x1f\x7f]", table.text(key)):
            raise table.fail(key, "holds a line break or another control character")
    return {key: table.text(key) for key in sorted(fields.mapping("env"))}


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
    always = {"pickle", "remote-code"}  # what the closed side enforces is said in every manifest
    policy: dict[str, Json] = {
        key: fields.choice(key, ("refuse", "allow"), default)
        for key, default in CLASSES.items()
        if key in fields or key in always
    }
    if "licenses" in fields:
        policy["licenses"] = list(fields.texts("licenses"))
    if "max-size" in fields:
        policy["max-size"] = _parse_bytes(fields, "max-size")
    waivers = [parse_waiver(item, where, error=SpecError) for where, item in fields.items("waiver")]
    if waivers:
        policy["waiver"] = [waiver.to_json() for waiver in waivers]
    return policy


def _parse_rehearsal(fields: Fields) -> RehearsalSpec:
    for index, name in enumerate(fields.texts("imports", ())):
        if re.fullmatch(MODULE_PATTERN, name, re.ASCII) is None:
            raise fields.fail(f"imports[{index}]", f"{name[:80]!r} is not the name of a module")
    return RehearsalSpec(
        imports=fields.texts("imports", ()),
        skip_imports=fields.texts("skip-imports", ()),
        allowed=tuple(parse_allowed(item, where, error=SpecError) for where, item in fields.items("allow-network")),
    )


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
