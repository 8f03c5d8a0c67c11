"""An OCI image of an installed bundle, without any engine: the same bundle on the same base gives the same digest."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bundler.imaging.inside import Inside, Installer, check_installable, install_inside
from bundler.imaging.layers import LayerPlan, tree_paths, write_layer
from bundler.imaging.layout import (
    CONFIG_TYPE,
    MANIFEST_TYPE,
    BaseImage,
    Descriptor,
    copy_blob,
    find_image,
    open_layout,
)
from bundler.imaging.recipe import image_config
from bundler.imaging.settle import seconds_of, settle
from bundler.imaging.unpack import check_layer_type, unpack_layer
from manifests.bundle import verify_content, verify_trust
from manifests.digests import BUFFER_SIZE, sha256_hex
from manifests.errors import IntegrityError, UsageError, list_problems
from manifests.files import disk_error
from manifests.manifest import FileEntry, Manifest
from manifests.medium import Medium, open_medium
from manifests.pieces import Progress, Silent
from manifests.trust import parse_allowed_signers

_TAG: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:/@+-]{0,253}[A-Za-z0-9])?", re.ASCII)
_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)+", re.ASCII)
_CARRIED: Final = ("bootstrap/runtime.pyz", "bootstrap/install.sh")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOrder:
    """What is asked for.

    ``bundle`` is a tar, a first volume or an unpacked folder; ``base`` a layout's folder or a tar of one; ``output``
    the new layout's folder. ``trust`` is the text of an allowed_signers file. ``tag`` is the image's name in
    index.json, by default NAME:VERSION.
    """

    bundle: Path
    base: Path
    output: Path
    trust: str
    tag: str = ""
    prefix: str = "/opt/sealift"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image that was made. ``layers`` are those on top of the base's, each a title and its descriptor."""

    output: Path
    tag: str
    digest: str
    manifest: Manifest
    manifest_digest: str
    base_layers: int
    layers: tuple[tuple[str, Descriptor], ...]


def make_image(
    order: ImageOrder,
    report: Callable[[str], None],
    *,
    progress: Progress | None = None,
    install: Installer = install_inside,
) -> Image:
    """Verify a bundle, install it in the unpacked base image, and write base plus release as an OCI image layout.

    Args:
        order: What is asked for.
        report: Told of every step.
        progress: Told of every payload byte that was verified.
        install: Installs into the base's files.

    Returns:
        What was made.

    Raises:
        UsageError: The order can't be carried out as it stands, or the base is for another platform.
        TrustError: Nobody trusted signed the bundle.
        IntegrityError: The bundle or the base is damaged.
        HostError: This host can't install bundles for that target.
        ClosedSideError: The install failed, with its own exit code.
        DiskError: No space, no permission.
    """
    _check_order(order)
    work = order.output.parent / f".{order.output.name}.{os.getpid()}.partial"
    try:
        (work / "kit").mkdir(parents=True)
        report("verify the bundle")
        manifest, digest = _verify(order, work / "kit", progress or Silent())
        made = _assemble(order, work, manifest, digest, report=report, install=install)
        if order.output.is_dir():
            order.output.rmdir()  # empty, it was looked at
        (work / "layout").rename(order.output)
    except OSError as error:
        raise disk_error(error, f"write {order.output}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return made


def _check_order(order: ImageOrder) -> None:
    if order.output.exists() and (not order.output.is_dir() or any(order.output.iterdir())):
        raise UsageError(f"{order.output}: is there already", hint="give another --output, or remove it first")
    if order.tag and not _TAG.fullmatch(order.tag):
        raise UsageError(
            f"{order.tag!r}: can't be an image's tag", hint="letters, digits and . _ - : / such as demo:1.0"
        )
    if not _PREFIX.fullmatch(order.prefix):
        msg = f"{order.prefix!r}: can't be a prefix in an image"
        raise UsageError(msg, hint="an absolute path of letters, digits, . _ and -, such as /opt/sealift")


def _verify(order: ImageOrder, kit: Path, progress: Progress) -> tuple[Manifest, str]:
    """Check signature and every byte, and lay out what the install is started with; return manifest and its digest."""
    with open_medium(order.bundle) as medium:
        trusted = verify_trust(medium, parse_allowed_signers(order.trust, where="--trust"), now=datetime.now(UTC))
        if medium.delta is not None:
            msg = f"{order.bundle}: is a delta, an image needs the whole bundle"
            raise UsageError(msg, hint="give the bundle that the delta leads to")
        check_installable(trusted.manifest.target)
        verify_content(medium, trusted.manifest, progress)
        for path in _CARRIED:
            (kit / path.rpartition("/")[2]).write_bytes(_content(medium, trusted.manifest, path))
    (kit / "allowed_signers").write_text(order.trust, encoding="utf-8")
    return trusted.manifest, trusted.digest


def _content(medium: Medium, manifest: Manifest, path: str) -> bytes:
    entry = next((entry for entry in manifest.files if entry.path == path), None)
    if entry is None:
        raise IntegrityError(f"{medium.label}: carries no {path}")
    data = b"".join(_pieces(medium, entry))
    if sha256_hex(data) != entry.sha256:  # it may have changed since it was verified
        raise IntegrityError(f"{path}: expected sha256 {entry.sha256}, got {sha256_hex(data)}")
    return data


def _pieces(medium: Medium, entry: FileEntry) -> Iterator[bytes]:
    buffer, done = memoryview(bytearray(BUFFER_SIZE)), 0
    with medium.reader(entry) as read:
        while done < entry.size and (count := read(buffer[: min(BUFFER_SIZE, entry.size - done)], done)):
            yield bytes(buffer[:count])
            done += count


def _assemble(
    order: ImageOrder,
    work: Path,
    manifest: Manifest,
    digest: str,
    *,
    report: Callable[[str], None],
    install: Installer,
) -> Image:
    folder, root = work / "layout", work / "root"
    (folder / "blobs" / "sha256").mkdir(parents=True)
    root.mkdir()
    report("verify and unpack the base image")
    with open_layout(order.base) as layout:
        base = find_image(layout, manifest.target)
        _take_layers(base, folder, root)
    lacking = _check_place(root, order.prefix)
    report(f"install below {order.prefix} in the base image, without network")
    task = Inside(
        bundle=order.bundle,
        digest=digest,
        kit=work / "kit",
        prefix=order.prefix,
        search_path=_search_path(base),
    )
    install(root, task)
    release = settle(root, order.prefix[1:], work / "kit", manifest)
    report("write the layers")
    plans = _plan_layers(root, order.prefix[1:], release, manifest, lacking)
    layers = tuple((title, write_layer(folder, root, plan)) for title, plan in plans)
    tag = order.tag or f"{manifest.name}:{manifest.version.replace('+', '_')}"
    return Image(
        output=order.output,
        tag=tag,
        digest=_write_documents(folder, base, layers, _config(base, layers, manifest, digest, order.prefix), tag),
        manifest=manifest,
        manifest_digest=digest,
        base_layers=len(base.layers),
        layers=layers,
    )


def _take_layers(base: BaseImage, folder: Path, root: Path) -> None:
    """Copy the base's layers, each checked, and unpack the copies."""
    for layer in base.layers:
        check_layer_type(layer, base.layout.label)
    for layer, diff_id in zip(base.layers, base.diff_ids, strict=True):
        blob = folder / layer.name
        if not blob.exists():  # a layer may be there twice, as empty ones are
            with blob.open("xb") as stream:
                copy_blob(base.layout, layer, stream.write)
        unpack_layer(blob, layer, diff_id, root)


def _search_path(base: BaseImage) -> str:
    """Return the base's own PATH, empty where it names none: its Python may lie anywhere."""
    environment = (base.config.get("config") or {}).get("Env") or ()
    return next((str(item)[5:] for item in environment if str(item).startswith("PATH=")), "")


def _check_place(root: Path, prefix: str) -> list[str]:
    """Require that nothing of the base lies at the prefix and no link on the way; return the parents that it lacks."""
    path, lacking = root, list[str]()
    for name in prefix[1:].split("/"):
        path /= name
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            msg = f"{prefix}: the base image has a link or a file on the way there"
            raise UsageError(msg, hint="give another --prefix")
        if not path.exists():
            lacking.append(path.relative_to(root).as_posix())
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(f"{prefix}: the base image has something there", hint="give another --prefix")
    return [name for name in lacking if f"/{name}" != prefix]


def _plan_layers(
    root: Path, prefix: str, release: str, manifest: Manifest, parents: list[str]
) -> Iterator[tuple[str, LayerPlan]]:
    """Yield title and plan of each layer: the models, where there are any, and the rest.

    Raises:
        IntegrityError: A file of the manifest isn't there.
    """
    models, mtime = f"{release}/models", seconds_of(manifest)
    rest = [*parents, *tree_paths(root, prefix, skip=(models,))]
    own = list(tree_paths(root, models)) if (root / models).is_dir() else []
    signed = {f"{release}/{entry.path}": entry for entry in manifest.files}
    if missing := sorted(signed.keys() - {*rest, *own}):
        raise IntegrityError(list_problems("the release in the image", [f"{path}: missing" for path in missing]))
    if own:
        way = [*parents, prefix, f"{prefix}/releases", release]
        yield "models", LayerPlan(paths=[*way, *own], mtime=mtime, signed=signed)
    yield "release", LayerPlan(paths=rest, mtime=mtime, signed=signed, open_folders=frozenset({f"{prefix}/var"}))


def _config(
    base: BaseImage,
    layers: tuple[tuple[str, Descriptor], ...],
    manifest: Manifest,
    digest: str,
    prefix: str,
) -> dict[str, Any]:
    """Return the new image's config document."""
    history = list(base.config.get("history") or ())
    history += [
        {"comment": title, "created": manifest.created, "created_by": f"bundler image {manifest.stem}"}
        for title, _ in layers
    ]
    ids = [*base.diff_ids, *(layer.digest for _, layer in layers)]
    return {
        **base.config,
        "config": image_config(base.config.get("config") or {}, manifest, digest, prefix),
        "created": manifest.created,
        "history": history,
        "rootfs": {"diff_ids": ids, "type": "layers"},
    }


def _write_documents(
    folder: Path, base: BaseImage, layers: tuple[tuple[str, Descriptor], ...], config: Mapping[str, Any], tag: str
) -> str:
    """Write config, manifest, index and oci-layout; return the image's digest."""
    document = {
        "annotations": {"org.opencontainers.image.base.digest": base.digest},
        "config": _put(folder, CONFIG_TYPE, config).to_json(),
        "layers": [layer.to_json() for layer in (*base.layers, *(layer for _, layer in layers))],
        "mediaType": MANIFEST_TYPE,
        "schemaVersion": 2,
    }
    manifest = _put(folder, MANIFEST_TYPE, document)
    entry = manifest.to_json() | {
        "annotations": {"org.opencontainers.image.ref.name": tag},
        "platform": {"architecture": config["architecture"], "os": config["os"]},
    }
    (folder / "index.json").write_bytes(_encode({"manifests": [entry], "schemaVersion": 2}))
    (folder / "oci-layout").write_bytes(_encode({"imageLayoutVersion": "1.0.0"}))
    return manifest.digest


def _put(folder: Path, media_type: str, document: Mapping[str, Any]) -> Descriptor:
    data = _encode(document)
    found = Descriptor(media_type=media_type, digest=f"sha256:{sha256_hex(data)}", size=len(data))
    (folder / found.name).write_bytes(data)
    return found


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n"
