"""A bundle as an OCI artifact: the OCI manifest whose layers are the bundle's files, as ORAS writes them.

The config is the OCI empty blob. ``manifest.json``, ``manifest.json.sig`` and every file are layers under their own
sha256, their paths in the annotation that ``oras pull`` names files by. None of it is signed and none of it is
believed: the OCI manifest only says where bytes are.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from manifests.canonical import Json
from manifests.errors import IntegrityError, UsageError
from manifests.fields import shown
from manifests.manifest import Manifest

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
ARTIFACT_TYPE: Final = "application/vnd.sealift.bundle.v1"
FILE_TYPE: Final = "application/octet-stream"
"""Of every layer; with a type of image layers, skopeo would compress them and so change their digests."""
TITLE: Final = "org.opencontainers.image.title"
MAX_ARTIFACT_SIZE: Final = 4 * 1024 * 1024
"""What registries accept of an OCI manifest (OCI distribution specification, "Pushing Manifests")."""
EMPTY: Final = b"{}"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
EMPTY_DIGEST: Final = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A file of the artifact: its path, the digest of its blob (``sha256:`` and hex), its size in bytes."""

    title: str
    digest: str
    size: int


def encode_artifact(manifest: Manifest, layers: Iterable[Layer]) -> bytes:
    """Return the bytes of the OCI manifest; they follow from the bundle alone.

    Raises:
        UsageError: It would be larger than registries accept.
    """
    items = [_descriptor(layer) for layer in layers]
    document: dict[str, Json] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": EMPTY_TYPE, "digest": EMPTY_DIGEST, "size": len(EMPTY)},
        "layers": items,
        "annotations": {
            "org.opencontainers.image.created": manifest.created,
            TITLE: manifest.stem,
            "org.opencontainers.image.version": manifest.version,
        },
    }
    data = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    if len(data) > MAX_ARTIFACT_SIZE:
        msg = f"{manifest.stem}: {len(items)} files make an OCI manifest of {len(data)} bytes, registries accept at "
        hint = "put the application's many files into a wheel, or carry the bundle as a tar"
        raise UsageError(f"{msg}most {MAX_ARTIFACT_SIZE}", hint=hint)
    return data


def parse_artifact(data: bytes, *, where: str) -> dict[str, Layer]:
    """Return the layers of an OCI manifest by their titles; ``where`` begins every message.

    Raises:
        IntegrityError: Too large, no OCI manifest, or its layers have no titles or two of one.
    """
    if len(data) > MAX_ARTIFACT_SIZE:
        raise IntegrityError(f"{where}: its OCI manifest has more than {MAX_ARTIFACT_SIZE} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or document.get("schemaVersion") != 2:
        raise IntegrityError(f"{where}: what the registry has there is not an OCI manifest")
    kind = str(document.get("mediaType", OCI_MANIFEST))
    layers = document.get("layers")
    if kind != OCI_MANIFEST or not isinstance(layers, list):
        hint = "bundler push BUNDLE oci://... makes what can be read here"
        raise IntegrityError(f"{where}: is not a bundle but {shown(kind)}", hint=hint)
    found: dict[str, Layer] = {}
    for number, item in enumerate(layers):
        layer = _parse_layer(item, f"{where}: layer {number}")
        if found.setdefault(layer.title, layer) is not layer:
            raise IntegrityError(f"{where}: two layers are called {shown(layer.title)}")
    return found


def _descriptor(layer: Layer) -> Json:
    annotations: Json = {TITLE: layer.title}
    return {"mediaType": FILE_TYPE, "digest": layer.digest, "size": layer.size, "annotations": annotations}


def _parse_layer(item: object, where: str) -> Layer:
    if not isinstance(item, Mapping):
        raise IntegrityError(f"{where}: is not a table")
    annotations = item.get("annotations")
    title = annotations.get(TITLE) if isinstance(annotations, Mapping) else None
    digest, size = item.get("digest"), item.get("size")
    if not isinstance(title, str):
        hint = "it may be a container image; bundler push BUNDLE oci://... makes what can be read here"
        raise IntegrityError(f"{where}: has no title, so this is not a bundle", hint=hint)
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise IntegrityError(f"{where}: its digest is {shown(str(digest))}, expected sha256:HEX")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise IntegrityError(f"{where}: its size is {shown(str(size))}")
    return Layer(title=title, digest=digest, size=size)
