"""The CycloneDX 1.6 SBOM of a bundle (ECMA-424, https://cyclonedx.org/docs/1.6/json/), made and read again.

It is written by hand: its bytes may follow from the lock alone, not from the version of a library.
:func:`sbom_problem` has cyclonedx-python-lib check it against the schema.
"""

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from bundler.lock import Lock, LockedFile, LockedModel
from bundler.review.licenses import LICENSES_FOLDER, PYTHON_LICENSE, WheelReview
from bundler.review.spdx import model_license
from manifests import __version__
from manifests.canonical import Json
from manifests.digests import sha256_hex
from manifests.errors import UsageError
from manifests.manifest import FileEntry

if TYPE_CHECKING:
    from cyclonedx.validation.json import JsonStrictValidator

SBOM_PATH: Final = "docs/sbom.cdx.json"
SBOM_LIMIT: Final = 64 * 1024 * 1024
_TASKS: Final = {"embedding": "feature-extraction", "chat": "text-generation"}
_CHAT: Final = ("causal-lm", "hcx")
_PREFIX: Final = "sealift:"


def make_sbom(lock: Lock, reviews: Mapping[str, WheelReview], own: Iterable[FileEntry]) -> bytes:
    """Return the SBOM of a bundle.

    Args:
        lock: Everything that comes out of the store.
        reviews: Bundle path -> what is known of a wheel, see :func:`bundler.review.licenses.review_wheels`.
        own: The files that Sealift itself adds, but for the SBOM and what is made after it.
    """
    components = [
        *(_wheel(file, reviews[file.path], lock) for file in lock.wheels),
        *(_model(model) for model in lock.models),
        *(_app(name, origin, files) for name, origin, files in _apps(lock)),
        _installer(lock, reviews),
        *([_interpreter(lock)] if lock.python else []),
        _sealift(lock, own),
    ]
    components.sort(key=lambda item: str(item["bom-ref"]))
    document: dict[str, Json] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{_serial(lock)}",
        "version": 1,
        "metadata": {
            "timestamp": lock.created,
            "tools": {"components": [{"type": "application", "name": "sealift", "version": __version__}]},
            "component": {"type": "application", "bom-ref": "bundle", "name": lock.name, "version": lock.version},
            "properties": _properties({"target": lock.target.label, "python": lock.target.python}),
        },
        "components": list(components),
        "dependencies": [{"ref": "bundle", "dependsOn": [str(item["bom-ref"]) for item in components]}],
    }
    return json.dumps(document, indent=1, ensure_ascii=True).encode() + b"\n"


def _serial(lock: Lock) -> uuid.UUID:
    lines = sorted(f"{file.sha256}  {file.path}\n" for file in lock.all_files())
    text = f"{lock.name} {lock.version} {lock.created}\n{''.join(lines)}"
    return uuid.UUID(bytes=bytes.fromhex(sha256_hex(text.encode()))[:16], version=5)


def _wheel(file: LockedFile, review: WheelReview, lock: Lock) -> dict[str, Json]:
    build = next((item for item in lock.builds if item.wheel_sha256 == file.sha256), None)
    built = {"built-from": build.source, "built-from-sha256": build.source_sha256} if build else {}
    name, version = _wheel_name(file.path)
    return {
        "type": "library",
        "bom-ref": file.path,
        "name": name,
        "version": version,
        "hashes": _hashes(file.sha256),
        **_licenses(review.license, is_declared=review.license_from not in {"classifiers", "text"}),
        "purl": file.origin or f"pkg:pypi/{name}@{version}",
        **_references(file),
        "properties": _properties(
            {**_facts(file), "license-from": review.license_from, "native": str(len(review.native)), **built}
        ),
    }


def _wheel_name(path: str) -> tuple[str, str]:
    filename = path.rpartition("/")[2]
    try:
        name, version, _, _ = parse_wheel_filename(filename)
    except InvalidWheelFilename:
        return filename, ""
    return str(name), str(version)


def _model(model: LockedModel) -> dict[str, Json]:
    entry = model.entry
    purl, _, commit = entry.origin.rpartition("@")
    listing = "".join(f"{file.sha256}  {file.path}\n" for file in sorted(model.files, key=lambda file: file.path))
    found: dict[str, Json] = {
        "type": "machine-learning-model",
        "bom-ref": entry.path,
        "name": purl.partition("/")[2] or entry.name,
        "version": commit if purl else sha256_hex(listing.encode())[:16],
        "hashes": _hashes(sha256_hex(listing.encode())),
        **_licenses(model_license(model.license), is_declared=True),
        **({"purl": entry.origin} if entry.origin.startswith("pkg:") else {}),
        "components": [_model_file(file) for file in sorted(model.files, key=lambda file: file.path)],
        "modelCard": {"modelParameters": {"task": _TASKS["chat" if entry.adapter in _CHAT else "embedding"]}},
        "properties": _properties(
            {
                "path": entry.path,
                "name": entry.name,
                "adapter": entry.adapter,
                "format": entry.format,
                "hash-of": "sha256sum's lines over the files, by path",
                "converter-sha256": model.converter,
            }
        ),
    }
    return found


def _model_file(file: LockedFile) -> dict[str, Json]:
    return {
        "type": "file",
        "bom-ref": file.path,
        "name": file.path.rpartition("/")[2],
        "hashes": _hashes(file.sha256),
        "properties": _properties(_facts(file)),
    }


def _apps(lock: Lock) -> Iterator[tuple[str, str, tuple[LockedFile, ...]]]:
    yield from ((app.entry.path, app.entry.origin, app.files) for app in lock.apps)


def _app(path: str, origin: str, files: Sequence[LockedFile]) -> dict[str, Json]:
    listing = "".join(f"{file.sha256}  {file.path}\n" for file in sorted(files, key=lambda file: file.path))
    return {
        "type": "application",
        "bom-ref": path,
        "name": path.rpartition("/")[2],
        "hashes": _hashes(sha256_hex(listing.encode())),
        "properties": _properties(
            {
                "path": f"{path}/",
                "origin": origin,
                "files": str(len(files)),
                "hash-of": "sha256sum's lines over the files, by path",
            }
        ),
    }


def _installer(lock: Lock, reviews: Mapping[str, WheelReview]) -> dict[str, Json]:
    return {**_wheel(lock.installer, reviews[lock.installer.path], lock), "type": "application"}


def _interpreter(lock: Lock) -> dict[str, Json]:
    python = lock.python
    if python is None:
        raise AssertionError("only with an interpreter")
    return {
        "type": "platform",
        "bom-ref": python.file.path,
        "name": "cpython",
        "version": python.version,
        "hashes": _hashes(python.file.sha256),
        **_licenses(PYTHON_LICENSE, is_declared=True),
        **({"purl": python.file.origin} if python.file.origin.startswith("pkg:") else {}),
        **_references(python.file),
        "properties": _properties(_facts(python.file)),
    }


def _sealift(lock: Lock, own: Iterable[FileEntry]) -> dict[str, Json]:
    files = sorted(own, key=lambda entry: entry.path)
    listed: list[Json] = [{"name": f"{_PREFIX}file", "value": entry.path} for entry in files]
    made = (
        SBOM_PATH,
        "docs/SHA256SUMS",
        f"{LICENSES_FOLDER}/",
        *([lock.next_signers.path] if lock.next_signers else []),
    )
    listed += [{"name": f"{_PREFIX}file", "value": path} for path in made]
    return {
        "type": "application",
        "bom-ref": "sealift",
        "name": "sealift",
        "version": __version__,
        **_licenses("Apache-2.0", is_declared=True),
        "purl": f"pkg:pypi/sealift@{__version__}",
        "properties": listed,
    }


def _hashes(sha256: str) -> Json:
    return [{"alg": "SHA-256", "content": sha256}]


def _licenses(expression: str, *, is_declared: bool) -> dict[str, Json]:
    if not expression:
        return {}
    return {
        "licenses": [{"expression": expression, "acknowledgement": "declared" if is_declared else "concluded"}],
    }


def _references(file: LockedFile) -> dict[str, Json]:
    """Return where a file came from: the index's address, where there is one."""
    kind, _, url = file.source.partition(" ")
    return {"externalReferences": [{"type": "distribution", "url": url}]} if kind == "index" and "://" in url else {}


def _facts(file: LockedFile) -> dict[str, str]:
    return {
        "path": file.path,
        "size": str(file.size),
        "source": file.source,
        "confirmed-by": confirmed_by(file.source),
        "made-from-sha256": file.origin_sha256,
    }


def confirmed_by(source: str) -> str:
    """Return who confirmed a file's digest, ``index`` or ``hub``, empty where nobody but the builder did."""
    kind = source.partition(" ")[0]
    return kind if kind in {"index", "hub"} else ""


def _properties(values: Mapping[str, str]) -> Json:
    return [{"name": f"{_PREFIX}{key}", "value": value} for key, value in sorted(values.items()) if value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """What an SBOM says of a file: see the properties that :func:`make_sbom` writes; empty is unsaid."""

    sha256: str = ""
    license: str = ""
    license_from: str = ""
    source: str = ""
    confirmed_by: str = ""
    built_from: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSbom:
    """An SBOM as the report uses it: path -> what is said of it, and every path that is listed at all."""

    items: Mapping[str, Listed]
    paths: frozenset[str]


def read_sbom(data: bytes) -> ReadSbom:
    """Return what an SBOM says. It is a claim of whoever made the bundle; digests are the manifest's business.

    Raises:
        ValueError: It is no CycloneDX document.
    """
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(document, dict) or document.get("bomFormat") != "CycloneDX":
        raise ValueError("not a CycloneDX document")
    items: dict[str, Listed] = {}
    paths: set[str] = set()
    for component in _components(document):
        values = _values(component)
        paths.update(values.get("file", ()), values.get("path", ()))
        for path in values.get("path", ()):
            items[path] = _listed(component, {key: found[0] for key, found in values.items()})
    return ReadSbom(items=items, paths=frozenset(paths))


def _components(document: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    pending = [document]
    while pending:
        inner = pending.pop().get("components")
        found = [item for item in inner if isinstance(item, dict)] if isinstance(inner, list) else []
        yield from found
        pending += found


def _values(component: Mapping[str, object]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    properties = component.get("properties")
    for item in properties if isinstance(properties, list) else ():
        name, value = (item.get("name"), item.get("value")) if isinstance(item, dict) else (None, None)
        if isinstance(name, str) and isinstance(value, str) and name.startswith(_PREFIX):
            found.setdefault(name.removeprefix(_PREFIX), []).append(value)
    return found


def _listed(component: Mapping[str, object], values: Mapping[str, str]) -> Listed:
    version = component.get("version")
    return Listed(
        sha256=_first(component.get("hashes"), "content"),
        license=_first(component.get("licenses"), "expression"),
        license_from=values.get("license-from", ""),
        source=values.get("source", ""),
        confirmed_by=values.get("confirmed-by", ""),
        built_from=values.get("built-from", ""),
        version=version if isinstance(version, str) else "",
    )


def _first(value: object, key: str) -> str:
    found = value[0].get(key) if isinstance(value, list) and value and isinstance(value[0], dict) else None
    return found if isinstance(found, str) else ""


def sbom_problem(data: bytes) -> str:
    """Return where an SBOM departs from the schema of CycloneDX 1.6, empty if it doesn't.

    Raises:
        UsageError: cyclonedx-python-lib isn't installed.
    """
    try:
        problem = _validator().validate_str(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return str(error) or type(error).__name__
    return "" if problem is None else str(problem).splitlines()[0][:500]


@cache
def _validator() -> "JsonStrictValidator":
    try:
        from cyclonedx.schema import SchemaVersion  # noqa: PLC0415 # slow to import, and only a report needs it
        from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415 # as above
    except ImportError:
        hint = "pip install 'sealift[bundler]' brings it"
        raise UsageError("cyclonedx-python-lib[json-validation] is not installed here", hint=hint) from None
    return JsonStrictValidator(SchemaVersion.V1_6)
