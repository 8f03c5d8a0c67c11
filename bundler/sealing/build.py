"""Building a bundle from a lock: compose, pack, rehearse, sign, and the kit beside it."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bundler.contents.compose import Composition, compose
from bundler.lock import Lock
from bundler.packages.completeness import check_lock_complete
from bundler.rehearsal.evidence import Rehearsal, evidence_document, evidence_path, write_evidence
from bundler.rehearsal.rehearse import rehearse_bundle
from bundler.relock import closure_roots
from bundler.review.diff import Described, require_base
from bundler.sealing.keys import Signer, allowed_signers_line, generate_signer
from bundler.sealing.kit import CARRIED, write_kit
from bundler.sealing.pack import Source, file_source, replace_slot, signature_slot, write_bundle
from bundler.sealing.volumes import Delivery
from bundler.selfpack import self_digests
from bundler.spec import Spec
from bundler.store import Store
from manifests.delta import Delta, make_delta
from manifests.errors import SpecError
from manifests.files import disk_error
from manifests.manifest import FileEntry, Manifest, manifest_digest, parse_manifest
from manifests.pieces import Progress
from manifests.tarlayout import TarLayout

REHEARSAL_IDENTITY = "rehearsal"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """Where to build, who signs (None: nobody), who that is in ``allowed_signers``, and whether to rehearse.

    ``more_outputs`` are folders on other disks for volumes that ``output`` has no room for; ``volume_size`` is in
    bytes, None for one tar; ``base`` is the bundle to which a delta is made.
    """

    output: Path
    signer: Signer | None
    identity: str = "builder"
    rehearse: bool = True
    more_outputs: tuple[Path, ...] = ()
    volume_size: int | None = None
    base: Described | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a build wrote. ``kit_digest`` is the number for the telephone.

    ``bundle`` is the tar or its first volume, ``volumes`` all of them or nothing, ``size`` in bytes;
    ``left_out`` counts the files that a delta doesn't carry; ``evidence`` is what was written about ``rehearsal``, with
    its signature; both are missing where nobody asked for one.
    """

    bundle: Path
    kit: Path
    digest: str
    kit_digest: str
    size: int
    volumes: tuple[Path, ...] = ()
    left_out: int = 0
    rehearsal: Rehearsal | None = None
    evidence: tuple[Path, ...] = ()


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
        SourceError: The locked wheels aren't complete, or not in the store.
        UsageError: The volume size or the base doesn't fit.
        IntegrityError: The store's content is not what was locked.
        DiskError: No space, no permission.
    """
    check_lock(spec, lock)
    check_lock_complete(lock, closure_roots(spec, lock), store)
    composition = compose(lock, store)
    manifest = composition.manifest
    data = manifest.encode()
    parse_manifest(data)  # what the closed side would refuse must never be signed
    delta = _delta_of(manifest, options.base)
    source = payload_source(composition, store)
    outputs = (options.output, *options.more_outputs)
    for folder in outputs:
        _make_output(folder)
    delivery = Delivery(_tar_name(manifest, options.base), outputs, options.volume_size)
    try:
        report("pack")
        layout, rehearsal = _deliver(delivery, manifest, delta, source, options, progress=progress, report=report)
        written = delivery.publish(manifest_digest(data))
    finally:
        delivery.discard()
    kit, signer = options.output / f"{manifest.stem}.kit", options.signer
    trust = allowed_signers_line(signer.key, options.identity) if signer else ""
    kit_digest = write_kit(kit, manifest, _carried(composition), trust)
    evidence = _file_evidence(manifest, rehearsal, options)
    return Built(
        bundle=written[0],
        kit=kit,
        digest=manifest_digest(data),
        kit_digest=kit_digest,
        size=layout.size,
        volumes=written if options.volume_size is not None else (),
        left_out=len(manifest.files) - len(layout.members),
        rehearsal=rehearsal,
        evidence=evidence,
    )


def _deliver(
    delivery: Delivery,
    manifest: Manifest,
    delta: Delta | None,
    source: Source,
    options: BuildOptions,
    *,
    progress: Callable[[int], contextlib.AbstractContextManager[Progress]],
    report: Callable[[str], None],
) -> tuple[TarLayout, Rehearsal | None]:
    """Write the bundle with a throw-away signature, rehearse it, and sign it as it will travel."""
    data, rehearsal = manifest.encode(), generate_signer()
    carried = manifest.files if delta is None else delta.files(manifest)
    text = None if delta is None else delta.encode()
    slot = signature_slot(rehearsal.sign(data))
    with progress(sum(entry.size for entry in carried)) as shown:
        layout = write_bundle(delivery.place, data, carried, source, shown, slot=slot, delta=text)
    done = None
    if options.rehearse:
        trust = allowed_signers_line(rehearsal.key, REHEARSAL_IDENTITY)
        # What a delta leaves out is laid into the rehearsal's store, as its base will have left it.
        done = rehearse_bundle(delivery.partial, trust, report, volumes=delivery.folders, base=source)
    slot = signature_slot(options.signer.sign(data)) if options.signer else signature_slot()
    replace_slot(delivery.partial, layout.signature_offset, slot, durable=False)
    return layout, done


def _file_evidence(manifest: Manifest, rehearsal: Rehearsal | None, options: BuildOptions) -> tuple[Path, ...]:
    """Write what was rehearsed; without a rehearsal, what an earlier one says of another bundle goes away."""
    path, digest = evidence_path(_tar_name(manifest, options.base), options.output), manifest_digest(manifest.encode())
    if rehearsal is not None:
        return write_evidence(path, evidence_document(manifest, digest, rehearsal), options.signer)
    if path.exists() and f'"digest":"{digest}"'.encode() not in path.read_bytes():
        for stale in (path, path.with_name(f"{path.name}.sig")):
            stale.unlink(missing_ok=True)
    return ()


def _delta_of(manifest: Manifest, base: Described | None) -> Delta | None:
    if base is None:
        return None
    require_base(manifest, base)
    return make_delta(manifest, base.manifest, base.digest)


def _tar_name(manifest: Manifest, base: Described | None) -> str:
    return (
        f"{manifest.stem}.bundle.tar" if base is None else f"{manifest.stem}.from-{base.digest[:12]}.delta.bundle.tar"
    )


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


def payload_source(composition: Composition, store: Store) -> Source:
    """Return what opens every file of a composition, from the store or as it was made."""

    def find(entry: FileEntry) -> Path | bytes:
        made = composition.generated.get(entry.path)
        return store.path(entry.sha256) if made is None else made

    return file_source(find)


def _carried(composition: Composition) -> dict[str, bytes]:
    return {name: composition.generated[f"bootstrap/{name}"] for name in CARRIED}
