"""Building a bundle from a lock: compose, pack, rehearse, sign, and the kit beside it."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bundler.compose import Composition, compose
from bundler.keys import Signer, allowed_signers_line, generate_signer
from bundler.kit import write_kit
from bundler.lock import Lock
from bundler.pack import Source, file_source, replace_slot, signature_slot, write_bundle
from bundler.rehearse import rehearse_bundle
from bundler.selfpack import self_digests
from bundler.spec import Spec
from bundler.store import Store
from manifests.errors import SpecError
from manifests.files import disk_error
from manifests.manifest import FileEntry, manifest_digest, parse_manifest
from manifests.pieces import Progress

REHEARSAL_IDENTITY = "rehearsal"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """Where to build, who signs (None: nobody), who that is in ``allowed_signers``, and whether to rehearse."""

    output: Path
    signer: Signer | None
    identity: str = "builder"
    rehearse: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a build wrote. ``kit_digest`` is the number for the telephone."""

    bundle: Path
    kit: Path
    digest: str
    kit_digest: str
    size: int


def build_bundle(
    spec: Spec,
    lock: Lock,
    store: Store,
    options: BuildOptions,
    *,
    progress: Callable[[int], contextlib.AbstractContextManager[Progress]],
    report: Callable[[str], None],
) -> Built:
    """Write ``NAME-VERSION-TARGET.bundle.tar`` and its kit.

    Args:
        spec: What the lock was made from.
        lock: What goes in; never re-resolved here.
        store: Holds every locked file.
        options: Where and by whom.
        progress: Opens a progress display for a number of bytes.
        report: Told of every step, in a few words.

    Raises:
        SpecError: The lock belongs to another spec or another Sealift.
        IntegrityError: The store's content is not what was locked.
        DiskError: No space, no permission.
    """
    check_lock(spec, lock)
    composition = compose(lock, store)
    manifest = composition.manifest
    data = manifest.encode()
    parse_manifest(data)  # what the closed side would refuse must never be signed
    _make_output(options.output)
    final = options.output / f"{manifest.stem}.bundle.tar"
    with _partial(final) as partial:
        report("pack")
        rehearsal = generate_signer()
        slot = signature_slot(rehearsal.sign(data))
        with progress(manifest.payload_size) as shown:
            layout = write_bundle(partial, data, manifest.files, _source(composition, store), shown, slot=slot)
        if options.rehearse:
            trust = allowed_signers_line(rehearsal.key, REHEARSAL_IDENTITY)
            rehearse_bundle(partial, trust, report)
        signer = options.signer
        slot = signature_slot(signer.sign(data)) if signer else signature_slot()
        replace_slot(partial, layout.signature_offset, slot, durable=False)
        partial.replace(final)
    kit = options.output / f"{manifest.stem}.kit"
    trust = allowed_signers_line(signer.key, options.identity) if signer else ""
    kit_digest = write_kit(kit, manifest, _carried(composition), trust)
    return Built(bundle=final, kit=kit, digest=manifest_digest(data), kit_digest=kit_digest, size=layout.size)


def check_lock(spec: Spec, lock: Lock) -> None:
    """Require that a lock was made from this spec, by this Sealift.

    Raises:
        SpecError: It wasn't.
    """
    if lock.spec_digest != spec.digest:
        msg = f"{spec.lock_path}: was made from another version of {spec.path.name}"
        raise SpecError(msg, hint=f"bundler lock {spec.path}")
    own = self_digests()
    changed = sorted(name for name, digest in own.items() if lock.sealift.get(name) != digest)
    if changed:
        msg = f"{spec.lock_path}: was made by another Sealift: {', '.join(changed)} differ from what is installed here"
        raise SpecError(msg, hint=f"bundler lock {spec.path}, or install the Sealift that made the lock")


def _make_output(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, f"create {folder}") from error


@contextlib.contextmanager
def _partial(final: Path) -> Iterator[Path]:
    """Yield a name beside ``final`` that is gone afterwards, unless it was renamed."""
    partial = final.with_name(f".{final.name}.{os.getpid()}.partial")
    try:
        yield partial
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def _source(composition: Composition, store: Store) -> Source:
    def find(entry: FileEntry) -> Path | bytes:
        made = composition.generated.get(entry.path)
        return store.path(entry.sha256) if made is None else made

    return file_source(find)


def _carried(composition: Composition) -> dict[str, bytes]:
    return {name: composition.generated[f"bootstrap/{name}"] for name in ("install.sh", "runtime.pyz")}
