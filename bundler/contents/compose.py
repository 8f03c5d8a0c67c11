"""From a lock to a manifest: everything that travels, in bundle order, and the contents that aren't in the store."""

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundler.contents.fleet import render_fleet
from bundler.contents.ragtrace import ragtrace_kit
from bundler.contents.render import SUMS_PATH, Subject, render_payload, sums_text
from bundler.lock import Lock, LockedFile
from bundler.packages.interpreter_check import unpacked_size
from bundler.review.licenses import INDEX_PATH, collect_licenses, interpreter_texts, review_wheels
from bundler.review.policy import check_lock_policy
from bundler.review.sbom import SBOM_PATH, make_sbom
from bundler.selfpack import WHEEL_NAME, runtime_pyz, runtime_wheel
from bundler.store import Store
from manifests import __version__
from manifests.canonical import Json
from manifests.digests import digest_bytes
from manifests.errors import IntegrityError, PolicyError
from manifests.manifest import KINDS, FileEntry, Manifest, bundle_order
from manifests.progress import format_size
from manifests.rehearsal import REHEARSAL_KEY

_OWN_ORIGIN: Final = f"pkg:pypi/sealift@{__version__}"
_BLOCK: Final = 4096  # file systems give a small file at least this


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """A manifest, and the contents that were made for it rather than taken from the store: path -> bytes."""

    manifest: Manifest
    generated: Mapping[str, bytes]


def compose(lock: Lock, store: Store) -> Composition:
    """Return the manifest that follows from a lock.

    Raises:
        IntegrityError: A locked wheel is not in the store, or is no zip.
        PolicyError: The policy refuses something, or the payload is larger than its ``max-size``.
    """
    reviews = review_wheels(lock, store)
    check_lock_policy(lock, store, reviews)
    subject = Subject(
        name=lock.name,
        version=lock.version,
        target=lock.target,
        models=lock.model_entries(),
        environment=lock.environment,
    )
    generated = {
        **render_payload(subject),
        **ragtrace_kit(lock.apps, subject, store),
        **render_fleet(subject),
        "bootstrap/runtime.pyz": runtime_pyz(),
        f"wheels/{WHEEL_NAME}": runtime_wheel(),
    }
    licenses = collect_licenses(lock, reviews, interpreter_texts(lock, store))
    own = [_generated_entry(path, data) for path, data in generated.items()]
    generated |= {INDEX_PATH: licenses.index, SBOM_PATH: make_sbom(lock, reviews, own)}
    entries = [_stored_entry(file) for file in lock.all_files()]
    entries += [*own, *licenses.entries]
    entries += [_generated_entry(path, generated[path]) for path in (INDEX_PATH, SBOM_PATH)]
    generated[SUMS_PATH] = sums_text(entries)
    entries.append(_generated_entry(SUMS_PATH, generated[SUMS_PATH]))
    manifest = Manifest(
        name=lock.name,
        version=lock.version,
        created=lock.created,
        sequence=lock.sequence,
        target=lock.target,
        files=tuple(sorted(entries, key=bundle_order)),
        models=subject.models,
        app=lock.app_entries(),
        minimum=lock.minimum,
        recommended=lock.recommended,
        policy=lock.policy,
        launch={"unpacked-size": _unpacked_size(lock, store), **_plan(lock)},
        probes=lock.probes,
    )
    _check_budget(manifest)
    return Composition(manifest=manifest, generated=generated)


def _plan(lock: Lock) -> dict[str, Json]:
    plan = lock.rehearsal.to_json()
    return {REHEARSAL_KEY: plan} if plan else {}


def _stored_entry(file: LockedFile) -> FileEntry:
    return FileEntry(
        path=file.path,
        size=file.size,
        sha256=file.sha256,
        mode=0o755 if file.executable else 0o644,
        kind=_kind(file.path),
        origin=file.origin,
        chunks=file.chunks,
    )


def _generated_entry(path: str, data: bytes) -> FileEntry:
    digest = digest_bytes(data)
    return FileEntry(
        path=path,
        size=digest.size,
        sha256=digest.sha256,
        mode=0o755 if path.endswith(".sh") else 0o644,
        kind=_kind(path),
        origin=_OWN_ORIGIN,
        chunks=digest.chunks,
    )


def _kind(path: str) -> str:
    folder = path.partition("/")[0]
    return next(kind for kind, top in KINDS.items() if top == folder)


def _unpacked_size(lock: Lock, store: Store) -> int:
    """Return what wheels and interpreter need once unpacked, in bytes, for an installer to ask for beforehand."""
    sizes = (_zip_size(store.path(wheel.sha256), wheel.path) for wheel in lock.wheels)
    return sum(sizes) + (unpacked_size(store.path(lock.python.file.sha256)) if lock.python else 0)


def _zip_size(path: Path, label: str) -> int:
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(_on_disk(archive))
    except (OSError, zipfile.BadZipFile) as error:
        msg = f"{label}: not in the store as a readable wheel: {error}"
        raise IntegrityError(msg, hint="bundler lock SPEC fetches it again") from None


def _on_disk(archive: zipfile.ZipFile) -> Iterator[int]:
    for info in archive.infolist():
        yield -(-info.file_size // _BLOCK) * _BLOCK


def _check_budget(manifest: Manifest) -> None:
    budget = manifest.policy.get("max-size")
    if isinstance(budget, int) and manifest.payload_size > budget:
        largest = sorted(manifest.files, key=lambda entry: -entry.size)[:3]
        names = ", ".join(f"{entry.path} {format_size(entry.size)}" for entry in largest)
        msg = f"the payload has {format_size(manifest.payload_size)}, policy.max-size allows {format_size(budget)}"
        raise PolicyError(f"{msg}; largest: {names}", hint="raise [policy] max-size, or leave something out")
