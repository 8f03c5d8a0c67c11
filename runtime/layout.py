"""Where things lie below a prefix, and what a release is.

::

    PREFIX/
      store/sha256/ab/abcdef...   every file once, read-only
      releases/VERSION-<12 hex>/  venv/ wheels/ models/ app/ config/ docs/ manifest.json manifest.json.sig receipt.json
      etc/                        the operator's own overrides; survive upgrades
      current -> releases/...     flips atomically, last
      var/                        cache, logs, run
      state.json

A folder below ``releases/`` without ``receipt.json`` is not a release: an installer was stopped there, or with
``receipt.json.aside`` a repair.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from manifests.errors import DiskError, IntegrityError, UsageError
from manifests.fields import Fields
from manifests.files import disk_error, lock_folder, locked, sync_folder
from manifests.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest, manifest_digest, parse_manifest

RECEIPT_NAME: Final = "receipt.json"
ASIDE_NAME: Final = "receipt.json.aside"
"""Where a repair keeps the receipt of a release while it makes the environment anew."""
DIGEST_LENGTH: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What an install wrote last into its release.

    ``stats`` holds size, mtime in ns and inode of each payload file and of each file and link of the venv.
    """

    digest: str
    installed: str
    signers: tuple[str, ...]
    python: str
    stats: dict[str, tuple[int, int, int]]

    def encode(self) -> bytes:
        """Return the JSON bytes of receipt.json."""
        data = {
            "digest": self.digest,
            "installed": self.installed,
            "python": self.python,
            "signers": list(self.signers),
            "stats": {path: list(values) for path, values in sorted(self.stats.items())},
        }
        return json.dumps(data, sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One folder below ``releases/``."""

    path: Path

    @property
    def name(self) -> str:
        """``VERSION-<12 hex of the manifest digest>``."""
        return self.path.name

    @property
    def venv(self) -> Path:
        """The virtual environment."""
        return self.path / "venv"

    @property
    def python(self) -> Path:
        """The venv's interpreter."""
        return self.venv / "bin" / "python"

    @property
    def is_complete(self) -> bool:
        """Whether the install came to its end."""
        return (self.path / RECEIPT_NAME).is_file()

    @property
    def in_repair(self) -> bool:
        """Whether a repair is at work here, or was stopped: no release until `runtime repair` ends."""
        return not self.is_complete and (self.path / ASIDE_NAME).is_file()

    def remove(self) -> None:
        """Remove the folder, the receipt first: what is left after an interruption is no release any more."""
        (self.path / RECEIPT_NAME).unlink(missing_ok=True)
        (self.path / ASIDE_NAME).unlink(missing_ok=True)
        if self.path.exists():
            sync_folder(self.path)
            shutil.rmtree(self.path)

    def hold(self, *, exclusive: bool = False) -> int | None:
        """Return a descriptor that locks this release, None where that can't be had at once.

        Whoever works by a release's own path holds it shared, whoever removes the release exclusively; it ends with
        the descriptor. The lock is on the folder: files inside it are replaced by a repair.

        Raises:
            DiskError: The folder can't be locked; FileNotFoundError means that it was removed.
        """
        try:
            return lock_folder(self.path, exclusive=exclusive)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise disk_error(error, f"lock {self.path}") from error

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Keep the release from being removed while it is worked with.

        Raises:
            DiskError: It is being removed or repaired.
        """
        descriptor = self.hold()
        if descriptor is None:
            hint = f"runtime status --prefix {self.path.parent.parent}"
            raise DiskError(f"{self.path}: is being removed or repaired", hint=hint)
        try:
            yield
        finally:
            os.close(descriptor)

    def manifest_bytes(self) -> bytes:
        """Return the bytes of the release's manifest.json."""
        return _read(self.path / MANIFEST_NAME)

    def signature_slot(self) -> bytes:
        """Return the bytes of the release's manifest.json.sig."""
        return _read(self.path / SIGNATURE_NAME)

    def manifest(self) -> Manifest:
        """Return the release's manifest, whose digest the folder's own name must repeat.

        Raises:
            IntegrityError: It was changed after the install.
        """
        data = self.manifest_bytes()
        if not self.name.endswith(f"-{manifest_digest(data)[:DIGEST_LENGTH]}"):
            raise IntegrityError(f"{self.path / MANIFEST_NAME}: does not have the digest that the release is named by")
        return parse_manifest(data)

    def stats(self, manifest: Manifest) -> dict[str, tuple[int, int, int]]:
        """Return size, mtime in ns and inode of each payload file and of everything in the venv, as it is now."""
        venv = (f"venv/{path}" for path in walk_files(self.venv))
        found = {path: (self.path / path).lstat() for path in (*(entry.path for entry in manifest.files), *venv)}
        return {path: (status.st_size, status.st_mtime_ns, status.st_ino) for path, status in found.items()}

    def receipt(self) -> Receipt:
        """Return the receipt, of a release in repair the one that was set aside.

        Raises:
            IntegrityError: Missing or damaged.
        """
        path = self.path / (ASIDE_NAME if self.in_repair else RECEIPT_NAME)
        try:
            data = json.loads(_read(path))
        except ValueError as error:
            raise IntegrityError(f"{path}: not JSON: {error}") from None
        known = ("digest", "installed", "python", "signers", "stats")
        fields = Fields(data, where=f"{path}: ", known=known)
        stats = {str(key): _stat_triple(fields, key, value) for key, value in fields.mapping("stats").items()}
        return Receipt(
            digest=fields.text("digest"),
            installed=fields.text("installed"),
            python=fields.text("python"),
            signers=fields.texts("signers"),
            stats=stats,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """The folder that one bundle name is installed in."""

    path: Path

    @property
    def store(self) -> Path:
        """Where every file lies once."""
        return self.path / "store"

    @property
    def releases(self) -> Path:
        """Where releases lie."""
        return self.path / "releases"

    @property
    def current(self) -> Path:
        """The link to the live release."""
        return self.path / "current"

    @property
    def etc(self) -> Path:
        """The operator's own settings."""
        return self.path / "etc"

    @property
    def var(self) -> Path:
        """Caches, logs and locks."""
        return self.path / "var"

    @property
    def state(self) -> Path:
        """What the prefix remembers across releases."""
        return self.path / "state.json"

    @property
    def install_lock(self) -> Path:
        """Taken by whoever adds a release or flips ``current``; servers may run meanwhile."""
        return self.var / "install.lock"

    @property
    def use_lock(self) -> Path:
        """Shared by whoever uses a release, taken exclusively by whoever removes one."""
        return self.var / "use.lock"

    def release_for(self, manifest: Manifest, digest: str) -> Release:
        """Return the release that a manifest with this digest is installed as."""
        return Release(path=self.releases / f"{manifest.version}-{digest[:DIGEST_LENGTH]}")

    def all_releases(self) -> Iterator[Release]:
        """Yield every folder below ``releases/``, complete or not, by name."""
        if self.releases.is_dir():
            for path in sorted(self.releases.iterdir()):
                if path.is_dir() and not path.is_symlink():
                    yield Release(path=path)

    def live(self) -> Release | None:
        """Return the release that ``current`` points at, by its own path, or None."""
        release = self._pointed()
        return release if release is not None and release.is_complete else None

    def stopped_repair(self) -> Release | None:
        """Return the release that ``current`` points at where a repair of it was stopped, or None."""
        release = self._pointed()
        return release if release is not None and release.in_repair else None

    def _pointed(self) -> Release | None:
        if not self.current.is_symlink():
            return None
        release = Release(path=self.current.resolve())
        return release if release.path.parent == self.releases.resolve() else None

    def require_live(self) -> Release:
        """Return the live release.

        Raises:
            UsageError: Nothing is installed.
            IntegrityError: What was live is in repair.
        """
        release = self.live()
        if release is None and (stopped := self.stopped_repair()) is not None:
            msg = f"{stopped.path}: its repair has not come to its end, so nothing is live"
            raise IntegrityError(msg, hint=f"runtime repair --prefix {self.path}")
        if release is None:
            msg = f"{self.path}: nothing is installed here"
            raise UsageError(msg, hint=f"runtime install BUNDLE --prefix {self.path} --trust ALLOWED_SIGNERS")
        return release


def walk_files(folder: Path) -> Iterator[str]:
    """Yield the path, relative to ``folder``, of everything below it that is no folder; links are not followed."""
    for parent, folders, files in os.walk(folder):
        inside = os.path.relpath(parent, folder)
        links = [name for name in folders if Path(parent, name).is_symlink()]
        yield from (os.path.normpath(f"{inside}/{name}") for name in (*files, *links))


def _stat_triple(fields: Fields, key: str, value: object) -> tuple[int, int, int]:
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(item, int) for item in value):
        raise fields.fail("stats", f"{key}: expected size, mtime and inode")
    return cast("tuple[int, int, int]", tuple(value))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise IntegrityError(f"{path}: missing") from None
    except OSError as error:
        raise disk_error(error, f"read {path}") from error


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    Raises:
        DiskError: It can't be created, or something else is there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise DiskError(f"can't create {path}: something that isn't a folder is there") from None
    except OSError as error:
        raise disk_error(error, f"create {path}") from error


@contextlib.contextmanager
def exclusive(prefix: Prefix, command: str) -> Iterator[None]:
    """Hold the prefix for whoever changes it; the folders of ``var`` and ``etc`` are there inside.

    Raises:
        DiskError: Another one holds it; the message says who.
    """
    for folder in (prefix.var / "run", prefix.var / "cache", prefix.var / "logs", prefix.releases, prefix.etc):
        make_folder(folder)
    holder = prefix.var / "install.holder"
    with locked(prefix.install_lock, blocking=False) as got:
        if not got:
            with contextlib.suppress(OSError):
                who = holder.read_text(encoding="utf-8").strip()
                raise DiskError(f"{prefix.path}: in use by another runtime ({who})", hint="wait for it, then try again")
            raise DiskError(f"{prefix.path}: in use by another runtime", hint="wait for it, then try again")
        holder.write_text(f"runtime {command}, process {os.getpid()}\n", encoding="utf-8")
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)
