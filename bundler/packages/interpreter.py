"""The interpreter that a bundle carries: had from uv's own download, a file or a url, checked, and locked."""

import http.client
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from uv import find_uv_bin

from bundler.lock import LockedFile, LockedPython
from bundler.packages.interpreter_check import check_archive
from bundler.process import run_program
from bundler.snapshots.patience import Limits
from bundler.snapshots.transport import Reply, Transport, host_of
from bundler.spec import PythonSpec, Spec
from bundler.store import Store
from manifests.digests import ContentDigest
from manifests.errors import SourceError, SpecError
from manifests.manifest import Target
from manifests.registry_http import network_reason
from manifests.standalone import archive_path

_BY_HAND: Final = (
    "download the `install_only` archive elsewhere (python-build-standalone's releases list them with their sha256), "
    'then write: [python] file = "...", sha256 = "..."'
)


def lock_python(
    spec: Spec,
    store: Store,
    previous: LockedPython | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> LockedPython | None:
    """Have the archive of the spec's ``[python]`` in the store; None where there is no such table.

    Args:
        spec: What a person wrote.
        store: Where the archive goes.
        previous: What the last lock had; kept while it is of the wanted version and in the store.
        report: Told what is fetched.

    Raises:
        SpecError: The archive doesn't fit the target.
        SourceError: It can't be had; the hint says how to give it by hand.
        IntegrityError: It isn't what ``sha256`` says, or no interpreter's archive.
    """
    wanted, target = spec.python, spec.target
    if wanted is None:
        return None
    if wanted.version and not f"{wanted.version}.".startswith(f"{target.python}."):
        msg = f"{spec.path}: python.version: {wanted.version} is not the target's Python, {target.python}"
        raise SpecError(msg, hint=f'version = "{target.python}" takes the newest of it')
    if previous is not None and _still_fits(wanted, target, previous, store):
        return previous
    digest, source, label = _obtain(wanted, spec, store, report)
    version = check_archive(store.path(digest.sha256), target, label)
    file = LockedFile(
        path=archive_path(version, target.platform),
        size=digest.size,
        sha256=digest.sha256,
        chunks=digest.chunks,
        origin=f"pkg:generic/cpython@{version}",
        source=source,
    )
    return LockedPython(version=version, file=file)


def _still_fits(wanted: PythonSpec, target: Target, previous: LockedPython, store: Store) -> bool:
    same = f"{previous.version}.".startswith(f"{wanted.version}.") if wanted.version else False
    is_there = previous.file.sha256 in store
    return same and is_there and previous.file.path == archive_path(previous.version, target.platform)


def _obtain(
    wanted: PythonSpec, spec: Spec, store: Store, report: Callable[[str], None]
) -> tuple[ContentDigest, str, str]:
    """Return digest, source for the lock, and a label for messages."""
    if wanted.version:
        report(f"fetch CPython {wanted.version}")
        return _from_uv(wanted.version, spec.target, store)
    if wanted.source.startswith(("http://", "https://")):
        address = _without_secrets(wanted.source)
        if wanted.sha256 in store:
            return store.digest(wanted.sha256), f"index {address}", address
        report(f"fetch {address}")
        return _from_url(wanted.source, wanted.sha256, store), f"index {address}", address
    path = spec.resolve_folder(wanted.source)
    digest = store.add_file(path, expected_sha256=wanted.sha256)
    return digest, f"local {path.name}", str(path)


def _from_uv(version: str, target: Target, store: Store) -> tuple[ContentDigest, str, str]:
    """Let uv download: it honours the user's mirror and proxies, and compares with the digest that it was built with.

    uv unpacks what it installs, but keeps the archive where ``UV_PYTHON_CACHE_DIR`` says.
    """
    request = uv_request(version, target)
    with tempfile.TemporaryDirectory(prefix="sealift-python-") as name:
        folder = Path(name)
        command = [find_uv_bin(), "python", "install", "--no-bin", "--no-progress"]
        command += ["--install-dir", str(folder / "unpacked"), request]
        done = run_program(command, env={"UV_PYTHON_CACHE_DIR": str(folder / "archives"), "NO_COLOR": "1"}, cwd=folder)
        archives = sorted((folder / "archives").glob("*.tar.gz"))
        if done.status or len(archives) != 1:
            words = " ".join(done.errors.rpartition("error: ")[2].split()) or "it says nothing"
            raise SourceError(f"uv can't download {request}: {words}", hint=_BY_HAND)
        return store.add_file(archives[0]), f"uv {request}", request


def uv_request(version: str, target: Target) -> str:
    """Return how uv calls CPython ``version`` for ``target``: ``cpython-3.11.9-linux-x86_64-gnu``."""
    machine, _, system = target.platform.partition("-")
    if system == "apple-darwin":
        return f"cpython-{version}-macos-{machine}-none"
    if "windows" in system:
        return f"cpython-{version}-windows-{machine}-none"
    return f"cpython-{version}-linux-{machine}-gnu"


def _from_url(url: str, sha256: str, store: Store) -> ContentDigest:
    try:
        with Transport(url, "", Limits().timeout).get(url, {}) as reply:
            if reply.status != 200:
                raise SourceError(f"{host_of(url)} answers {reply.status} for {_without_secrets(url)}", hint=_BY_HAND)
            # The store would take a failing network for a failing disk.
            body = io.BufferedReader(_Body(reply, _without_secrets(url)))
            return store.add_stream(body, expected_sha256=sha256, what=_without_secrets(url))
    except (OSError, http.client.HTTPException) as error:
        raise SourceError(f"can't fetch {_without_secrets(url)}: {network_reason(error)}", hint=_BY_HAND) from None


class _Body(io.RawIOBase):
    """A response's bytes; a failure is a SourceError, and so is an end before all of it came."""

    def __init__(self, reply: Reply, label: str) -> None:
        self._reply, self._label = reply, label
        self._left = int(length) if (length := reply.header("Content-Length")).isdecimal() else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # BufferedReader gives nothing else
        try:
            count = self._reply.response.readinto(buffer)
        except (OSError, http.client.HTTPException) as error:
            raise SourceError(f"can't fetch {self._label}: {network_reason(error)}", hint=_BY_HAND) from None
        if self._left is not None:
            self._left -= count
            if count == 0 and self._left:
                raise SourceError(f"can't fetch {self._label}: it ends {self._left} bytes too early", hint=_BY_HAND)
        return count


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
