"""OCI image layouts: a base image read from a folder or a tar, hostile until its digests say otherwise.

By the OCI image specification, "Image Layout": index.json names image manifests, a manifest names its config and its
layers, and everything but index.json lies below ``blobs/`` under its own digest.
"""

import contextlib
import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Protocol

from manifests.digests import BUFFER_SIZE
from manifests.errors import IntegrityError, UsageError
from manifests.files import open_below
from manifests.manifest import Target

INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"
GZIP_LAYER_TYPE: Final = f"{LAYER_TYPE}+gzip"
MAX_DOCUMENT: Final = 4 * 1024 * 1024
"""Bytes of an index, a manifest or a config; registries take no more either."""

_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")
_ARCHITECTURES: Final[Mapping[str, str]] = {"x86_64": "amd64", "aarch64": "arm64"}
_LAYOUT_HINT: Final = "skopeo copy containers-storage:IMAGE oci:FOLDER makes one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What a document says of a blob: its media type, ``sha256:`` and hex, its size in bytes."""

    media_type: str
    digest: str
    size: int

    @property
    def name(self) -> str:
        """Where it lies in a layout."""
        return f"blobs/sha256/{self.digest.removeprefix('sha256:')}"

    def to_json(self) -> dict[str, object]:
        """Return it as documents hold it."""
        return {"digest": self.digest, "mediaType": self.media_type, "size": self.size}


class Layout(Protocol):
    """Where the files of a layout come from. ``label`` is how messages call it."""

    label: str

    def open(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Return a context in which a file of the layout is read.

        Raises:
            IntegrityError: It is missing, or no regular file.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseImage:
    """One image of a layout, its documents checked. ``layers`` are in order, the lowest first."""

    layout: Layout
    config: Mapping[str, Any]
    layers: tuple[Descriptor, ...]
    digest: str

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """The digests of the layers' tars, in the same order."""
        return tuple(self.config["rootfs"]["diff_ids"])


@contextlib.contextmanager
def open_layout(path: Path) -> Iterator[Layout]:
    """Open a layout: a folder, or a tar of one.

    Raises:
        UsageError: There is nothing at ``path``.
        IntegrityError: It is neither a folder nor a tar.
    """
    if path.is_dir():
        yield _FolderLayout(path)
    elif path.exists():
        try:
            archive = tarfile.open(path, "r:")  # noqa: SIM115 # the next statement closes it
        except tarfile.TarError:
            msg = f"{path}: is not an OCI image layout: neither a folder nor a plain tar"
            raise IntegrityError(msg, hint=_LAYOUT_HINT) from None
        with archive:
            yield _TarLayout(path, archive)
    else:
        raise UsageError(f"{path}: no such base image", hint=_LAYOUT_HINT)


class _FolderLayout:
    def __init__(self, folder: Path) -> None:
        self.label, self._folder = str(folder), folder

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        # Through descriptors that follow no link: a layout's file never lies anywhere else.
        with open_below(self._folder, name) as descriptor, open(descriptor, "rb", closefd=False) as stream:
            yield stream


class _TarLayout:
    def __init__(self, path: Path, archive: tarfile.TarFile) -> None:
        self.label, self._archive = str(path), archive
        try:
            members = archive.getmembers()
        except tarfile.TarError as error:
            raise IntegrityError(f"{path}: can't be read: {error}") from None
        self._members = {member.name.removeprefix("./"): member for member in members if member.isreg()}

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        member = self._members.get(name)
        stream = self._archive.extractfile(member) if member is not None else None
        if stream is None:
            raise IntegrityError(f"{self.label}/{name}: missing")
        with stream:
            yield stream


def platform_of(target: Target) -> tuple[str, str]:
    """Return what OCI calls a target's system and its architecture, such as ``linux`` and ``amd64``."""
    machine, _, system = target.platform.partition("-")
    return "linux" if "linux" in system else system, _ARCHITECTURES.get(machine, machine)


def find_image(layout: Layout, target: Target) -> BaseImage:
    """Return the one image of a layout for a target.

    Args:
        layout: Where.
        target: The bundle's; an index that names several platforms is searched for its platform.

    Raises:
        UsageError: There is none for that platform, or more than one.
        IntegrityError: A document is damaged, or isn't what it has to be.
    """
    try:
        with layout.open("index.json") as stream:
            index = _parse(stream.read(MAX_DOCUMENT + 1), f"{layout.label}/index.json")
    except IntegrityError as error:
        if error.message.endswith(": missing"):
            msg = f"{layout.label}: is not an OCI image layout: it has no index.json"
            raise IntegrityError(msg, hint=_LAYOUT_HINT) from None
        raise
    chosen = _choose(layout, index, platform_of(target))
    manifest = _document(layout, chosen)
    config_at = _descriptor(manifest.get("config"), layout, "config")
    config = _document(layout, config_at)
    found = (config.get("os"), config.get("architecture"))
    if found != platform_of(target):
        wanted = "/".join(platform_of(target))
        msg = f"{layout.label}: is an image for {found[0]}/{found[1]}, the bundle is for {wanted}"
        raise UsageError(msg, hint=f"give a base image for {wanted}")
    layers = tuple(_descriptor(item, layout, "layer") for item in _sequence(manifest.get("layers"), layout, "layers"))
    rootfs = config.get("rootfs")
    ids = _sequence(rootfs.get("diff_ids") if isinstance(rootfs, dict) else None, layout, "rootfs.diff_ids")
    if len(ids) != len(layers) or not all(isinstance(item, str) and _DIGEST.fullmatch(item) for item in ids):
        raise IntegrityError(f"{layout.label}: its config doesn't name a diff_id for each of the {len(layers)} layers")
    return BaseImage(layout=layout, config=config, layers=layers, digest=chosen.digest)


def copy_blob(layout: Layout, blob: Descriptor, write: Callable[[bytes], object]) -> None:
    """Hand a blob on in pieces of at most 1 MiB; the last piece is handed on only where all of it is as it was named.

    Raises:
        IntegrityError: Size or digest differ.
    """
    digest, done, held = hashlib.sha256(), 0, b""
    with layout.open(blob.name) as stream:
        while data := stream.read(BUFFER_SIZE):
            digest.update(data)
            done += len(data)
            if done > blob.size:
                break
            write(held)
            held = data
    if done != blob.size:
        more = "more" if done > blob.size else f"{done}"
        raise IntegrityError(f"{layout.label}/{blob.name}: expected {blob.size} bytes, got {more}")
    if f"sha256:{digest.hexdigest()}" != blob.digest:
        msg = f"{layout.label}/{blob.name}: expected {blob.digest}, got sha256:{digest.hexdigest()}"
        raise IntegrityError(msg, hint="copy the base image again from its source")
    write(held)


def _choose(layout: Layout, index: Mapping[str, Any], platform: tuple[str, str], *, deep: bool = True) -> Descriptor:
    """Return the descriptor of the one image manifest that fits; an index within the index is looked into once."""
    entries = _sequence(index.get("manifests"), layout, "manifests")
    wanted = "/".join(platform)
    fitting = [entry for entry in entries if isinstance(entry, dict) and _may_fit(entry, platform)]
    if len(fitting) != 1:
        msg = f"{layout.label}: holds {len(fitting)} images for {wanted}, exactly one is needed"
        raise UsageError(msg, hint="skopeo copy oci:LAYOUT:TAG oci:FOLDER puts one into a folder of its own")
    chosen = _descriptor(fitting[0], layout, "manifest")
    if chosen.media_type == INDEX_TYPE and deep:
        return _choose(layout, _document(layout, chosen), platform, deep=False)
    if chosen.media_type != MANIFEST_TYPE:
        msg = f"{layout.label}: names {chosen.media_type}, expected {MANIFEST_TYPE}"
        raise IntegrityError(msg, hint="skopeo copy --format oci makes an OCI image of any other")
    return chosen


def _may_fit(entry: Mapping[str, Any], platform: tuple[str, str]) -> bool:
    named = entry.get("platform")
    return not isinstance(named, dict) or (named.get("os"), named.get("architecture")) == platform


def _document(layout: Layout, blob: Descriptor) -> dict[str, Any]:
    if blob.size > MAX_DOCUMENT:
        msg = f"{layout.label}/{blob.name}: {blob.size} bytes, at most {MAX_DOCUMENT} are allowed"
        raise IntegrityError(msg)
    data = bytearray()
    copy_blob(layout, blob, data.extend)
    return _parse(bytes(data), f"{layout.label}/{blob.name}")


def _parse(data: bytes, where: str) -> dict[str, Any]:
    if len(data) > MAX_DOCUMENT:
        raise IntegrityError(f"{where}: {len(data)} bytes, at most {MAX_DOCUMENT} are allowed")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise IntegrityError(f"{where}: not JSON") from None
    if not isinstance(document, dict):
        raise IntegrityError(f"{where}: not JSON of a document: expected an object")
    return document


def _descriptor(item: object, layout: Layout, what: str) -> Descriptor:
    given = item if isinstance(item, dict) else {}
    media_type, digest, size = given.get("mediaType"), given.get("digest"), given.get("size")
    named = isinstance(media_type, str) and isinstance(digest, str) and _DIGEST.fullmatch(digest) is not None
    if not named or not isinstance(size, int) or size < 0:
        raise IntegrityError(f"{layout.label}: a {what} is not named by media type, sha256 and size")
    return Descriptor(media_type=str(media_type), digest=str(digest), size=size)


def _sequence(value: object, layout: Layout, what: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise IntegrityError(f"{layout.label}: is not an OCI image: expected a list as {what}")
    return value
