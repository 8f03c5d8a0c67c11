"""Fetching wheels: what the store lacks, by the ordinary client, each against the one digest that was resolved."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from packaging.utils import canonicalize_name

from bundler.lock import LockedFile
from bundler.packages.pipconfig import redact
from bundler.packages.resolver import Pin
from bundler.packages.wheelcheck import check_stored_wheel
from bundler.packages.wheeltags import abi_tags, wheel_platforms
from bundler.process import run_program
from bundler.store import Store
from manifests.errors import IntegrityError, SourceError
from manifests.manifest import Target

_PIP_DOWNLOAD: Final = (sys.executable, "-m", "pip", "--no-input", "--quiet", "download", "--no-deps")


def fetch_pins(pins: Sequence[Pin], store: Store, target: Target, *, folder: str = "wheels") -> tuple[LockedFile, ...]:
    """Bring the wheels of ``pins`` into the store.

    Args:
        pins: What was resolved.
        store: Gets what it lacks; what it has isn't fetched.
        target: What pip is told to download for.
        folder: The folder of the bundle that they will lie in.

    Returns:
        One file for each pin, sorted by path.

    Raises:
        SourceError: An index can't be reached, or has the wheel no more.
        IntegrityError: What came has another digest than what was resolved, or is a wheel that contradicts itself.
    """
    missing = [pin for pin in pins if pin.sha256 not in store]
    if missing:
        _download(missing, store, target)
    for pin in pins:
        check_stored_wheel(store, pin.sha256, pin.filename)
    return tuple(sorted((_locked(pin, store, folder) for pin in pins), key=lambda file: file.path))


def download_any(name: str, version: str, store: Store) -> str:
    """Return the sha256 of the wheel of a distribution that carries a model; it is fetched once.

    Raises:
        SourceError: There is no such distribution or version, or it has no wheel.
        IntegrityError: The wheel contradicts itself.
    """
    key = f"{canonicalize_name(name)}=={version}"
    known = store.record("model-wheel", key)
    if isinstance(known, str) and known in store:
        return known
    with tempfile.TemporaryDirectory(prefix="sealift-") as temporary:
        folder = Path(temporary)
        run_pip_download(["--only-binary=:all:", key], folder)
        (wheel,) = folder.iterdir()
        with wheel.open("rb") as stream:
            digest = store.add_stream(stream, what=wheel.name)
        check_stored_wheel(store, digest.sha256, wheel.name)
    store.write_record("model-wheel", key, digest.sha256)
    return digest.sha256


def _download(pins: Sequence[Pin], store: Store, target: Target) -> None:
    with tempfile.TemporaryDirectory(prefix="sealift-") as name:
        folder = Path(name)
        lines = (f"{_requirement(pin)} --hash=sha256:{pin.sha256}\n" for pin in pins)
        (folder / "requirements.txt").write_text("".join(lines), encoding="utf-8")
        run_pip_download(["--require-hashes", *target_flags(target), "-r", folder / "requirements.txt"], folder)
        for pin in pins:
            if not (folder / pin.filename).is_file():
                raise SourceError(f"{pin.name} {pin.version}: pip fetched another file than {pin.filename}")
            with (folder / pin.filename).open("rb") as stream:
                store.add_stream(stream, expected_sha256=pin.sha256, what=pin.filename)


def _requirement(pin: Pin) -> str:
    # A local version may lie in an index that only uv was told of, such as PyTorch's; and what is bound to an index
    # must not be asked of another one.
    direct = ("+" in pin.version or pin.index) and not pin.is_local
    return f"{pin.name} @ {pin.url}" if direct else f"{pin.name}=={pin.version}"


def target_flags(target: Target) -> list[str]:
    """Return what tells pip to choose wheels for a target."""
    flags = ["--only-binary=:all:", "--python-version", target.python, "--implementation", "cp"]
    for abi in abi_tags(target):
        flags += ["--abi", abi]
    for platform in wheel_platforms(target):
        flags += ["--platform", platform]
    return flags


def run_pip_download(arguments: Sequence[str | Path], folder: Path) -> None:
    """Run ``pip download --no-deps`` into a folder, with the user's own configuration.

    Raises:
        SourceError: Pip can't get something.
        IntegrityError: Pip got something with another digest.
    """
    done = run_program([*_PIP_DOWNLOAD, "-d", folder, *arguments], env={"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    if done.status == 0:
        return
    errors = redact(done.errors)
    if "DO NOT MATCH THE HASHES" in errors:
        detail = " ".join(line.strip() for line in errors.splitlines() if "sha256" in line or "Got" in line)
        raise IntegrityError(f"what pip fetched isn't what was resolved: {detail[:500]}")
    lines = [line.removeprefix("ERROR: ") for line in errors.splitlines() if line.startswith("ERROR: ")]
    # What was passed over comes first, what is missing last.
    reason = next((line for line in lines if not line.startswith("Ignored the following")), errors.strip()[-300:])
    raise SourceError(f"pip can't fetch: {reason}", hint="check the network, the proxy and `pip config list`")


def _locked(pin: Pin, store: Store, folder: str) -> LockedFile:
    digest = store.digest(pin.sha256)
    return LockedFile(
        path=f"{folder}/{pin.filename}",
        size=digest.size,
        sha256=digest.sha256,
        chunks=digest.chunks,
        origin=pin.purl,
        source=f"local {pin.filename}" if pin.is_local else f"index {_clean_url(pin.url)}",
    )


def _clean_url(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
