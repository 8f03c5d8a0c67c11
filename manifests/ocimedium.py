"""A bundle in an OCI registry. Hostile until proven otherwise, and no more trusted than a disk.

The tag is looked up once; from then on everything is asked for by digest, payload files by the digests that were
signed. Each piece comes by one request and is checked by whoever reads it.
"""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from manifests.artifact import Layer, parse_artifact
from manifests.delta import DELTA_NAME, MAX_DELTA_SIZE, Delta, parse_delta
from manifests.errors import IntegrityError, list_problems
from manifests.fields import shown
from manifests.manifest import MANIFEST_NAME, MAX_MANIFEST_SIZE, SIGNATURE_NAME, FileEntry, Manifest
from manifests.pieces import MAX_THREADS, ReadAt, run_all
from manifests.reference import Remote
from manifests.registry import BlobReader, Registry
from manifests.sources import Part
from manifests.tarlayout import SIGNATURE_SLOT

_PUSH_AGAIN: Final = "bundler push BUNDLE oci://... again: only what is missing is sent"


class OciMedium:
    """A tag of a registry.

    Raises:
        SourceError: The registry can't be reached, or has no such tag.
        IntegrityError: What is there isn't a bundle.
    """

    __slots__ = (
        "_carried",
        "_layers",
        "_registry",
        "artifact_digest",
        "delta",
        "label",
        "manifest_bytes",
        "signature_slot",
    )

    ordered = False

    def __init__(self, remote: Remote, environment: Mapping[str, str] | None = None) -> None:
        self.label = str(remote)
        self._carried: frozenset[str] = frozenset()
        self._registry = Registry(remote, environment=environment)
        try:
            artifact = self._registry.fetch_manifest()
            self.artifact_digest = f"sha256:{hashlib.sha256(artifact).hexdigest()}"
            self._layers = parse_artifact(artifact, where=self.label)
            self.manifest_bytes = self._fetch(MANIFEST_NAME, MAX_MANIFEST_SIZE)
            self.signature_slot = self._fetch(SIGNATURE_NAME, SIGNATURE_SLOT)
            self.delta: Delta | None = None
            if DELTA_NAME in self._layers:
                self.delta = parse_delta(self._fetch(DELTA_NAME, MAX_DELTA_SIZE))
        except BaseException:
            self.close()
            raise

    def check_layout(self, manifest: Manifest) -> None:
        carried = manifest.files if self.delta is None else self.delta.files(manifest)
        self._carried = frozenset(entry.path for entry in carried)
        problems = self._problems(carried)
        if problems:
            raise IntegrityError(list_problems(self.label, problems), hint=_PUSH_AGAIN)
        absent = self._absent(carried)
        if absent:
            raise IntegrityError(list_problems(self.label, absent), hint=_PUSH_AGAIN)

    def carries(self, entry: FileEntry) -> bool:
        return entry.path in self._carried

    @contextlib.contextmanager
    def reader(self, entry: FileEntry) -> Iterator[ReadAt]:
        with contextlib.closing(BlobReader(self._registry, f"sha256:{entry.sha256}", entry.size, entry.path)) as blob:
            yield blob.read

    def parts(self, _entry: FileEntry, _offset: int, _size: int) -> tuple[Part, ...]:
        return ()

    def volumes_of(self, _entry: FileEntry, _offset: int, _size: int) -> tuple[str, ...]:
        return ()

    def check_end(self, *, ask: bool = True) -> None:
        """Do nothing: the layout was checked."""

    def close(self) -> None:
        self._registry.close()

    def _fetch(self, title: str, limit: int) -> bytes:
        layer = self._layers.get(title)
        if layer is None:
            raise IntegrityError(f"{self.label}: is not a bundle: none of its layers is called {title}")
        if layer.size > limit:
            raise IntegrityError(f"{self.label}: {title} has {layer.size} bytes, at most {limit} are allowed")
        return self._registry.fetch_small(layer.digest, layer.size, title)

    def _problems(self, carried: tuple[FileEntry, ...]) -> list[str]:
        own = {MANIFEST_NAME, SIGNATURE_NAME} | ({DELTA_NAME} if self.delta is not None else set())
        listed = "the manifest" if self.delta is None else DELTA_NAME
        extra = sorted(self._layers.keys() - self._carried - own)
        problems = [problem for entry in carried if (problem := _difference(entry, self._layers.get(entry.path)))]
        return problems + [f"{shown(title)}: not in {listed}" for title in extra]

    def _absent(self, carried: tuple[FileEntry, ...]) -> list[str]:
        """Return a line for each blob that the registry hasn't, so that all are known before anything is written."""
        unique = {entry.sha256: entry for entry in carried}
        lines: dict[str, str] = {}

        def asking(entry: FileEntry) -> Callable[[memoryview], None]:
            def ask(_: memoryview) -> None:
                size = self._registry.blob_size(f"sha256:{entry.sha256}")
                if size is None:
                    lines[entry.path] = f"{entry.path}: the registry hasn't its blob sha256:{entry.sha256}"
                elif size not in {entry.size, -1}:
                    lines[entry.path] = f"{entry.path}: the registry's blob has {size} bytes, expected {entry.size}"

            return ask

        run_all(map(asking, unique.values()), threads=MAX_THREADS, stop=threading.Event())
        return [lines[path] for path in sorted(lines)]


def _difference(entry: FileEntry, layer: Layer | None) -> str | None:
    if layer is None:
        return f"{entry.path}: missing"
    if layer.size != entry.size:
        return f"{entry.path}: {layer.size} bytes, expected {entry.size}"
    if layer.digest != f"sha256:{entry.sha256}":
        return f"{entry.path}: its layer is {layer.digest}, expected sha256:{entry.sha256}"
    return None
