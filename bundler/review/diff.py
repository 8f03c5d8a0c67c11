"""What changed between two bundles, and what a delta from one to the other would carry.

Both sides are known by their manifests alone, so a manifest file that was kept from the last delivery is enough.
Nothing is trusted: it is what the bundles say of themselves.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from manifests.canonical import Json
from manifests.delta import make_delta
from manifests.errors import UsageError
from manifests.fields import shown
from manifests.files import open_regular, read_exactly
from manifests.manifest import (
    MAX_MANIFEST_SIZE,
    FileEntry,
    Manifest,
    ModelEntry,
    manifest_digest,
    parse_manifest,
)
from manifests.medium import open_medium
from manifests.progress import format_size
from manifests.reference import Remote

_SHOWN: Final = 20
_LICENCES: Final = ("licen", "copying", "notice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A bundle as its manifest describes it, and that manifest's digest."""

    manifest: Manifest
    digest: str

    @property
    def document(self) -> dict[str, Json]:
        """Return what names it, as JSON."""
        return {"bundle": self.manifest.stem, "digest": self.digest, "size": self.manifest.payload_size}


def load_described(path: Path | Remote) -> Described:
    """Read the manifest of a bundle in any form, or a manifest.json that was kept alone.

    Raises:
        UsageError: There is nothing at ``path``.
        IntegrityError: Neither a bundle nor a manifest.
        DiskError: It can't be read.
    """
    data = _manifest_file(path) if isinstance(path, Path) else None
    if data is None:
        with open_medium(path) as medium:
            data = medium.manifest_bytes
    return Described(manifest=parse_manifest(data), digest=manifest_digest(data))


def _manifest_file(path: Path) -> bytes | None:
    """Return the bytes of a file that begins as JSON does, None for anything else."""
    if not path.is_file():
        return None
    with open_regular(path.resolve()) as descriptor:
        if read_exactly(descriptor, 1, 0) != b"{":
            return None
        # One byte more than a manifest may have is enough for it to be refused.
        return read_exactly(descriptor, min(os.fstat(descriptor).st_size, MAX_MANIFEST_SIZE + 1), 0)


def require_base(manifest: Manifest, base: Described) -> None:
    """Require that a prefix can hold both bundles.

    Raises:
        UsageError: They have different names.
    """
    if base.manifest.name != manifest.name:
        msg = f"--base is a bundle of {base.manifest.name!r}, not of {manifest.name!r}"
        raise UsageError(msg, hint="a prefix holds one bundle name, so the base must have the same")


def diff_bundles(old: Described, new: Described) -> Mapping[str, Json]:
    """Return what changed, as a JSON document; lists are sorted, sizes are in bytes."""
    delta = make_delta(new.manifest, old.manifest, old.digest)
    carried = delta.files(new.manifest)
    return {
        "old": old.document,
        "new": new.document,
        "packages": _changes(_packages(old.manifest), _packages(new.manifest)),
        "models": _model_changes(old.manifest, new.manifest),
        "app": _file_changes(old.manifest, new.manifest, lambda entry: entry.kind == "app"),
        "config": _file_changes(old.manifest, new.manifest, lambda entry: entry.kind == "config"),
        "bootstrap": _file_changes(old.manifest, new.manifest, lambda entry: entry.kind == "bootstrap"),
        "licences": _file_changes(old.manifest, new.manifest, _is_licence),
        "settings": _settings(old.manifest, new.manifest),
        "delta": {
            "files": len(carried),
            "left_out": len(new.manifest.files) - len(carried),
            "size": sum(entry.size for entry in carried),
        },
    }


def _packages(manifest: Manifest) -> dict[str, Json]:
    """Return name -> version of every wheel, from its file name (PEP 427)."""
    found: dict[str, Json] = {}
    for entry in manifest.of_kind("wheel"):
        name, _, rest = entry.path.removeprefix("wheels/").partition("-")
        found[name.lower().replace("_", "-")] = rest.partition("-")[0]
    return found


def _changes(old: Mapping[str, Json], new: Mapping[str, Json]) -> dict[str, Json]:
    changed = [name for name in sorted(old.keys() & new.keys()) if old[name] != new[name]]
    return {
        "added": {name: new[name] for name in sorted(new.keys() - old.keys())},
        "removed": {name: old[name] for name in sorted(old.keys() - new.keys())},
        "changed": {name: {"old": old[name], "new": new[name]} for name in changed},
    }


def _file_changes(old: Manifest, new: Manifest, wanted: Callable[[FileEntry], bool]) -> dict[str, Json]:
    before = {entry.path: entry for entry in old.files if wanted(entry)}
    after = {entry.path: entry for entry in new.files if wanted(entry)}
    both = sorted(before.keys() & after.keys())
    return {
        "added": {path: after[path].size for path in sorted(after.keys() - before.keys())},
        "removed": {path: before[path].size for path in sorted(before.keys() - after.keys())},
        "changed": {
            path: {"old": before[path].size, "new": after[path].size}
            for path in both
            if before[path].store_key != after[path].store_key
        },
    }


def _model_changes(old: Manifest, new: Manifest) -> dict[str, Json]:
    before, after = ({model.name: model for model in manifest.models} for manifest in (old, new))
    changed: dict[str, Json] = {}
    for name in sorted(before.keys() & after.keys()):
        path = f"{after[name].path}/"
        files = _file_changes(old, new, lambda entry, path=path: entry.path.startswith(path))  # type: ignore[misc] # a default binds the loop's value
        fields = _model_fields(before[name], after[name])
        if any(files.values()) or fields:
            changed[name] = {"files": files, "fields": fields}
    return {
        "added": {name: after[name].origin for name in sorted(after.keys() - before.keys())},
        "removed": {name: before[name].origin for name in sorted(before.keys() - after.keys())},
        "changed": changed,
    }


def _model_fields(old: ModelEntry, new: ModelEntry) -> dict[str, Json]:
    pairs: dict[str, tuple[Json, Json]] = {
        "adapter": (old.adapter, new.adapter),
        "format": (old.format, new.format),
        "origin": (old.origin, new.origin),
        "settings": (old.settings, new.settings),
    }
    return {name: {"old": one, "new": two} for name, (one, two) in pairs.items() if one != two}


def _is_licence(entry: FileEntry) -> bool:
    name = entry.path.rpartition("/")[2].lower()
    return entry.path.startswith("docs/licen") or (entry.kind == "model" and name.startswith(_LICENCES))


def _settings(old: Manifest, new: Manifest) -> dict[str, Json]:
    """Return what else differs of what is signed."""
    pairs: dict[str, tuple[Json, Json]] = {
        "target": (old.target.label, new.target.label),
        "sequence": (old.sequence, new.sequence),
        "policy": (old.policy, new.policy),
        "launch": (old.launch, new.launch),
    }
    found: dict[str, Json] = {name: {"old": one, "new": two} for name, (one, two) in pairs.items() if one != two}
    named: list[Json] = [
        name
        for name, differs in (
            ("requires", (old.minimum, old.recommended) != (new.minimum, new.recommended)),
            ("probes", old.probes != new.probes),
        )
        if differs
    ]
    return found | ({"also": named} if named else {})


def diff_lines(document: Mapping[str, Json]) -> Iterator[str]:
    """Yield the lines that a person reads."""
    for side in ("old", "new"):
        one = _table(document[side])
        yield f"{side}  {one['bundle']}  {format_size(_integer(one['size']))}  manifest digest {one['digest']}"
    yield from _packages_lines(_table(document["packages"]))
    yield from _model_lines(_table(document["models"]))
    for part in ("app", "config", "bootstrap", "licences"):
        yield from _file_lines(part, _table(document[part]))
    for name, values in _table(document["settings"]).items():
        if isinstance(values, Mapping):
            yield f"{name}: {_text(values['old'])} -> {_text(values['new'])}"
        elif isinstance(values, list):
            yield from (f"{item}: changed" for item in values)
    delta = _table(document["delta"])
    size = format_size(_integer(delta["size"]))
    yield f"a delta carries {delta['files']} files, {size}; it leaves {delta['left_out']} files out"


def _packages_lines(changes: Mapping[str, Json]) -> Iterator[str]:
    for name, version in _table(changes["added"]).items():
        yield f"+ package {_text(name)} {_text(version)}"
    for name, version in _table(changes["removed"]).items():
        yield f"- package {_text(name)} {_text(version)}"
    for name, versions in _table(changes["changed"]).items():
        both = _table(versions)
        yield f"~ package {_text(name)} {_text(both['old'])} -> {_text(both['new'])}"


def _model_lines(changes: Mapping[str, Json]) -> Iterator[str]:
    for sign, kind in (("+", "added"), ("-", "removed")):
        for name, origin in _table(changes[kind]).items():
            yield f"{sign} model {name} from {_text(origin)}"
    for name, what in _table(changes["changed"]).items():
        both = _table(what)
        yield f"~ model {name}"
        for key, values in _table(both["fields"]).items():
            yield f"    {key}: {_text(_table(values)['old'])} -> {_text(_table(values)['new'])}"
        yield from (f"    {line}" for line in _file_lines("file", _table(both["files"])))


def _file_lines(label: str, changes: Mapping[str, Json]) -> Iterator[str]:
    lines = [f"+ {label} {path} ({format_size(_integer(size))})" for path, size in _table(changes["added"]).items()]
    lines += [f"- {label} {path}" for path in _table(changes["removed"])]
    for path, sizes in _table(changes["changed"]).items():
        both = {key: format_size(_integer(size)) for key, size in _table(sizes).items()}
        lines.append(f"~ {label} {path} ({both['old']} -> {both['new']})")
    yield from lines[:_SHOWN]
    if len(lines) > _SHOWN:
        yield f"  ... and {len(lines) - _SHOWN} more: --json has all"


def _table(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, Mapping) else {}


def _integer(value: Json) -> int:
    return value if isinstance(value, int) else 0


def _text(value: Json) -> str:
    return shown(value) if isinstance(value, str) else shown(str(value))
